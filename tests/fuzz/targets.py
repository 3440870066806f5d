"""Runs of one mutant, and their outcomes.

Allowed: the reader takes the file, or raises ``K2TError`` with printable lines. What it takes is
compared with what plain h5py reads in another process. Everything else is a finding.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np

from fuzz.forked import fork
from keras2torch_birnn import inspection, readers
from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import NO_CUT, Cut

ORACLE_SECONDS = 2
CPU_SECONDS = 10.0  # of this process for one mutant; the parser's child has its own limit


class HangError(BaseException):
    """Error: one mutant took more than ``CPU_SECONDS`` of computing."""


@dataclass
class Tally:
    """Outcomes of the mutants so far. ``findings``: those that should not happen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    parser: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "outcomes": dict(self.outcomes),
            "parser": dict(self.parser),
            "compared": dict(self.compared),
            "findings": self.findings,
        }


def attempt(
    work: Callable[[], Any],
    tally: Tally,
    label: Mapping[str, Any],
    *,
    seconds: float = CPU_SECONDS,
) -> Any:
    """Do ``work``; its result, or None. Errors that are not ours become findings."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        result = work()
    except K2TError as error:
        _count_refusal(error, tally, label)
        return None
    except (Exception, HangError) as error:
        tally.outcomes[f"UNEXPECTED {type(error).__name__}"] += 1
        tally.findings.append({**label, "error": _where(error)})
        return None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    tally.outcomes["accepted"] += 1
    return result


def _count_refusal(error: K2TError, tally: Tally, label: Mapping[str, Any]) -> None:
    tally.outcomes[f"refused {type(error).__name__}"] += 1
    text = str(error)
    if not all(line.isprintable() and line.isascii() for line in error.lines()):
        tally.findings.append({**label, "error": f"not printable: {ascii(text)[:300]}"})
    if len(text) > 100_000:
        tally.findings.append({**label, "error": f"a message of {len(text)} characters"})
    if "the HDF5 parser " in text:
        said = text.split("the HDF5 parser ", 1)[1].split(" on this file")[0]
        tally.parser[said.split(" by this file")[0][:60]] += 1


def _where(error: BaseException) -> str:
    trace, lines = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {ascii(str(error))[:200]} at {' < '.join(lines[::-1][:6])}"


def guard(memory: int = 1 << 30) -> None:
    """Make endless loops, and more new memory than so many bytes, errors in this process."""

    def hang(_number: int, _frame: object) -> None:
        raise HangError

    signal.signal(signal.SIGVTALRM, hang)
    facts = Path("/proc/self/statm")
    if not facts.exists():  # not Linux
        return
    pages = int(facts.read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


# ---- whole files --------------------------------------------------------------------------------


class Recorder:
    """Remembers every array that the readers have read since ``clear``."""

    def __init__(self) -> None:
        self.read: list[tuple[str, np.ndarray[Any, Any]]] = []
        original = StoredArray.read
        recorder = self

        def read(array: StoredArray) -> np.ndarray[Any, Any]:
            values = original(array)
            recorder.read.append((array.path, values.copy()))
            return values

        mock.patch.object(StoredArray, "read", read).start()


def read_file(
    path: Path,
    config: Path | None,
    recorder: Recorder,
    tally: Tally,
    label: Mapping[str, Any],
) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Read a model; what was read, by path, if it was taken."""
    recorder.read.clear()

    def work() -> Any:
        return readers.read_model(path, config=config)

    return recorder.read if attempt(work, tally, label) is not None else []


def independent(files: Mapping[str, bytes]) -> list[h5py.File]:
    """Plain h5py on every HDF5 file among ``files`` and inside archives."""
    opened = []
    for data in files.values():
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read("model.weights.h5")
        if data.startswith(b"{"):
            continue
        opened.append(h5py.File(io.BytesIO(data), "r"))
    return opened


def values_of(opened: Sequence[h5py.File], path: str) -> np.ndarray[Any, Any] | None:
    """Read ``path`` by h5py, in native byte order; bfloat16 as float32."""
    values: np.ndarray[Any, Any]
    for file in opened:
        if path in file:
            found = file[path]
            values = np.asarray(found[()])
            if values.dtype.kind == "V" and values.dtype.itemsize == 2:
                return (values.view("<u2").astype("u4") << 16).view("f4")
            return values.astype(values.dtype.newbyteorder("="))
    return None


def same(ours: np.ndarray[Any, Any], theirs: Any) -> bool:
    """Equal to the last bit."""
    return (
        theirs is not None
        and ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and ours.tobytes() == theirs.tobytes()
    )


@dataclass(frozen=True)
class Taken:
    """A mutant that was read: what was read, the files, the undamaged values, where it is from."""

    read: Sequence[tuple[str, np.ndarray[Any, Any]]]
    files: Mapping[str, bytes]
    undamaged: Mapping[str, np.ndarray[Any, Any]]
    label: Mapping[str, Any]


