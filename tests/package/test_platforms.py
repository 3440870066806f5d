"""The reader and the commands without /proc, as on macOS, and as on Windows: by simulation."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import h5py
import numpy as np
import pytest
import torch
from commands import MASKED, OLD, STACK_H5, STACK_KERAS, environment, run_process
from optional_packages import OPTIONAL
from warm_process import run_code

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import InvalidModelFileError, OutputError, UnsupportedOptionError
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process
from keras2torch_birnn.readers.hdf5.store import HDF5Store
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.saving import atomic
from keras2torch_birnn.torch_import import lacks_memory
from keras2torch_birnn.verification import live_keras

pytestmark = pytest.mark.own_processes

# Run in front of the parser's own code, and of the command's.
NO_PROC = """
import sys

def refuse(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(refuse)
"""
# What Python does not have on Windows. Kept is what this system's own ``subprocess`` calls.
NO_POSIX = """
import os, signal, sys

os_names = '''
    fork forkpty getuid geteuid getgid getegid getgroups setuid setgid
    setsid getsid getpgid getpgrp setpgid setpgrp getpriority killpg pread pwrite preadv pwritev
    readv writev sysconf confstr pathconf fpathconf fchmod fchown chown lchown fchdir chroot mkfifo
    mknod nice openpty uname fstatvfs sched_getaffinity sched_setaffinity sched_yield wait
    wait3 wait4 waitid getloadavg ctermid posix_fallocate posix_fadvise lockf fdatasync
    sync tcgetpgrp tcsetpgrp getxattr setxattr listxattr removexattr O_NOFOLLOW O_DIRECTORY
    O_NONBLOCK O_SYNC O_DSYNC O_NOCTTY
'''
signal_names = '''
    SIGALRM SIGHUP SIGXCPU SIGXFSZ SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGCHLD SIGSTOP SIGTSTP SIGCONT
    SIGVTALRM alarm setitimer getitimer pthread_sigmask pthread_kill sigpending sigwait siginterrupt
    pause
'''
for module, names in ((os, os_names), (signal, signal_names)):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in "resource fcntl pwd grp termios tty pty syslog readline curses".split():
    sys.modules[name] = None
"""
# What Python does not have on macOS, and what its kernel refuses: a limit of the address space.
NO_LINUX = """
import os, resource, signal

os_names = '''
    sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler sched_getparam
    sched_setparam sched_rr_get_interval sched_get_priority_max sched_get_priority_min
    posix_fadvise posix_fallocate fdatasync copy_file_range splice memfd_create eventfd
    getxattr setxattr listxattr removexattr pipe2 dup3 waitid getresuid getresgid setresuid
    setresgid getrandom unshare setns pidfd_open O_PATH O_TMPFILE O_DIRECT O_NOATIME O_RSYNC
    O_LARGEFILE
'''
resource_names = '''
    prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME RLIMIT_SIGPENDING RLIMIT_OFILE
    RUSAGE_THREAD
'''
signal_names = '''
    SIGRTMIN SIGRTMAX SIGPWR SIGSTKFLT SIGPOLL SIGCLD pidfd_send_signal sigtimedwait sigwaitinfo
'''
for module, names in ((os, os_names), (resource, resource_names), (signal, signal_names)):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def setrlimit(which, limits, original=resource.setrlimit):
    if which == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    original(which, limits)

resource.setrlimit = setrlimit
"""
# Libraries look for what their system has when they are imported.
CHILD = """
import importlib.util, json, os, sys

sys.path += json.loads(sys.argv[1])["import_from"]
import h5py, numpy

{first}
spec = importlib.util.spec_from_file_location("child", {script!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
try:
    child.serve(json.loads(sys.argv[1]), sys.stdout.buffer)
finally:
    os._exit(0)
"""
COMMANDS = """
import sys, types, torch, h5py, typer, safetensors.torch
{first}
from pathlib import Path
from keras2torch_birnn.readers.hdf5 import parser_process
from typer.testing import CliRunner

parser_process._SCRIPT = Path({child!r})
parser_process.sys = types.SimpleNamespace(platform={platform!r}, executable=sys.executable)
from keras2torch_birnn.cli import app

for arguments in {arguments!r}:
    run = CliRunner().invoke(app, arguments)
    print("ended", run.exit_code, run.output)
"""
WITHOUT = {"/proc": NO_PROC, "Linux": NO_PROC + NO_LINUX, "POSIX": NO_PROC + NO_POSIX}


@pytest.fixture(params=WITHOUT)
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The parser's script, on a system that lacks something."""
    script = tmp_path / "child.py"
    original = str(Path(parser_child.__file__))
    script.write_text(CHILD.format(first=WITHOUT[request.param], script=original))
    return script


@pytest.fixture(params=["by number", "by path"])
def handed_over(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return how the child gets the file: by its number, or on Windows by its path."""
    if request.param == "by path":
        monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.usefixtures("handed_over")
def test_arrays_and_names_are_read(
    child: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parser_process, "_SCRIPT", child)
    model = tmp_path / "model.h5"
    values = np.arange(17 * 19, dtype="f4").reshape(17, 19)
    with h5py.File(model, "w") as file:
        file["contiguous"] = values
        file.create_dataset("packed", data=values, chunks=(5, 7), compression="gzip", shuffle=True)
        file.create_dataset("compact", data=values[0], dcpl=_compact())
        file["truth"] = values[0] > 7
        file.attrs["config"] = "Ä" * 11
        file.attrs["names"] = np.array([b"one", b"two"])
        file.attrs["count"] = 13
    with model.open("rb", buffering=0) as opened:
        window = Window(opened, 0, model.stat().st_size)
        with HDF5Store(window) as store:
            assert store.members("/") == dict.fromkeys(
                ("compact", "contiguous", "packed", "truth"), "dataset"
            )
            found = store.attributes("/", ["config", "names", "count"])
            arrays = store.arrays(["contiguous", "packed", "compact", "truth"])
            wanted = (values, values, values[0], values[0] > 7)
            for array, want in zip(arrays, wanted, strict=True):
                np.testing.assert_array_equal(array.read(), want)
            with pytest.raises(InvalidModelFileError, match="none: not in the file"):
                store.arrays(["none"])
    assert found == {"config": "Ä" * 11, "names": ("one", "two"), "count": 13}


def _compact() -> object:
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    return plan


@pytest.mark.parametrize(
    ("first", "platform"),
    [
        pytest.param(NO_PROC + NO_LINUX, "darwin", id="as on macOS"),
        pytest.param(NO_PROC + NO_POSIX, "win32", id="as on Windows"),
    ],
)
@pytest.mark.thorough
def test_models_are_converted_and_verified(first: str, platform: str, tmp_path: Path) -> None:
    arguments = [
        command
        for number, model in enumerate((MASKED, OLD, STACK_H5, STACK_KERAS))
        for out in [str(tmp_path / f"{number}.pt")]
        for command in (["convert", str(model), out], ["verify", str(model), out])
    ]
    old, out, copy = str(OLD), str(tmp_path / "1.pt"), str(tmp_path / "copy.h5")
    arguments += [
        ["inspect", old],
        ["inspect", out],
        ["layers"],
        ["map", old],
        ["verify", old, out, "--report", str(tmp_path / "report.html")],
        ["convert", old, str(STACK_H5), "--out-dir", str(tmp_path), "--verify"],
        ["write-back", out, old, copy],
    ]
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(first=first, script=str(Path(parser_child.__file__))))
    code = COMMANDS.format(first=first, platform=platform, child=str(script), arguments=arguments)
    done = run_code(code)
    assert done.code == 0, done.err
    assert done.out.count("ended 0 ") == len(arguments), done.out


def test_what_is_in_the_list_is_there_later_and_nothing_else_can_be_imported() -> None:
    """On every system, so that any test of the reader finds a codec that is not in the list."""
    code = """
import sys
from keras2torch_birnn.readers.hdf5 import parser_child

parser_child._limit = lambda _: sys.modules.pop("wave", None)
parser_child.give_up_rights({})
print(*(b"k2t".decode(name) for name in parser_child.CODECS))
try:
    import wave
except ImportError:
    print("refused")
"""
    done = run_process(sys.executable, "-W", "ignore", "-c", code)
    assert (done.out, done.err) == ("k2t k2t\nrefused\n", "")


# ---- what Windows does otherwise ---------------------------------------------------------------


def test_a_paging_file_that_is_too_small_is_too_little_memory() -> None:
    error = OSError("Die Auslagerungsdatei ist zu klein")
    assert not lacks_memory(error)
    error.winerror = 1455  # type: ignore[attr-defined]
    assert lacks_memory(error)


@pytest.mark.parametrize(("refusals", "refused"), [(3, False), (4, True)])
def test_a_file_that_another_program_holds_for_a_moment_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusals: int, refused: bool
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    new.write_text("new")
    old.write_text("old")
    left, replace = iter((PermissionError,) * refusals), Path.replace

    def refuse_at_first(file: Path, target: Path) -> Path:
        for refusal in left:
            raise refusal
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", refuse_at_first)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(sys, "platform", "win32")
    open_there = pytest.raises(OutputError, match="while a program has it open")
    with open_there if refused else nullcontext():
        atomic._replace(new, old)
    assert old.read_text() == ("old" if refused else "new")


def test_compressed_weights_have_a_name_on_windows_until_they_are_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packed, private = tmp_path / "packed.keras", tmp_path / "private"
    private.mkdir()
    with ZipFile(STACK_KERAS) as source, ZipFile(packed, "w", ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    wanted = k2t.weights(STACK_KERAS)
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    monkeypatch.setattr(sys, "platform", "win32")
    found = k2t.weights(packed)
    assert list(private.iterdir()) == []
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)


def test_weights_are_not_written_back_on_windows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = k2t.convert(OLD)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UnsupportedOptionError, match="cannot be written back on Windows"):
        k2t.write_back(model, OLD, tmp_path / "copy.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_file_gets_the_name_that_keras_wants_without_the_right_to_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (named,) = live_keras.files_for_keras(tmp_path, OLD, None)
    assert isinstance(named, Path)
    assert named.read_bytes() == OLD.read_bytes()


def test_a_crash_is_told_by_its_code() -> None:
    assert parser_process._how_it_ended(0xC0000005, 1) == "crashed (0xc0000005)"
    assert parser_process._how_it_ended(7, 1) == "stopped (exit code 7)"


@pytest.mark.thorough
def test_the_tests_are_collected_without_what_windows_lacks_and_without_optional_packages(
    tmp_path: Path,
) -> None:
    missing = ("resource", "fcntl", "pty", "termios", "pwd", "onnx_ir", *sorted(OPTIONAL))
    code = f"import sys; sys.modules.update(dict.fromkeys({missing}))"
    (tmp_path / "as_elsewhere.py").write_text(code)
    command = (sys.executable, "-m", "pytest", "-p", "as_elsewhere", "-p", "no:cacheprovider")
    root = Path(__file__).parents[2]
    given = environment(PYTHONPATH=str(tmp_path))
    done = run_process(*command, "--collect-only", "-qrs", cwd=root, env=given)
    assert done.code == 0, done.out[-2000:]
    skipped = {line.rpartition(": ")[2] for line in done.out.splitlines() if "SKIPPED" in line}
    assert skipped & {f"{name} is not installed" for name in OPTIONAL}
