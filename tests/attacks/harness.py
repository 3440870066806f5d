"""Attacks and what must come of them: one line, the right exit code, nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from commands import STACK_KERAS, contents
from package_source import MODULES

COMMANDS = ("inspect", "convert")
# What a line imports: as ``package_source.imported``, in a hundredth of its time.
IMPORT = re.compile(r"^\s*(?:from|import) ([A-Za-z_]\w*)", re.MULTILINE)
RUNNER = Path(__file__).with_name("runner.py")
MIB = 1 << 20
# Address space of a command that need not import torch, and of one that has, beyond what is mapped
# at the start (torch for CUDA maps 3 GiB): room for a file that is honest. A bomb does not fit.
MEMORY = {"reading": 874 * MIB, "torch": 1378 * MIB}
# Peak resident memory that a refusal may have had, MiB, beyond that at the start.
PEAK = {"reading": 192, "torch": 280}


@dataclass(frozen=True)
class Report:
    """Result of one command. ``crimes``: what it did beyond its rights."""

    code: int
    out: str
    err: str
    crimes: list[str]
    peak_mib: float

    @property
    def errors(self) -> list[str]:
        """Return the texts after ``k2t: error: ``."""
        start = "k2t: error: "
        return [line[len(start) :] for line in self.err.splitlines() if line.startswith(start)]


class Runner:
    """A process that runs commands, see ``runner.py``."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        named = {name for module in MODULES for name in IMPORT.findall(module.read_text("utf-8"))}
        self._process = subprocess.Popen(
            [sys.executable, RUNNER, mode, STACK_KERAS, *named],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._read() == "ready\n"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def k2t(
        self,
        *arguments: object,
        reads: tuple[Path, ...] = (),
        writes: tuple[Path, ...] = (),
        folder: Path | None = None,
    ) -> Report:
        """Run one command; ``reads`` and ``writes`` are all the paths it has a right to."""
        job = {
            "arguments": [str(argument) for argument in arguments],
            "reads": [str(path) for path in reads],
            "writes": [str(path) for path in writes],
            "folder": str(folder or Path.cwd()),
            "environment": {"TMPDIR": str(folder or Path.cwd())},
            "memory": MEMORY[self.mode],
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Report(**json.loads(self._read()))


def one_line_each(report: Report, code: int, file: object) -> None:
    """The contract of a refusal: exit code, one printable line, nothing else said."""
    assert report.code == code, (report.code, report.err[-2000:])
    notes = [line for line in report.err.splitlines() if line.startswith("k2t: note: ")]
    assert len(report.errors) == 1 == len(report.err.splitlines()) - len(notes), report.err
    assert report.errors[0].startswith(f"{file}: "), report.err
    assert all(" " <= c <= "~" or c == "\n" for c in report.err), report.err
    assert max(map(len, report.err.splitlines())) < 1000
    assert "Traceback" not in report.err


def refused(
    runner: Runner,
    command: str,
    file: Path,
    words: str,
    folder: Path,
    *,
    code: int = 3,
    reads: tuple[Path, ...] = (),
) -> Report:
    """Run one command on a file and check everything that a refusal promises.

    ``folder``: nothing in it may change. Its ``arch.json``, if there is one, is the configuration.
    ``words`` stand in the message. ``reads``: more paths that the command has a right to open.
    """
    before = contents(folder)
    out, config = folder / "out.pt", folder / "arch.json"
    report = runner.k2t(
        command,
        file,
        *((out,) if command == "convert" else ()),
        *(("--config", config) if config.exists() else ()),
        reads=(file, config, *reads),
        writes=() if command == "verify" else (folder,),
        folder=folder,
    )
    one_line_each(report, code, file)
    assert words in report.err, report.err
    assert report.out == "" or command == "inspect"
    assert report.crimes == []
    assert contents(folder) == before
    assert report.peak_mib < PEAK[runner.mode]
    return report