LOST = "h5py lost the seed's values, k2t has them"
CRASHED = "h5py crashed or hung"


def compare(taken: Sequence[Taken], tally: Tally) -> None:
    """Compare with h5py in a child; where a mutant ends the child, another one takes the rest."""
    start = 0
    while start < len(taken):
        start += _compare_some(taken[start:], tally)


def _compare_some(taken: Sequence[Taken], tally: Tally) -> int:
    """Return the number of mutants done, including the one that ended the child."""

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for one in taken:
            spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
            resource.setrlimit(resource.RLIMIT_CPU, (spent + ORACLE_SECONDS, -1))
            for verdict, path in _verdicts(one):
                print(verdict, path, sep="\t")
            print("end", flush=True)
        os._exit(0)

    pid, to_child, from_child = fork(work)
    os.close(to_child)
    said = _all_of(from_child, 30.0 + len(taken))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    whole = said.split("end\n")[:-1]
    for one, block in zip(taken, whole, strict=False):
        for line in block.splitlines():
            verdict, _, path = line.partition("\t")
            tally.compared[verdict] += 1
            if verdict == "DIFFERENT":
                tally.findings.append({**one.label, "error": f"differs from h5py: {path}"})
    if len(whole) == len(taken):
        return len(taken)
    tally.compared[CRASHED] += 1
    return len(whole) + 1


def _verdicts(one: Taken) -> Iterator[tuple[str, str]]:
    try:
        opened = independent(one.files)
    except Exception:
        yield "refused", ""
        return
    for path, values in one.read:
        try:
            theirs = values_of(opened, path)
        except Exception:
            yield "refused", ""
            continue
        if same(values, theirs):
            yield "equal", ""
        elif same(values, one.undamaged.get(path)):
            yield LOST, ""
        else:
            yield "DIFFERENT", path


def _all_of(fd: int, seconds: float) -> str:
    pieces = []
    while select.select([fd], [], [], seconds)[0] and (piece := os.read(fd, 1 << 16)):
        pieces.append(piece)
    os.close(fd)
    return b"".join(pieces).decode()


# ---- architectures ------------------------------------------------------------------------------


class Replayed:
    """The store of a good file, questions remembered, with another text of the architecture."""

    def __init__(self, store: Any) -> None:
        self._store, self.text = store, ""
        self._known: dict[tuple[str, ...], tuple[Any, K2TError | None]] = {}

    def _remembered(self, what: str, *arguments: Any) -> Any:
        key = (what, *map(str, arguments))
        if key not in self._known:
            if len(self._known) > 20_000:
                self._known.clear()
            try:
                self._known[key] = (getattr(self._store, what)(*arguments), None)
            except K2TError as error:
                self._known[key] = (None, error)
        found, refusal = self._known[key]
        if refusal is not None:
            raise refusal
        return found

    def __getattr__(self, what: str) -> Any:
        """As the other methods of ``Store``."""
        return partial(self._remembered, what)

    def members(self, group: str) -> Any:
        """As ``Store.members``."""
        return dict(self._remembered("members", group))

    def attributes(self, group: str, names: Sequence[str]) -> Any:
        """As ``Store.attributes``, but the root's ``model_config``."""
        found = dict(self._remembered("attributes", group, names))
        if group == "/" and "model_config" in found:
            found["model_config"] = self.text
        return found


class Architectures:
    """Good models, opened once, that can be read with another architecture."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._open = open_container
        self._closing = ExitStack()
        self.trees: list[Any] = []
        self.names: list[str] = []
        self._containers: list[Any] = []
        for path in paths:
            container = self._closing.enter_context(self._open(path))
            root = container.store.attributes("/", ["model_config"])
            text = container.config_text or root["model_config"]
            self.trees.append(json.loads(str(text)))
            self.names.append("/".join(path.parts[-2:]))
            container.store = Replayed(container.store)
            self._containers.append(container)

    def close(self) -> None:
        """Close the files."""
        self._closing.close()

    def survey(self, number: int, text: str, cut: Cut = NO_CUT) -> Any:
        """Read model ``number`` as if ``text`` were its architecture, or a part of that."""
        container = self._containers[number]
        container.store.text = text
        if container.config_text is not None:
            container.config_text = text

        class Kept:
            def __enter__(self) -> Any:
                return container

            def __exit__(self, *_: object) -> None:
                pass

        with mock.patch.object(readers, "opened", lambda _path: Kept()):
            spec, problems = readers.read_with_problems("mutant", cut=cut)
        inspection.layer_rows(spec, problems, {})  # as `k2t inspect`
        if problems:
            raise gather(problems)
        assert model_from_json(json.loads(spec.to_json())).generation == spec.generation
        return spec
