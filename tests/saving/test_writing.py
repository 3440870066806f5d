"""OUT under bad luck: faults at every step, streams, odd names, the input in OUT's place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    ARCHITECTURE,
    COMMAND,
    FIXTURES,
    MASKED,
    OLD,
    OLD_OUT,
    WEIGHTS,
    assert_refused,
    contents,
    environment,
    k2t,
)
from sampling import examples, in_turn, rest_thorough
from warm_process import HEED_SIGNALS, run_command

import keras2torch_birnn as birnn
from keras2torch_birnn.saving import atomic
from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX files and signals")
faults = pytest.importorskip("fuzz.faults")

# ---- faults ------------------------------------------------------------------------------------


@POSIX
def test_no_byte_is_lost_whatever_fails_at_any_step() -> None:
    """The first of the 10,000 runs in ``docs/trust.md``."""
    runs = faults.Runs()
    for number in range(examples(240)):
        runs.run(faults.case(number))
    runs.close()
    assert runs.lost == []
    reached = {"open", "write", "close", "chmod", "fsync", "link", "replace", "unlink"}
    assert reached <= set(runs.met)


@POSIX
def test_torchs_writer_hides_no_interruption() -> None:
    """Nor an error of the system: torch has a RuntimeError of its own for both."""
    runs = faults.Runs()
    for step in range(faults.STEPS):
        for number, action in enumerate(("Ctrl-C", "ENOSPC")):
            runs.run(faults.Case(number, step, action, False, ".pt", True))
    runs.close()
    assert runs.lost == []
    assert runs.outcomes["Ctrl-C: failed"] == 0
    assert runs.outcomes["Ctrl-C: interrupted"] > 5
    assert all("No space left" in text for text in runs.said), runs.said


@POSIX
@pytest.mark.parametrize("suffix", rest_thorough([".pt", ".safetensors"], [".pt"]))
def test_a_limit_of_the_size_of_files_is_one_line(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"old{suffix}").write_bytes(OLD_OUT)
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    out = tmp_path / f"old{suffix}"
    run = run_command("convert", MASKED, out, "--force", before=limited)
    assert_refused(run, 5, tmp_path / f"old{suffix}", "cannot be written")
    assert contents(tmp_path) == {f"old{suffix}": OLD_OUT}


# ---- what must not be replaced -----------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.parametrize("way", ["same", "link", "hard link", "other spelling"])
@pytest.mark.parametrize("read", ["model", "architecture"])
def test_no_file_that_is_read_is_replaced(
    read: str, way: str, force: tuple[str, ...], tmp_path: Path
) -> None:
    model = Path(shutil.copy(WEIGHTS, tmp_path / "model.h5"))
    config = Path(shutil.copy(ARCHITECTURE, tmp_path / "arch.json"))
    file, out = model if read == "model" else config, tmp_path / "out.pt"
    if way == "link":
        out.symlink_to(file)
    elif way == "hard link":
        out.hardlink_to(file)
    else:
        out = file if way == "same" else tmp_path / "x" / ".." / "." / file.name
        (tmp_path / "x").mkdir()
    before = contents(tmp_path)
    run = k2t("convert", model, out, "--config", config, *force)
    assert_refused(run, 5, out, "is the input itself")
    assert contents(tmp_path) == before


def test_no_member_of_the_input_folder_is_replaced(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "keras-3.15.1" / "as_folder", tmp_path / "model"))
    before = contents(tmp_path)
    run = k2t("convert", folder, folder / "config.json", "--force")
    assert_refused(run, 5, folder / "config.json", "is inside the input")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "found", "more"),
    [
        ("two.h5", "ends in .h5", "; to convert many models: k2t convert MODEL... --out-dir DIR"),
        ("model.onnx", "ends in .onnx", "; to export: k2t export MODEL TARGET"),
        ("model.pt.keras", "ends in .keras", "; to convert many models"),
        ("model.bin", "ends in .bin", "$"),
        ("model", "has no suffix", "$"),
        (".pt", "has no suffix", "$"),
    ],
)
def test_out_has_one_of_its_suffixes(name: str, found: str, more: str, tmp_path: Path) -> None:
    out = tmp_path / name
    words = f"{found}; OUT ends in .pt, .pth or .safetensors"
    for there in (False, True):
        if there:
            out.write_bytes(MASKED.read_bytes())
        before = contents(tmp_path)
        assert_refused(k2t("convert", OLD, out, "--force"), 5, out, words)
        with pytest.raises(birnn.OutputError, match=words + more):
            birnn.save(birnn.convert(OLD), out)
        assert contents(tmp_path) == before


def pickled(**content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def written(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Nothing."""


