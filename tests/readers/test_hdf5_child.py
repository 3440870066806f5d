"""The child process that parses HDF5: failures, rights, and facts that cannot be true."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_files import _temporary, make_file, open_store, read
from specs import FIXTURES

import keras2torch_birnn
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, K2TError
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process
from keras2torch_birnn.readers.hdf5 import store as store_module
from keras2torch_birnn.readers.hdf5.store import Budget, ImpossibleError

# --- The child process ---

pytestmark = pytest.mark.own_processes


FAKE_CHILD = """
import functools, os, signal, sys, time
print = functools.partial(print, flush=True)
"""


def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> bytes:
    script = tmp_path / "child.py"
    script.write_text(FAKE_CHILD + code)
    monkeypatch.setattr(parser_process, "_SCRIPT", script)
    return make_file(lambda f: f.update(x=1.0))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the HDF5 parser crashed (SIGSEGV) on this file"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "did not finish in 5 s of computing on this file"),
        ("os._exit(9)", "the HDF5 parser stopped (exit code 9) on this file"),
        ("sys.stdin.readline(); os.abort()", "the HDF5 parser crashed (SIGABRT)"),
        ("print('[')", "the HDF5 parser was misled"),
        ("print('[' * 100000)", "the HDF5 parser was misled"),
        ("print('{}')", "the HDF5 parser was misled"),
        ("print('[1, 2]')", "the HDF5 parser was misled"),
        ("print('[{\"is\": 1}]')", "the HDF5 parser was misled by this file"),
        ("print('[3]')", "the HDF5 parser was misled by this file"),
    ],
)
def test_a_child_that_fails_is_an_error_of_the_file(
    code: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = _fake(monkeypatch, tmp_path, code)
    with open_store(data) as store:
        for _ in range(2):
            with pytest.raises(InvalidModelFileError, match=re.escape(words)):
                store.arrays(["x"])


def test_a_child_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MAX_PARSER_WALL_SECONDS", 0.3)
    with open_store(_fake(monkeypatch, tmp_path, "time.sleep(60)")) as store:
        with pytest.raises(InvalidModelFileError, match=r"did not finish in 0\.3 s on this file"):
            store.kind("x")


def test_a_child_that_talks_without_end_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "MAX_REPLY_BYTES", 10_000)
    with open_store(_fake(monkeypatch, tmp_path, "while True: print('x', end='')")) as store:
        with pytest.raises(InvalidModelFileError, match="was misled"):
            store.kind("x")


def test_a_reply_that_is_too_long_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parser_process._LIMITS, "reply", 200)
    with open_store(make_file(lambda f: [f.create_group(f"group{i}") for i in range(99)])) as store:
        with pytest.raises(InvalidModelFileError, match=r"^/: too much to tell about it; refused"):
            store.members("/")


def test_h5py_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parser_process, "import_roots", lambda: [str(tmp_path)])
    with open_store(make_file(lambda f: f.update(x=1.0))) as store:
        with pytest.raises(K2TError, match=r"h5py cannot be imported .*No module.*; reinstall it"):
            store.kind("x")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(K2TError, match="h5py is not installed; pip install h5py"):
        read(make_file(lambda f: f.update(x=1.0)), "x")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_child_has_no_rights_left() -> None:
    with open_store(make_file(lambda f: f.update(x=1.0))) as store:
        store.kind("x")
        pid = store._parser._process.pid
        rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
        soft = {row[:25].strip(): row[26:].split()[0] for row in rows[1:]}
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert soft["Max open files"] == soft["Max file size"] == soft["Max core file size"] == "0"
    assert soft["Max processes"] == "0"
    assert soft["Max cpu time"] == str(limits.MAX_PARSER_CPU_SECONDS)
    assert int(soft["Max address space"]) < 4 << 30
    assert b"HDF5_PLUGIN_PRELOAD=::" in environment
    assert b"HDF5_PLUGIN_PATH" not in environment


def test_closing_ends_the_child_at_any_time() -> None:
    with open_store(make_file(lambda f: f.update(x=1.0))) as store:
        process = store._parser._process
        store.close()
    assert process.returncode is not None
    with open_store(make_file(lambda f: f.update(x=1.0))) as store:
        store.kind("x")
        process = store._parser._process
    assert process.returncode == -signal.SIGKILL


def test_the_parent_imports_neither_h5py_nor_torch() -> None:
    code = (
        "import sys, keras2torch_birnn.readers.containers;print({'h5py', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_the_child_does_works_in_any_process() -> None:
    """The child's own code, here in the open, where coverage sees it."""
    data = make_file(lambda f: f.update(x=np.arange(3, dtype=">i2")))
    with _temporary(data) as file:
        inherited = parser_child.InheritedFile(file.fileno(), 0, len(data))
        assert inherited.seek(-4, io.SEEK_END) == len(data) - 4
        buffer = bytearray(b"xxxxxxxx")
        assert inherited.readinto(buffer) == 4
        assert buffer == data[-4:] + bytes(4)
        inherited.seek(0)
        index = parser_child.Index(h5py, inherited, parser_process._LIMITS)
        said = io.BytesIO()
        for ask in ("dataset", "values"):
            request = json.dumps({"ask": ask, "paths": ["x", "y"], "more": []}).encode()
            parser_child.respond(index, request, parser_process._LIMITS, said)
        index.file.close()
    facts, _, values = said.getvalue().partition(b"\n")
    refused = {"refused": "not in the file"}
    assert json.loads(facts) == [{"is": {"shape": [3], "dtype": ">i2", "inflated": 0}}, refused]
    assert values == b'6\n\0\0\0\1\0\2[{"is": null}, {"refused": "not in the file"}]\n'


