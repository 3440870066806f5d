"""Saving a model while the disk, the system or the user fail at every step of it.

A run saves a small model over an old file, or beside it. At one of the operations that this takes
(chosen by number, so that over many runs every one gets its turn) something happens: an error of
the operating system, a write that takes only a part, Ctrl-C, or ``kill -9``. Afterwards OUT must
be what it was, or the whole new file; it must be what it was if saving said that it failed; and
nothing else may lie in the folder, but for what ``kill -9`` leaves (under a name of its own).
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import torch
from fixture_files import FIXTURES

from fuzz.runs import Mutant, Tally
from keras2torch_birnn import OutputError, convert, save
from keras2torch_birnn.saving import atomic

FIXTURE = FIXTURES / "keras-2.2.4" / "plain_gru_after_back_seq.h5"
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EACCES", "EPERM", "EINTR", "EFBIG", "ESTALE")
ACTIONS = (*ERRORS, "short write", "Ctrl-C", "kill -9")
STEPS = 20
# What may be replaced: a file of ours.
_HEADER = b'{"__metadata__": {"format": "keras2torch_birnn/1"}}'
OLD = len(_HEADER).to_bytes(8, "little") + _HEADER + b"precious" * 100


@dataclass
class Fault:
    """``action`` at operation number ``step``: before it is done, or right after it."""

    step: int
    action: str
    after: bool
    met: str = ""
    count: int = 0

    def meet(self, operation: str, moment: str) -> bool:
        """Count an operation; act if it is its turn. True: do only a part of it."""
        if moment == "before":
            self.count += 1
        if self.met or self.count - 1 != self.step or self.after != (moment == "after"):
            return False
        self.met = operation
        if self.action == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        elif self.action == "kill -9":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "short write":
            return operation == "write"
        else:
            number = getattr(errno, self.action)
            raise OSError(number, os.strerror(number))
        return False


class _Raw(io.FileIO):
    """A file of which every write and the closing are operations that can fail."""

    fault: Fault

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.fault.meet("write", "before"):
            return super().write(view[: max(1, len(view) // 2)])
        done = super().write(view)
        self.fault.meet("write", "after")
        return done

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.fault.meet("close", "before")
        finally:
            super().close()


@contextmanager
def injected(fault: Fault) -> Iterator[None]:
    """Let ``fault`` come over everything that saving asks of the operating system."""

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fault.meet(name, "before")
            result = original(*args, **kwargs)
            fault.meet(name, "after")
            return result

        return call

    def open_file(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode not in ("wb", "r+b"):
            return original_open(path, mode, *args, **kwargs)
        fault.meet("open", "before")
        raw = _Raw(path, "w" if mode == "wb" else "r+")
        raw.fault = fault
        return io.BufferedWriter(raw) if mode == "wb" else io.BufferedRandom(raw)

    original_open = Path.open
    with ExitStack() as patches:
        for name in ("open", "close", "fsync", "link", "access"):
            patched = counted(name, getattr(os, name))
            patches.enter_context(mock.patch.object(atomic.os, name, patched))
        for name in ("replace", "chmod", "unlink"):
            patched = counted(name, getattr(Path, name))
            patches.enter_context(mock.patch.object(Path, name, patched))
        patches.enter_context(mock.patch.object(Path, "open", open_file))
        yield


@dataclass(frozen=True)
class Case:
    """Make one run. ``there``: an old file is in place, with a mode of its own."""

    number: int
    step: int
    action: str
    after: bool
    suffix: str
    there: bool


def case(number: int, random: Random | None = None) -> Case:
    """Run ``number``, of seed 1 unless ``random`` is given."""
    random = random or Random(f"faults 1 {number}")
    action = random.choice(ACTIONS)
    return Case(
        number,
        step=random.randrange(STEPS),
        action=action,
        # (An operation that fails has done nothing.)
        after=action in ("Ctrl-C", "kill -9") and random.random() < 0.5,
        suffix=random.choice((".pt", ".pt", ".safetensors")),
        there=random.random() < 0.7,
    )


def settled(data: bytes) -> bytes:
    """Return what was saved, in a fixed order: safetensors shuffles its metadata."""
    size = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or len(data) < 8 + size:
        return data
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True)
    return header.encode() + data[8 + size :]


class Runs:
    """A model to save, and what the saved file must be."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = convert(FIXTURE)
        memory = Path("/dev/shm")
        self.root = Path(
            tempfile.mkdtemp(prefix="k2t-faults-", dir=memory if memory.is_dir() else None)
        )
        self.whole: dict[str, bytes] = {}
        for suffix in (".pt", ".safetensors"):
            path = self.root / f"whole{suffix}"
            for _ in range(2):
                save(self.model, path)
                found = settled(path.read_bytes())
                assert self.whole.setdefault(suffix, found) == found
            path.unlink()
        self.outcomes: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.lost: list[dict[str, Any]] = []
        self.said: set[str] = set()

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.root)

    def run(self, one: Case) -> str:
        """Do one run and look at what it left; return how it ended."""
        folder = self.root / "folder"
        folder.mkdir()
        out = folder / f"out{one.suffix}"
        if one.there:
            out.write_bytes(OLD)
            out.chmod(0o640)
        fault = Fault(one.step, one.action, one.after)
        ended, met = (
            self._killed(one, fault, out) if one.action == "kill -9" else self._try(one, fault, out)
        )
        outcome = f"{one.action}: {ended}" if met else "not reached: saved"
        self.outcomes[outcome] += 1
        self.met[met] += 1
        wrong = self._wrong(one, ended, met, out)
        if wrong:
            self.lost.append({"run": one.number, "case": str(one), "met": met, "wrong": wrong})
        shutil.rmtree(folder)
        return outcome

    def _try(self, one: Case, fault: Fault, out: Path) -> tuple[str, str]:
        try:
            with injected(fault):
                save(self.model, out, overwrite=one.there)
        except OutputError as error:
            self.said.add(error.message)
            return "failed", fault.met
        except KeyboardInterrupt:
            return "interrupted", fault.met
        return "saved", fault.met

    def _killed(self, one: Case, fault: Fault, out: Path) -> tuple[str, str]:
        pid = os.fork()
        if not pid:
            with suppress(BaseException), injected(fault):
                save(self.model, out, overwrite=one.there)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return ("killed", "somewhere") if status == -signal.SIGKILL else ("saved", "")

    def _wrong(self, one: Case, ended: str, met: str, out: Path) -> str:
        before = settled(OLD) if one.there else None
        now = settled(out.read_bytes()) if out.exists() else None
        whole = self.whole[one.suffix]
        if now not in (before, whole):
            return "OUT is neither the old file nor the new one"
        if ended == "failed" and now != before:
            return "OUT has changed although saving failed"
        if ended == "saved" and now != whole:
            return "OUT is not the new file although it was saved"
        if ended == "saved" and one.there and out.stat().st_mode & 0o777 != 0o640:
            return "OUT has lost its mode"
        rest = sorted(path.name for path in out.parent.iterdir() if path != out)
        if rest and ended != "killed" and met != "unlink":
            return f"{rest} left behind"
        if not all(name.startswith(".k2t-") and name.endswith(".tmp") for name in rest):
            return f"{rest} could be taken for a model"
        return ""


@contextmanager
def opened(_folder: Path, _tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what does one run."""
    # A shell starts what runs in the background deaf to Ctrl-C, and then nothing is interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runs = Runs()

    def try_one(mutant: Mutant) -> None:
        one = case(mutant.number, mutant.random)
        mutant.tally.outcomes[runs.run(one)] += 1
        for lost in runs.lost:
            mutant.find(str(lost))
        runs.lost.clear()

    yield try_one
    runs.close()
