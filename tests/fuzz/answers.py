"""Answers of an HDF5 child that a file has taken over, mutated from honest answers.

The whole path from the bytes on the pipe to the arrays is run, with a child that says what it is
told to say.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, cast
from unittest import mock

import h5py
import numpy as np
from parsing_here import _Replies

from fuzz.changes import as_text, changed_tree, damaged
from fuzz.runs import Mutant, Tally
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.limits import max_inflated_bytes
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process
from keras2torch_birnn.readers.hdf5.store import HDF5Store
from keras2torch_birnn.readers.input_files import Window

PATHS = list("abcdefg")
ATTRIBUTES = ["names", "text", "number"]


class Lying(io.BytesIO):
    """Pipe for requests; each is answered honestly, then the answer is changed."""

    def __init__(self, index: parser_child.Index, random: Random, said: _Replies) -> None:
        super().__init__()
        self._index, self._random, self._said = index, random, said

    def write(self, line: Any) -> int:
        """Answer a request."""
        honest, random = io.BytesIO(), self._random
        parser_child.respond(self._index, bytes(line), parser_process._LIMITS, honest)
        answer = honest.getvalue()
        if json.loads(line)["ask"] == "values":
            if random.random() < 0.3:
                answer = damaged(answer, random)
        elif random.random() < 0.8:
            tree = changed_tree(json.loads(answer), random)
            answer = as_text(tree, random).encode("utf-8", "surrogatepass") + b"\n"
            if random.random() < 0.02:
                answer = answer.replace(b":", b"\xff", 1)
        with self._said.filling():
            self._said.write(answer)
        return len(line)


class Child:
    """A child that lies."""

    returncode = -9

    def __init__(self, index: parser_child.Index, random: Random) -> None:
        self.stdout = _Replies()
        self.stdin = Lying(index, random, self.stdout)

    def kill(self) -> None:
        """Nothing runs."""

    def wait(self) -> int:
        """Nothing runs."""
        return self.returncode


@contextmanager
def opened(_folder: Path, _tally: Tally) -> Iterator[Callable[[Mutant], None]]:
    """Yield what asks one question and hears a changed answer."""
    talk = Answers()
    yield lambda mutant: mutant.attempt(lambda: talk.hear(mutant.random))
    talk.close()


class Answers:
    """A file with arrays of every storage, and the honest answers about it."""

    def __init__(self) -> None:
        numbers = np.random.default_rng(5)
        self._file = tempfile.TemporaryFile(buffering=0)
        with h5py.File(self._file, "w") as file:
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
        size = self._file.seek(0, io.SEEK_END)
        self.window = Window(cast("BinaryIO", self._file), 0, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def hear(self, random: Random) -> None:
        """Ask one question, get a changed answer, read what is made of it.

        Raises:
            K2TError: the answer is refused, as it should be.
        """
        source = parser_child.InheritedFile(self._file.fileno(), 0, self.window.size)
        index = parser_child.Index(h5py, source, parser_process._LIMITS)
        child = cast("subprocess.Popen[bytes]", Child(index, random))
        with mock.patch.object(parser_process, "_start", lambda _window: child):
            store = HDF5Store(self.window)
        try:
            self._use(store, random.choice(("arrays",) * 5 + ("attributes", "members", "kind")))
        finally:
            store.close()
            index.file.close()

    def _use(self, store: HDF5Store, question: str) -> None:
        match question:
            case "attributes":
                store.attributes("/", ATTRIBUTES)
            case "members":
                store.members("/")
            case "kind":
                store._ask("kind", PATHS)
            case _:
                self._read(store)

    def _read(self, store: HDF5Store) -> None:
        """Read every array that is let through: together they are never larger than allowed."""
        try:
            store.arrays(PATHS)
        except K2TError:
            if not store._arrays:
                raise
        arrays = store._arrays.values()
        allowed = self.window.size + max_inflated_bytes(self.window.size)
        assert sum(array.stored_bytes for array in arrays) <= allowed
        for array in arrays:
            assert array.read().shape == array.shape