# --- A child that lies ---

PLAIN = {"shape": [2, 3], "dtype": "<f4", "inflated": 0}
PACKED = {"shape": [2, 3], "dtype": "<f4", "inflated": 32}


def test_honest_facts_pass() -> None:
    budget = Budget(64)
    assert budget.enter("/0", PLAIN) == budget.enter("/1", PACKED) == ((2, 3), "<f4")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([PLAIN | {"shape": [17]}], "/0: 68 bytes declared; all arrays together have more"),
        ([PLAIN | {"shape": [2**62, 2**62]}], "/0: [0-9]+ bytes declared"),
        ([PLAIN, PLAIN, PLAIN], "/2: 24 bytes declared; all arrays together have more"),
        ([PACKED | {"inflated": 1 << 30}], "/0: its chunks inflate to 1073741824 bytes; in a file"),
        ([PACKED | {"shape": [1 << 28]}], "/0: its chunks inflate to 1073741824 bytes"),
        ([PACKED | {"shape": [1 << 23]}] * 3, "/2: its chunks inflate to 33554432 bytes"),
    ],
)
def test_arrays_are_never_larger_than_a_file_can_hold(facts: list[Any], words: str) -> None:
    budget = Budget(64)
    with pytest.raises(InvalidModelFileError, match=f"^{words}"):
        for number, one in enumerate(facts):
            budget.enter(f"/{number}", one)


GARBAGE: tuple[Any, ...] = (None, -1, 1.5, True, "x", {}, [None], [-1], [[]], 2**70, "\ud800")


def test_garbled_facts_never_pass() -> None:
    for key in PLAIN:
        for garbage in GARBAGE:
            with pytest.raises(ImpossibleError):
                Budget(64).enter("/0", PLAIN | {key: garbage})
    with pytest.raises(ImpossibleError):
        Budget(64).enter("/0", PLAIN | {"shape": [1] * 33})
    for garbage in GARBAGE:
        with pytest.raises(ImpossibleError):
            Budget(64).enter("/0", garbage)


@pytest.mark.parametrize("check", [store_module._members, store_module._attributes])
def test_garbled_names_never_pass(check: Callable[[object], object]) -> None:
    assert check({}) == {}
    for garbage in (*GARBAGE, [], {"text": 3}, {"texts": "x"}, {"texts": [1]}, {"number": True}):
        if garbage != {}:
            with pytest.raises(ImpossibleError):
                check(garbage)
        with pytest.raises(ImpossibleError):
            check({"name": garbage})


FACTS = '[{"is": {"shape": [3], "dtype": "<u2", "inflated": 0}}]'


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ('6\n123456[{"is": null}]', ""),
        ('4\n12342\n56[{"is": null}]', ""),
        ('4\n1234[{"is": null}]', "was misled"),
        ('[{"is": null}]', "was misled"),
        ('6\n1234562\n12[{"is": null}]', "was misled"),
        ('8\n12345678[{"is": null}]', "was misled"),
        ('0\n0\n0\n6\n123456[{"is": null}]', "was misled"),
        ("9" * 5000, "was misled"),
        ("6\n123456[3]", "was misled"),
        ("6\n123456[]", "was misled"),
        ('4\n1234[{"refused": "damaged"}]', "x: damaged; refused"),
    ],
)
def test_values_are_exactly_as_many_as_were_declared(
    said: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"input(); print({FACTS!r}); input(); print({said!r})"
    with open_store(_fake(monkeypatch, tmp_path, code)) as store:
        (array,) = store.arrays(["x"])
        if not words:
            assert array.read().tobytes() == b"123456"
            return
        with pytest.raises(InvalidModelFileError, match=re.escape(words)):
            array.read()


def test_a_child_that_dies_among_the_values_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"input(); print({FACTS!r}); input(); print('6'); print('12'); os.abort()"
    with open_store(_fake(monkeypatch, tmp_path, code)) as store:
        (array,) = store.arrays(["x"])
        with pytest.raises(InvalidModelFileError, match=r"the HDF5 parser crashed \(SIGABRT\)"):
            array.read()


def test_a_child_that_does_not_start_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(InvalidModelFileError, match=r"did not start \(Too many open files\); free"):
        keras2torch_birnn.convert(FIXTURES / "keras-2.2.4" / "compiled.h5")
