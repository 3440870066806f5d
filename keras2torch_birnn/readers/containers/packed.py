"""A SavedModel, a checkpoint or a TF.js model packed into a ``.zip``, ``.tar`` or ``.tar.gz``.

Nothing is unpacked to a name: members are used where they are in the archive or, compressed, in a
nameless temporary file. There must be exactly one model; what else is packed is not looked at.
"""

from __future__ import annotations

import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO, cast

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, in_place, invalid, printable
from keras2torch_birnn.readers.containers.container import Container, OpenPath, begins_tar
from keras2torch_birnn.readers.containers.files import INDEX, not_a_pointer, read_text
from keras2torch_birnn.readers.containers.keras_archive import OF_TORCH
from keras2torch_birnn.readers.containers.members import check_name
from keras2torch_birnn.readers.containers.saved_model import SavedModel
from keras2torch_birnn.readers.containers.tf_checkpoint import TensorFlowCheckpoint
from keras2torch_birnn.readers.containers.tfjs import MODEL_JSON, TensorFlowJS
from keras2torch_birnn.readers.containers.zip_archive import (
    Budget,
    open_member,
    open_model_archive,
    write_temporary,
)
from keras2torch_birnn.readers.files.window import Window, WindowFile
from keras2torch_birnn.readers.tensorflow.keras_metadata import SAVED_MODEL

_HEADER = 512  # of a member of a tar archive
_HEAD = 4096  # of a compressed one
_PIECE = 1 << 20
_UNPACK = "unpack it and give the model in it"
# What ``tarfile`` raises on damaged archives
_BROKEN = (tarfile.TarError, ValueError, EOFError, OverflowError, IndexError, KeyError)


