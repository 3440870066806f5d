"""Open a model file, whatever it is: the one door through which the readers see the input.

``open_container`` decides by content, starts the HDF5 parser's process (in parallel with whatever
the caller does next) and hands out texts and arrays; see ``hdf5.py`` and ``archive.py``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.archive import WEIGHTS, read_archive
from keras2torch_birnn.readers.hdf5 import HDF5Store
from keras2torch_birnn.readers.sniff import ContainerKind, refuse_folder, sniff
from keras2torch_birnn.readers.window import Window

_OTHER_FILES = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Container:
    """An open model file. Arrays can be read until it is closed.

    ``config_text`` and ``metadata_text`` are those of a ``.keras`` archive; for HDF5 they are None
    (the texts are attributes there).
    """

    def __init__(
        self,
        kind: ContainerKind,
        store: HDF5Store,
        config_text: str | None,
        metadata_text: str | None,
        closing: ExitStack,
    ) -> None:
        self.kind, self.store = kind, store
        self.config_text, self.metadata_text = config_text, metadata_text
        self._closing = closing

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def close(self) -> None:
        """End reading; an error if the file has changed since it was opened."""
        self._closing.close()


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open the model file at ``path``, read-only; use it in a ``with`` statement."""
    with ExitStack() as opening:
        file = opening.enter_context(_open(Path(path)))
        opening.enter_context(_unchanged(file))
        window = Window(file, 0, os.fstat(file.fileno()).st_size)
        kind = sniff(window)
        config = metadata = None
        if kind == "keras_zip":
            archive = read_archive(window)
            config, metadata, window = archive.config_text, archive.metadata_text, archive.weights
            if window.file is not file:
                opening.enter_context(window.file)
        store = opening.enter_context(_store(window, WEIGHTS if kind == "keras_zip" else ""))
        return Container(kind, store, config, metadata, opening.pop_all())


def _store(window: Window, place: str) -> HDF5Store:
    try:
        return HDF5Store(window)
    except InvalidModelFileError as error:
        error.place = error.place or place
        raise


def _open(path: Path) -> BinaryIO:
    try:
        _check_file(path, path.stat())
        # A pipe that takes the file's place right now must not block us
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidModelFileError(f"cannot be opened ({reason})") from None
    try:
        _check_file(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def _check_file(path: Path, facts: os.stat_result) -> None:
    if stat.S_ISREG(facts.st_mode):
        return
    if stat.S_ISDIR(facts.st_mode):
        raise refuse_folder(path)
    what = next((name for test, name in _OTHER_FILES if test(facts.st_mode)), "no ordinary file")
    raise InvalidModelFileError(what, "the input must be a file")


@contextmanager
def _unchanged(file: BinaryIO) -> Iterator[None]:
    """Raise at the end, if all else went well, when the file has changed meanwhile."""
    before = _state(file)
    yield
    if _state(file) != before:
        raise InvalidModelFileError(
            "the file changed while it was read", "run again when it is complete"
        )


def _state(file: BinaryIO) -> tuple[int, int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
