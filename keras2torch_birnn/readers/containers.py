"""Open a model file, whatever it is: the one door through which the readers see the input.

``open_container`` decides by content, starts the HDF5 parser's process (in parallel with whatever
the caller does next) and hands out texts and arrays; see ``hdf5.py`` and ``archive.py``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.archive import (
    CONFIG,
    METADATA,
    WEIGHTS,
    ends_as_archive,
    read_archive,
)
from keras2torch_birnn.readers.hdf5 import HDF5Store, find_signature
from keras2torch_birnn.readers.limits import JSON_BYTES
from keras2torch_birnn.readers.shards import ShardedStore, Store, parse_index
from keras2torch_birnn.readers.sniff import ContainerKind, refuse_folder, sniff, two_in_one
from keras2torch_birnn.readers.strict_json import decode_text
from keras2torch_birnn.readers.window import Window

SHARD_INDEX = "model.weights.json"

_OTHER_FILES = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Container:
    """An open model file. Arrays can be read until it is closed.

    ``config_text`` and ``metadata_text`` are those of a ``.keras`` archive or folder; for HDF5 they
    are None (the texts are attributes there), and so for shards (they have none). ``vocabularies``:
    those of an archive, see ``archive.py``.
    """

    def __init__(
        self,
        kind: ContainerKind,
        store: Store,
        config_text: str | None,
        metadata_text: str | None,
        closing: ExitStack,
        vocabularies: Mapping[str, str] = {},
    ) -> None:
        self.kind, self.store, self.vocabularies = kind, store, vocabularies
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
    """Open the model file at ``path``, read-only; use it in a ``with`` statement.

    ``path`` may also be a folder with the members of a ``.keras`` file, or the index of shards.
    """
    path = Path(path)
    with ExitStack() as opening:
        config = metadata = None
        vocabularies: Mapping[str, str] = {}
        if _is_folder(path):
            if (path / "saved_model.pb").exists() or not (path / CONFIG).exists():
                raise refuse_folder(path)
            config, metadata = (_member_text(opening, path, n) for n in (CONFIG, METADATA))
            members = _folder_store(opening, path)
            return Container("folder", members, config, metadata, opening.pop_all())
        window = _window(opening, path)
        file, kind = window.file, sniff(window)
        if kind == "shards":
            text = _text(window, "")
            shards = _shards(opening, path.parent, text, "")
            return Container(kind, shards, None, None, opening.pop_all())
        if kind == "keras_zip":
            archive = read_archive(window)
            _check_one_reading(window, archive.weights)
            config, metadata, window = archive.config_text, archive.metadata_text, archive.weights
            vocabularies = archive.vocabularies
            if window.file is not file:
                opening.enter_context(window.file)
        with _in_member(WEIGHTS if kind == "keras_zip" else ""):
            store = opening.enter_context(_store(window))
        return Container(kind, store, config, metadata, opening.pop_all(), vocabularies)


def _check_one_reading(window: Window, weights: Window) -> None:
    """Refuse an archive that HDF5 can read, too, unless what it reads are the archive's weights."""
    start = find_signature(window)
    if start is not None and (weights.file, weights.offset) != (window.file, start):
        raise two_in_one()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # an impossible name: opening it will say so
        return False


def _window(opening: ExitStack, path: Path, *, member: bool = False) -> Window:
    file = opening.enter_context(open_file(path, member=member))
    opening.enter_context(_unchanged(file))
    return Window(file, 0, os.fstat(file.fileno()).st_size)


def _text(window: Window, place: str) -> str:
    if window.size > JSON_BYTES:
        raise InvalidModelFileError(f"longer than {JSON_BYTES} bytes", "refused", place=place)
    return decode_text(window.read(window.size), place=place)


@contextmanager
def _in_member(name: str) -> Iterator[None]:
    """Add the member's name to an error that has no place yet."""
    try:
        yield
    except InvalidModelFileError as error:
        error.place = error.place or name
        raise


def _member_text(opening: ExitStack, folder: Path, name: str) -> str:
    with _in_member(name):
        return _text(_window(opening, folder / name, member=True), name)


def _folder_store(opening: ExitStack, folder: Path) -> Store:
    if (folder / SHARD_INDEX).exists() and not (folder / WEIGHTS).exists():
        return _shards(opening, folder, _member_text(opening, folder, SHARD_INDEX), SHARD_INDEX)
    with _in_member(WEIGHTS):
        window = _window(opening, folder / WEIGHTS, member=True)
        return opening.enter_context(_store(window))


def _shards(opening: ExitStack, folder: Path, text: str, place: str) -> Store:
    files = parse_index(text, place)
    stores: dict[str, Store] = {}
    for name in dict.fromkeys(name for names in files.values() for name in names):
        with _in_member(name):
            window = _window(opening, folder / name, member=True)
            stores[name] = opening.enter_context(_store(window))
    return ShardedStore(stores, files)


def _store(window: Window) -> HDF5Store:
    """The arrays of an HDF5 file, or of one in an archive; refused if it is a zip, too."""
    if ends_as_archive(window):
        raise two_in_one()
    return HDF5Store(window)


def open_file(path: Path, *, member: bool = False) -> BinaryIO:
    """Open an ordinary file; a member of a folder is one itself, not a link to one elsewhere.

    Raises:
        InvalidModelFileError: a pipe, a device, a folder, or it cannot be opened.
    """
    try:
        _check_file(path, path.lstat() if member else path.stat())
        # A pipe that takes the file's place right now must not block us
        more = getattr(os, "O_NONBLOCK", 0) | (getattr(os, "O_NOFOLLOW", 0) if member else 0)
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | more))
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
