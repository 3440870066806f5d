"""Damaged files of every container: what is read of them must be what plain h5py reads.

Half of the mutants have damaged bytes, or HDF5 structures that point at each other in other ways.
The others are well-formed: archives, JSON, HDF5 files and files of TensorFlow with right checksums
and odd content. Of what checksums protect, the undamaged values must be read; of TF.js, what its
manifest says.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import signal
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import h5py
import numpy as np

from fuzz import tensorflow
from fuzz.changes import as_text, changed_tree, crossed, damaged, rezipped
from fuzz.forked import fork, install
from fuzz.hdf5 import odd_copy
from fuzz.runs import Mutant, Tally
from fuzz.seeds import Seed, seeds
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.store import StoredArray

_PARSER_SECONDS, _ORACLE_SECONDS = 1, 2
_COMPARED_TOGETHER = 40
LOST = "h5py lost the seed's values, k2t has them"


def changed_file(data: bytes, random: Random, *, well_formed: bool = False) -> bytes:
    """Change a file of any kind; ``well_formed``: nothing that may harm the HDF5 library."""

    def change(content: bytes, random: Random) -> bytes:
        return changed_file(content, random, well_formed=True)

    kind = 1.0 if well_formed else random.random()
    if kind < 0.4:
        return damaged(data, random)
    if data.startswith(b"PK"):
        return rezipped(data, random, change)
    if data[:2] in (b'{"', b"{\n"):
        try:
            tree = json.loads(data)
        except ValueError:  # a member of an archive that was damaged before
            return damaged(data, random)
        text = as_text(changed_tree(tree, random), random)
        return text.encode("utf-8", "surrogatepass")
    if b"\x89HDF" not in data[:1032]:
        return damaged(data, random)
    if kind < 0.55:
        return crossed(data, random)
    return odd_copy(data, random, well_formed=well_formed)


def changed_seed(one: Seed, random: Random, *, well_formed: bool = False) -> dict[str, bytes]:
    """Return all files of a seed, one or more of them changed."""
    if one.tensorflow:
        return tensorflow.changed(one, random)
    victim = random.choice(one.victims)
    changed = changed_file(one.files[victim], random, well_formed=well_formed)
    return {**one.files, victim: changed}


# ---- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """A mutant that was read: the arrays by path, its files, the undamaged values."""

    mutant: Mutant
    read: Sequence[tuple[str, np.ndarray[Any, Any]]]
    files: Mapping[str, bytes]
    undamaged: Mapping[str, np.ndarray[Any, Any]]


@contextmanager
def opened(folder: Path, tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what reads one mutant and compares what it read, or does so later."""
    install(_PARSER_SECONDS)
    everything = [*seeds(), *tensorflow.models()]
    read: list[tuple[str, np.ndarray[Any, Any]]] = []
    original = StoredArray.read

    def remembered(array: StoredArray) -> np.ndarray[Any, Any]:
        values = original(array)
        read.append((array.path, values.copy()))
        return values

    undamaged: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    waiting: list[Taken] = []

    def try_one(mutant: Mutant) -> None:
        one = everything[mutant.number % len(everything)]
        mutant.about["seed file"] = one.name
        files = changed_seed(one, mutant.random)
        path, config = one.write(mutant.folder, files)
        read.clear()
        if mutant.attempt(lambda: read_model(path, config=config)) is None:
            return
        taken = Taken(mutant, list(read), files, undamaged[one.name])
        if one.tensorflow:
            _compare_with_manifest(taken)
        else:
            waiting.append(taken)
        if len(waiting) == _COMPARED_TOGETHER:
            compare(waiting, tally)
            waiting.clear()

    with mock.patch.object(StoredArray, "read", remembered):
        for number, one in enumerate(everything):
            path, config = one.write(folder / f"seed{number}", one.files)
            read.clear()
            read_model(path, config=config)
            assert read, one.name
            undamaged[one.name] = dict(read)
        yield try_one
    compare(waiting, tally)


def _compare_with_manifest(taken: Taken) -> None:
    for name, values in taken.read:
        wanted = taken.undamaged.get(name)
        if "model.json" in taken.files:
            wanted = tensorflow.independent_tfjs(taken.files, name)
            wanted = None if wanted is None else wanted.astype(values.dtype)
        equal = same(values, wanted)
        taken.mutant.tally.compared["equal" if equal else "DIFFERENT"] += 1
        if not equal:
            taken.mutant.find(f"differs: {name}")


def same(ours: np.ndarray[Any, Any], theirs: Any) -> bool:
    """Equal to the last bit."""
    return (
        theirs is not None
        and ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and ours.tobytes() == theirs.tobytes()
    )


# ---- comparing with h5py, in a child ------------------------------------------------------------


def _independent(files: Mapping[str, bytes]) -> list[h5py.File]:
    """Plain h5py on every HDF5 file among ``files`` and inside archives."""
    found = []
    for data in files.values():
        if data.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read("model.weights.h5")
        if not data.startswith(b"{"):
            found.append(h5py.File(io.BytesIO(data), "r"))
    return found


def _values_of(files: Sequence[h5py.File], path: str) -> np.ndarray[Any, Any] | None:
    """Read ``path`` by h5py, in native byte order; bfloat16 as float32."""
    for file in files:
        if path in file:
            values = np.asarray(file[path][()])
            if values.dtype.kind == "V" and values.dtype.itemsize == 2:
                return np.asarray((values.view("<u2").astype("u4") << 16).view("f4"))
            return values.astype(values.dtype.newbyteorder("="))
    return None


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
            resource.setrlimit(resource.RLIMIT_CPU, (spent + _ORACLE_SECONDS, -1))
            for verdict, path in _verdicts(one):
                print(verdict, path, sep="\t")
            print("end", flush=True)
        os._exit(0)

    pid, to_child, from_child = fork(work)
    os.close(to_child)
    pieces = []
    while select.select([from_child], [], [], 30.0 + len(taken))[0]:
        pieces.append(os.read(from_child, 1 << 16))
        if not pieces[-1]:
            break
    os.close(from_child)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    whole = b"".join(pieces).decode().split("end\n")[:-1]
    for one, block in zip(taken, whole, strict=False):
        for line in block.splitlines():
            verdict, _, path = line.partition("\t")
            tally.compared[verdict] += 1
            if verdict == "DIFFERENT":
                one.mutant.find(f"differs from h5py: {path}")
    if len(whole) == len(taken):
        return len(taken)
    tally.compared["h5py crashed or hung"] += 1
    return len(whole) + 1


def _verdicts(one: Taken) -> Iterator[tuple[str, str]]:
    try:
        files = _independent(one.files)
    except Exception:
        yield "refused", ""
        return
    for path, values in one.read:
        try:
            theirs = _values_of(files, path)
        except Exception:
            yield "refused", ""
            continue
        if same(values, theirs):
            yield "equal", ""
        elif same(values, one.undamaged.get(path)):
            yield LOST, ""
        else:
            yield "DIFFERENT", path