def damaged(path: Path) -> None:
    birnn.save(birnn.convert(OLD), path)
    path.write_bytes(path.read_bytes()[:-100])


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("format", "keras2torch_birnn/1")


HEADERS: Mapping[str, bytes] = {
    "other metadata": b'{"__metadata__":{"format":"pt"}}',
    "no metadata": b'{"format":"keras2torch_birnn/1"}',
    "a list": b'["__metadata__"]',
    "no JSON": b"{" * 5000,
    "a number": b'{"__metadata__":{"format":7}}',
    "a deep list": b"[" * 200_000,
}
NOT_OURS: Mapping[str, Callable[[Path], None]] = {
    "HDF5": written(MASKED.read_bytes()),
    "text": written(b"keras2torch_birnn/1"),
    "a byte": written(b"P"),
    "a huge header": written(b"\xff" * 64),
    "a state_dict": pickled(weight=torch.zeros(3)),
    "another format": pickled(format="pytorch/1"),
    "another key": pickled(made_with="keras2torch_birnn/1"),
    "the format elsewhere": pickled(spec="format", format="keras2torch_birnn/1"),
    "a zip": other_zip,
    "a damaged OUT": damaged,
    **{name: written(len(h).to_bytes(8, "little") + h) for name, h in HEADERS.items()},
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_file_of_others_is_never_replaced(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    NOT_OURS[name](out)
    before = contents(tmp_path)
    for force in ((), ("--force",)):
        run = k2t("convert", OLD, out, *force)
        assert_refused(run, 5, out, "exists already, and k2t did not write it (--force does not")
        assert "remove it first" in run.err
    with pytest.raises(birnn.OutputError, match="remove it first"):
        birnn.save(birnn.convert(OLD), out)
    assert contents(tmp_path) == before


@POSIX
def test_a_link_to_a_file_of_others_is_not_followed_to_replace_it(tmp_path: Path) -> None:
    out, model = tmp_path / "out.pt", tmp_path / "other.h5"
    model.write_bytes(MASKED.read_bytes())
    out.symlink_to(model)
    assert_refused(k2t("convert", OLD, out, "--force"), 5, out, "remove it first")
    assert model.read_bytes() == MASKED.read_bytes()


@pytest.mark.parametrize(
    ("old", "suffix"),
    in_turn([".pt", ".pth", ".safetensors", "empty"], [".pt", ".PTH", ".SafeTensors"]),
)
def test_a_file_of_ours_is_replaced_whatever_its_suffix(
    old: str, suffix: str, tmp_path: Path
) -> None:
    out, first = tmp_path / f"out{suffix}", tmp_path / f"old{old}"
    if old == "empty":
        out.touch()
    else:
        birnn.save(birnn.convert(MASKED), first)
        first.rename(out)
    assert_refused(k2t("convert", OLD, out), 5, out, "exists already; use --force")
    assert k2t("convert", OLD, out, "--force").code == 0
    assert out.read_bytes().startswith(b"PK") == (suffix != ".SafeTensors")
    assert k2t("verify", OLD, out, "--against", "reference").code == 0


def test_looking_at_an_old_file_runs_nothing_of_it(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was here",))

    for content in ({"format": Evil()}, {"format": "keras2torch_birnn/1", "spec": Evil()}):
        torch.save(content, tmp_path / "old.pt")
        assert is_checkpoint(tmp_path / "old.pt") == (content["format"] == "keras2torch_birnn/1")
        assert list(contents(tmp_path)) == ["old.pt"]


def test_a_file_of_others_that_comes_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "out.pt", atomic._fill

    def comes(*arguments: Any) -> None:
        original(*arguments)
        out.write_bytes(MASKED.read_bytes())

    monkeypatch.setattr(atomic, "_fill", comes)
    with pytest.raises(birnn.OutputError, match="remove it first"):
        birnn.save(birnn.convert(OLD), out)
    assert contents(tmp_path) == {"out.pt": MASKED.read_bytes()}


def test_the_model_is_looked_at_before_an_old_out(tmp_path: Path) -> None:
    out, model = tmp_path / "out.pt", tmp_path / "model.h5"
    out.write_bytes(OLD_OUT)
    assert_refused(k2t("convert", model, out), 3, model, "No such file")
    model.write_bytes(b"no model")
    assert_refused(k2t("convert", model, out), 3, model, "not an HDF5 or Keras file")
    assert out.read_bytes() == OLD_OUT


# ---- names -------------------------------------------------------------------------------------


PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@POSIX
@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("name", "json", "variables"),
    [
        (b"--force t\xc3\xa4b\t\x1b[31m.pt", (), PLAIN),
        (b"a" * 232 + b"new\nline not \xff utf-8.pt", (), {}),
        (b"new\nline not \xff utf-8.pt", ("--json",), PLAIN),
    ],
)
def test_odd_names_are_written_and_told_in_one_line(
    name: bytes, json: tuple[str, ...], variables: dict[str, str], tmp_path: Path
) -> None:
    out = os.fsencode(tmp_path) + b"/" + name
    done = subprocess.run(
        [*COMMAND, "convert", *json, "--", str(OLD), out],
        capture_output=True,
        check=False,
        env=environment(**variables),
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.isascii()
    assert json or len(done.stdout.splitlines()) == 1
    assert not any(byte < 32 and byte != 10 for byte in done.stdout)
    assert [os.fsencode(path.name) for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder/", "is the name of a folder"),
        ("nowhere/", "is the name of a folder"),
        ("a" * 300 + ".pt", "File name too long"),
        ("x/" * 2500 + "m.pt", ""),
        ("loop/m.pt", ""),
    ],
)
@POSIX
def test_impossible_names_are_refused_before_any_work(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    run = k2t("convert", tmp_path / "no such model.h5", name)
    assert run.code == 5, run.err
    assert words in run.err
    assert len(run.err.splitlines()) == 1


def test_a_zero_byte_in_a_name_is_an_output_error() -> None:
    with pytest.raises(birnn.OutputError, match="is not a valid file name"):
        birnn.save(birnn.convert(OLD), "a\0b.pt")


# ---- streams -----------------------------------------------------------------------------------


def loaded(data: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "came.pt"
    path.write_bytes(data)
    content = torch.load(path, weights_only=True)
    path.unlink()
    return content


@POSIX
@pytest.mark.thorough
def test_a_model_goes_to_stdout_and_nothing_else_does(tmp_path: Path) -> None:
    command = [*COMMAND, "convert", str(OLD), "/dev/stdout"]
    piped = subprocess.run(command, capture_output=True, check=False)
    assert piped.returncode == 0, piped.stderr
    assert loaded(piped.stdout, tmp_path)["format"]
    assert b"parameters" in piped.stderr
    # The same into a file: it is the shell's, to be filled, not to be replaced.
    with (tmp_path / "out.pt").open("wb") as file:
        number = os.fstat(file.fileno()).st_ino
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.pt").stat().st_ino == number
    assert (tmp_path / "out.pt").read_bytes() == piped.stdout


@POSIX
def test_a_terminal_gets_no_model() -> None:
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "convert", OLD, "/dev/stdout"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 5
    assert b"is a terminal" in done.stderr


@POSIX
def test_a_disk_is_never_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(atomic.stat, "S_ISBLK", lambda _: True)
    run = k2t("convert", OLD, "/dev/null", "--force")
    assert_refused(run, 5, "/dev/null", "is a disk")


@POSIX
def test_a_reader_of_the_errors_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """``k2t convert bad.h5 out.pt 2>&1 | true``."""
    ours, theirs = os.pipe()
    os.close(ours)
    (tmp_path / "bad.h5").write_bytes(b"no model")
    done = subprocess.run(
        [*COMMAND, "convert", tmp_path / "bad.h5", tmp_path / "out.pt"], stderr=theirs, check=False
    )
    os.close(theirs)
    assert done.returncode == 3
    assert list(contents(tmp_path)) == ["bad.h5"]


# ---- signals -----------------------------------------------------------------------------------

TWICE = """
import os, signal, torch
def save(content, file):
    file.write(b"half of it")
    file.flush()
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
torch.save = save
"""


@POSIX
@pytest.mark.parametrize(
    "text",
    rest_thorough([TWICE, TWICE.replace("SIGINT", "SIGHUP")], [TWICE]),
    ids=["twice", "hangup"],
)
def test_impatience_leaves_everything_as_it_was(text: str, tmp_path: Path) -> None:
    plugin, folder = tmp_path / "plugin.py", tmp_path / "results"
    plugin.write_text(text)
    folder.mkdir()
    (folder / "old.pt").write_bytes(OLD_OUT)
    arguments = ("convert", OLD, folder / "old.pt", "--plugin", plugin, "--force")
    run = run_command(*arguments, before=HEED_SIGNALS)
    expected = signal.SIGINT if text is TWICE else signal.SIGHUP
    assert (run.code, run.out, run.err) == (-expected, "", "")
    assert contents(folder) == {"old.pt": OLD_OUT}
