"""Answers of an HDF5 child that a file has taken over, mutated from honest answers.

The whole path from the bytes on the pipe to the arrays is run, with a child that is only a script
of lines.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast
from unittest import mock

import h5py
import numpy as np

from fuzz.mutants import as_text, changed_tree
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5 import parser_process
from keras2torch_birnn.readers.hdf5.arrays import Contiguous
from keras2torch_birnn.readers.hdf5.store import HDF5Store

GREETING = '[{"is": "open"}]'


class Scripted:
    """A child that says what it was told to say."""

    returncode = -9

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.stdin = io.BytesIO()
        self.stdout = io.BytesIO(b"\n".join(lines) + b"\n")

    def kill(self) -> None:
        """Nothing runs."""

    def wait(self) -> int:
        """Nothing runs."""
        return self.returncode


class Answers:
    """A file with arrays of every storage, and the honest answers about it."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp())
        path = folder / "m.h5"
        numbers = np.random.default_rng(5)
        with h5py.File(path, "w") as file:
            file["a"] = numbers.random((5, 7), "f4")
            file["b"] = numbers.random((11,), "f4").astype(">f8")
            file.create_dataset("c", data=numbers.random((7, 5)), chunks=(3, 2))
            packed = {"compression": 4, "shuffle": True, "fletcher32": True}
            file.create_dataset("d", data=numbers.random((9, 4), "f4"), chunks=(4, 4), **packed)
            file.create_dataset("e", data=numbers.random((3,)) > 0.5)
            file["f"] = np.float32(3)
            file.create_dataset("g", (0, 3), "f4")
            file.attrs["names"] = ["one", "two"]
            file.attrs["text"] = "{}"
            file.attrs["number"] = 3
            file.create_group("h")
        self._file = path.open("rb", buffering=0)
        self.bytes = path.read_bytes()
        path.unlink()
        folder.rmdir()
        self.window = Window(self._file, 0, len(self.bytes))
        self.paths = list("abcdefg")
        with HDF5Store(self.window) as store:
            ask = store._parser.ask
            self.questions: Mapping[str, list[Any]] = {
                "dataset": ask("dataset", self.paths),
                "attributes": ask("attributes", ["/"], ["names", "text", "number"]),
                "members": ask("members", ["/"]),
                "kind": ask("kind", self.paths),
            }

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def hear(self, random: Random) -> None:
        """Ask one question, get a changed answer, read what is made of it.

        Raises:
            K2TError: the answer is refused, as it should be.
        """
        question = random.choice(("dataset",) * 5 + ("attributes", "members", "kind"))
        replies: list[Any] = [{"is": answer} for answer in self.questions[question]]
        replies = changed_tree(replies, random)
        line = as_text(replies, random).encode("utf-8", "surrogatepass")
        if random.random() < 0.02:
            line = line.replace(b":", b"\xff", 1)
        greeting = as_text(json.loads(GREETING), random) if random.random() < 0.02 else GREETING
        child = cast("subprocess.Popen[bytes]", Scripted([greeting.encode(), line]))
        with mock.patch.object(parser_process, "_start", lambda _window: child):
            store = HDF5Store(self.window)
        try:
            self._use(store, question)
        finally:
            store.close()

    def _use(self, store: HDF5Store, question: str) -> None:
        match question:
            case "attributes":
                store.attributes("/", ["names", "text", "number"])
            case "members":
                store.members("/")
            case "kind":
                store._ask("kind", self.paths)
            case _:
                self._read(store)

    def _read(self, store: HDF5Store) -> None:
        """Read every array that is let through; those in one piece must be the file's bytes."""
        try:
            store.arrays(self.paths)
        except K2TError:
            if not store._arrays:
                raise
        for array in store._arrays.values():
            values = array.read()
            assert values.shape == array.shape
            if isinstance(array.layout, Contiguous) and array.stored_as[1:] == "f4":
                start = array.layout.offset
                raw = np.frombuffer(self.bytes[start : start + values.nbytes], array.stored_as)
                assert raw.astype("f4").tobytes() == values.tobytes()
