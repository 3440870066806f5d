"""Runs ``k2t`` commands for the tests, each in a forked process with limits and an audit hook.

``python runner.py MODE MODEL NAME...``: imports the package once, with all that reading MODEL needs
(mode ``torch``: everything), then for each line on stdin, a JSON job, prints a JSON report. What a
command does beyond its rights (opens a file it was not given, starts a program, talks to the
network, unpickles, imports what is no NAME) is a line of ``crimes``. Nothing is prevented: a crime
that happens is a test that fails.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TypeAlias

import keras2torch_birnn
from keras2torch_birnn import cli
from keras2torch_birnn.readers.hdf5 import parser_process

CPU_SECONDS, WALL_SECONDS = 20, 300  # the second only for what waits: machines can be busy
# What may be read by any command: Python, its packages, and what describes this machine.
LIBRARIES = tuple(
    dict.fromkeys(
        os.path.realpath(path)
        for path in (
            *sysconfig.get_paths().values(),
            *site.getsitepackages(),
            Path(keras2torch_birnn.__file__).parent,
            Path(sysconfig.get_paths()["stdlib"]) / "lib-dynload",
            "/proc",
            "/sys",
        )
    )
)
DEVICES = ("/dev/null", "/dev/urandom", os.devnull)
PARSER = [sys.executable, "-I", "-S", str(parser_process._SCRIPT)]
# What the package's own code names in its import statements: it may import nothing else.
NAMED = frozenset(sys.argv[3:])
NEVER = ("socket.", "pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
CODE = ("exec", "compile", "marshal.loads")

Hook: TypeAlias = Callable[[str, tuple[Any, ...]], None]


def inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder + os.sep) for folder in folders)


def importer() -> str:
    """The file whose code wants the import that is going on."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(("<frozen", __file__)):
        frame = frame.f_back
    return os.path.realpath(frame.f_code.co_filename)


def watch(job: dict[str, Any], report: Callable[[str], None]) -> Hook:
    """An audit hook that reports what this job has no right to do."""
    given = tuple(os.path.realpath(path) for path in job["reads"])
    writes = tuple(os.path.realpath(path) for path in job["writes"])
    own = os.path.realpath(Path(keras2torch_birnn.__file__).parent)

    def opened(path: Any, flags: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        real = os.path.realpath(os.fsdecode(path))
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        allowed = writes if writing else (*LIBRARIES, *given, *writes)
        if real not in DEVICES and not inside(real, allowed):
            report(f"{'writes' if writing else 'opens'} {real}")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            opened(args[0], args[2])
        elif event == "import":
            if inside(importer(), (own,)) and args[0].partition(".")[0] not in NAMED:
                report(f"imports {args[0]}")
        elif event.startswith(NEVER):
            report(f"{event} {args!r:.200}")
        elif event == "subprocess.Popen":
            if list(args[1])[:4] != PARSER:
                report(f"starts {args[1]!r:.200}")
        elif event in CODE:
            caller = sys._getframe(1).f_code.co_filename
            real = os.path.realpath(caller)
            library = caller.startswith("<frozen") or inside(real, LIBRARIES)
            if inside(real, (own,)) or not library:
                report(f"{event} from {caller}")

    return hook


def child(job: dict[str, Any], out: int, err: int, crimes: int) -> None:
    for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        os.dup2(target, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = in_use()[0] + job["memory"]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.alarm(WALL_SECONDS)
    os.chdir(job["folder"])
    sys.path.insert(0, job["folder"])  # what a file names could be imported from there
    os.environ.update(job["environment"])
    tempfile.tempdir = None  # some torch asks for it when it is imported
    sys.dont_write_bytecode = True  # a module imported for the first time is no file of this job
    sys.argv = ["k2t", *job["arguments"]]
    sys.addaudithook(watch(job, lambda text: void(os.write(crimes, f"{text}\n".encode()))))
    cli.main()


def void(_: object) -> None:
    """Nothing."""


def in_use() -> tuple[int, int]:
    """Bytes of this process that are mapped, and that are in memory."""
    mapped, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    return mapped * resource.getpagesize(), resident * resource.getpagesize()


def run(job: dict[str, Any]) -> dict[str, Any]:
    before = in_use()[1]
    files = {name: os.memfd_create(name) for name in ("out", "err", "crimes")}
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            child(job, files["out"], files["err"], files["crimes"])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            os.write(files["err"], f"Traceback: {type(error).__name__}: {error}\n".encode())
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    texts = {}
    for name, file in files.items():
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file, "rb") as stream:
            texts[name] = stream.read().decode("utf-8", "surrogateescape")
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": texts["out"],
        "err": texts["err"],
        "crimes": texts["crimes"].splitlines(),
        "peak_mib": usage.ru_maxrss / 1024 - before / (1 << 20),
    }


def main(mode: str, honest: str) -> None:
    import keras2torch_birnn.conversion

    void(keras2torch_birnn.conversion)
    if mode == "torch":
        import torch

        import keras2torch_birnn.verification

        torch.set_num_threads(1)
        void(keras2torch_birnn.verification)
    with suppress(SystemExit), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        cli.app(["inspect", honest])  # what is imported late is there now
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
