"""The child process that parses HDF5: failures, rights, and facts that cannot be true."""

from __future__ import annotations

import io
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
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5 import index_check, parser_child, parser_process

# --- The child process ---

pytestmark = pytest.mark.own_processes


FAKE_CHILD = """
import functools, os, signal, sys, time
print, OPEN = functools.partial(print, flush=True), '[{"is": 1}]'
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
        ("print(OPEN); sys.stdin.readline(); os.abort()", "the HDF5 parser crashed (SIGABRT)"),
        ("print('[')", "the HDF5 parser was misled"),
        ("print('[' * 100000)", "the HDF5 parser was misled"),
        ("print('{}')", "the HDF5 parser was misled"),
        ("print('[1, 2]')", "the HDF5 parser was misled"),
        (
            "print(OPEN); sys.stdin.readline(); print(OPEN)",
            "the HDF5 parser was misled by this file",
        ),
        (
            "print(OPEN); sys.stdin.readline(); print('[3]')",
            "the HDF5 parser was misled by this file",
        ),
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
        assert inherited.readable()
        assert inherited.seek(-4, io.SEEK_END) == inherited.tell()
        buffer = bytearray(b"xxxxxxxx")
        assert inherited.readinto(buffer) == 4
        assert buffer == data[-4:] + bytes(4)
        with h5py.File(inherited, "r") as opened_file:
            index = parser_child.Index(h5py, opened_file, parser_process._LIMITS)
            asked = {"ask": "dataset", "paths": ["x", "y"]}
            good, bad = parser_child.answer(index, asked, parser_process._LIMITS)
    assert good["is"]["dtype"] == ">i2"
    assert bad == {"refused": "not in the file"}


# --- A child that lies ---

CONTIGUOUS = {"shape": [2, 3], "dtype": "<f4", "layout": "contiguous", "offset": 8, "stored": 24}


CHUNKED = {
    "shape": [3],
    "dtype": "<f4",
    "layout": "chunked",
    "chunk": [2],
    "filters": [],
    "chunks": [[0, 0, 0, 8], [2, 0, 8, 8]],
}


def enter(*facts: object) -> None:
    with _temporary(bytes(64)) as file:
        ledger = index_check.Ledger(Window(file, 0, 64))
        for number, one in enumerate(facts):
            ledger.enter(f"/{number}", one).read()


def test_honest_facts_pass() -> None:
    enter(CHUNKED, {**CONTIGUOUS, "offset": 16})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (CONTIGUOUS | {"offset": 41}, "its bytes end at 65, the file at 64"),
        (CONTIGUOUS | {"offset": 2**62}, "its bytes end at"),
        (CONTIGUOUS | {"stored": 25}, "25 bytes stored, 24 declared"),
        (CONTIGUOUS | {"offset": None}, "no bytes stored, 24 declared"),
        (CONTIGUOUS | {"layout": "inline", "bytes": "AAAA"}, "3 bytes stored, 24 declared"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [0, 0, 8, 8]]}, "two chunks at the same place"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [1, 0, 8, 8]]}, r"a chunk at \(1,\), outside"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [4, 0, 8, 8]]}, r"a chunk at \(4,\), outside"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [2, 0, 4, 8]]}, "its bytes are also those of /0"),
        (CHUNKED | {"chunks": [[0, 0, 4, 8], [2, 0, 0, 8]]}, "its bytes are also those of /0"),
        (CHUNKED | {"chunks": [[0, 0, 0, 8], [2, 0, 60, 8]]}, "its bytes end at 68"),
        (CHUNKED | {"filters": [[2, [8]]]}, r"shuffled as items of \(8,\) bytes, but they have 4"),
    ],
)
def test_facts_that_cannot_be_true_are_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModelFileError, match=f"^/0: {words}"):
        enter(facts)


GARBAGE: tuple[Any, ...] = (None, -1, 1.5, True, "x", [], {}, [None], [-1], [[]], 2**70, "\ud800")


@pytest.mark.parametrize("facts", [CONTIGUOUS, CHUNKED], ids=["contiguous", "chunked"])
def test_garbled_facts_never_pass(facts: dict[str, Any]) -> None:
    for key in facts:
        for garbage in GARBAGE:
            if garbage == facts[key]:
                continue
            with pytest.raises((index_check.ImpossibleError, InvalidModelFileError)):
                enter(facts | {key: garbage})
    for garbage in GARBAGE:
        with pytest.raises(index_check.ImpossibleError):
            enter(garbage)


@pytest.mark.parametrize("check", [index_check.check_members, index_check.check_attributes])
def test_garbled_names_never_pass(check: Callable[[object], object]) -> None:
    assert check({}) == {}
    for garbage in (*GARBAGE, {"text": 3}, {"texts": "x"}, {"texts": [1]}, {"number": True}):
        if garbage != {}:
            with pytest.raises(index_check.ImpossibleError):
                check(garbage)
        with pytest.raises(index_check.ImpossibleError):
            check({"name": garbage})


def test_a_child_that_does_not_start_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(InvalidModelFileError, match=r"did not start \(Too many open files\); free"):
        keras2torch_birnn.convert(FIXTURES / "keras-2.2.4" / "compiled.h5")