@dataclass(frozen=True)
class PackedFiles:
    """The files below a folder of an archive."""

    windows: Mapping[str, Window]

    def holds(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        return name in self.windows

    def open(self, name: str) -> Window:
        """Open a file."""
        if name not in self.windows:
            raise invalid("missing in the archive", name)
        with in_place(name):
            return not_a_pointer(self.windows[name])


class PackedModel:
    """An archive with exactly one model that is not a single file."""

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is an archive that may hold such a model."""
        if source.is_zip:
            return _zip_holds_model(source.opened)
        if source.is_gzip:
            return _is_gzip_of_tar(source.opened)
        return source.is_tar

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> Container:
        """Open the one model of the archive."""
        if source.is_zip:
            return _open_zip(source.opened, opening)
        window = source.opened
        if source.is_gzip:
            window = _gunzip(window, opening)
        windows = dict(_tar_members(window))
        root = _find_model(windows)
        if root is None:
            inside = next((n for n in windows if n.endswith((".h5", ".hdf5", ".keras"))), "")
            holds = f" that holds {printable(inside)}" if inside else ""
            raise InvalidModelFileError(f"a tar archive{holds}", "unpack it")
        return _open_model(windows, root)


def _find_model(names: Mapping[str, object]) -> str | None:
    """Return the file that marks the one model; None if there is none.

    Raises:
        InvalidModelFileError: there are several.
    """
    prefixes = {name.rpartition(".data-00000-of-")[0] for name in names}
    saved = [name for name in names if PurePosixPath(name).name == SAVED_MODEL]
    inside = tuple(f"{PurePosixPath(name).parent}/variables/".removeprefix("./") for name in saved)
    found = saved + [
        name
        for name in names
        if name.endswith(INDEX) and not name.startswith(inside)
        if name.removesuffix(INDEX) in prefixes
    ]
    found += [name for name in names if PurePosixPath(name).name == MODEL_JSON]
    if len(found) > 1:
        shown = ", ".join(printable(name) for name in sorted(found)[:3])
        raise InvalidModelFileError(f"an archive of {len(found)} models ({shown})", _UNPACK)
    return found[0] if found else None


def _open_model(windows: Mapping[str, Window], marker: str) -> Container:
    folder, _, name = marker.rpartition("/")
    start = f"{folder}/" if folder else ""
    below = {n.removeprefix(start): w for n, w in windows.items() if n.startswith(start)}
    files = PackedFiles(below)
    container: Container
    if name == SAVED_MODEL:
        container = SavedModel.of_members(files)
    elif name == MODEL_JSON:
        container = TensorFlowJS.of_text(read_text(files.open(name), name), files)
    else:
        container = TensorFlowCheckpoint.of_members(files, name.removesuffix(INDEX))
    container.packed = True
    return container


# ---- zip ---------------------------------------------------------------------------------------


def _zip_holds_model(window: Window) -> bool:
    try:
        with open_model_archive(window) as (_, members):
            names = dict.fromkeys(member.filename for member in members)
    except InvalidModelFileError:  # KerasArchive says what is wrong with it
        return False
    if "config.json" in names or any(name.endswith(OF_TORCH) for name in names):
        return False
    try:
        return _find_model(names) is not None
    except InvalidModelFileError:
        return True


def _open_zip(window: Window, opening: ExitStack) -> Container:
    with open_model_archive(window) as (archive, members):
        found = {one.filename: one for one in members if not one.is_dir()}
        marker = _find_model(found) or ""
        folder = marker[: marker.rfind("/") + 1]
        budget = Budget(limits.max_inflated_bytes(window.size))
        windows: dict[str, Window] = {}
        for name, member in found.items():
            if name.startswith(folder) and "/assets/" not in f"/{name.removeprefix(folder)}":
                _check_member(name)
                windows[name] = open_member(archive, member, budget, window)
                if windows[name].file is not window.file:
                    opening.enter_context(windows[name].file)
    return _open_model(windows, marker)


# ---- tar ---------------------------------------------------------------------------------------


def _gunzip(window: Window, opening: ExitStack) -> Window:
    """Inflate a tar archive into a nameless temporary file.

    Raises:
        InvalidModelFileError: damaged, or too large.
    """
    file = cast(BinaryIO, opening.enter_context(tempfile.TemporaryFile(buffering=0)))
    budget = Budget(limits.max_inflated_bytes(window.size))
    for piece in _inflate(window):
        budget.spend(len(piece), "")
        write_temporary(file, piece, "the archive")
    return Window(file, 0, file.tell())


def _is_gzip_of_tar(window: Window) -> bool:
    """Tell by the first bytes that come out."""
    try:
        return begins_tar(zlib.decompressobj(wbits=31).decompress(window.head(_HEAD), _HEADER))
    except zlib.error:
        return False


def _inflate(window: Window) -> Iterator[bytes]:
    """Yield the content of a gzip file, whose checksum is right at the end; not empty pieces."""
    engine = zlib.decompressobj(wbits=31)
    rest, at = b"", 0
    try:
        while not engine.eof:
            if not rest:
                rest = window.head(_PIECE, at)
                at += len(rest)
                if not rest:
                    raise InvalidModelFileError("truncated gzip data", "was the copy complete?")
            piece = engine.decompress(rest, _PIECE)
            rest = engine.unconsumed_tail
            if piece:
                yield piece
    except zlib.error as error:
        raise invalid(f"damaged gzip data ({printable(error)})") from None


def _tar_members(window: Window) -> Iterator[tuple[str, Window]]:
    """Yield name and content of every ordinary file of a tar archive; links are passed over.

    Raises:
        InvalidModelFileError: damaged, too many members, two of one name.
    """
    seen: set[str] = set()
    for member in _tar_headers(window):
        name = member.name.removeprefix("./")
        if not member.isreg() or member.issparse():
            continue
        _check_member(name)
        if name in seen:
            raise invalid("twice in the archive", printable(name))
        seen.add(name)
        with in_place(printable(name)):
            yield name, window.part(member.offset_data, member.size)


def _tar_headers(window: Window) -> Iterator[tarfile.TarInfo]:
    file = cast(IO[bytes], WindowFile(window, limits.MAX_DIRECTORY_BYTES))
    next_member: Callable[[], tarfile.TarInfo | None] | None = None
    last, count = -1, 0
    while True:
        try:
            if next_member is None:
                next_member = tarfile.open(fileobj=file, mode="r:").next
            member = next_member()
        except _BROKEN as error:
            if count == 0:
                raise InvalidModelFileError("a tar archive", "unpack it") from None
            reason = printable(" ".join(str(error).split()) or type(error).__name__)
            raise invalid(f"a damaged tar archive ({reason})") from None
        if member is None:
            return
        count += 1
        # Some versions of tarfile go back where a size is negative
        if member.offset <= last or member.size < 0 or count > limits.MAX_ARCHIVE_MEMBERS:
            raise invalid("a damaged tar archive, or too many members")
        last = member.offset
        yield member


def _check_member(name: str) -> None:
    with in_place(printable(name)):
        check_name(name)
