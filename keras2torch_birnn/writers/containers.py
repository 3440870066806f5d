"""Writers of new weights into a private copy of a model, one class for each container."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.keras_archive import WEIGHTS, KerasArchive
from keras2torch_birnn.readers.containers.tensorflow_container import TensorFlowContainer
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.tensorflow.bundle import SummedArray
from keras2torch_birnn.writers.copies import (
    FileCopies,
    copy_bytes,
    copy_file,
    copy_folder,
    copy_members,
)
from keras2torch_birnn.writers.hdf5 import LibraryEdits, apply_edits, keeps_length, put_in_place
from keras2torch_birnn.writers.new_values import Piece
from keras2torch_birnn.writers.optimizer import optimizer_groups
from keras2torch_birnn.writers.tf_checkpoint import update_checksums
from keras2torch_birnn.writers.zip_archive import exchange_member, update_checksum


class Writer(ABC):
    """A writer of new weights; ``target`` is an empty file or folder of our own.

    ``arrays``: all weights of the model. ``drop``: remove the optimizer's state.
    """

    drops_optimizer = True

    def __init__(
        self,
        container: Container,
        source: Path,
        target: Path,
        arrays: Sequence[StoredArray],
        *,
        drop: bool,
    ) -> None:
        self.container, self.source, self.target, self.drop = container, source, target, drop
        self.arrays = arrays
        self.copies = FileCopies(self.place)
        self.changed: dict[str, StoredArray] = {}
        self.edits: dict[Path, LibraryEdits] = {}  # of each copy
        self.closing = ExitStack()
        self.copy()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.copies.close(sync=error[0] is None)
        self.closing.close()

    @abstractmethod
    def copy(self) -> None:
        """Copy the model's files to the target."""

    @abstractmethod
    def place(self, file: BinaryIO) -> tuple[Path, int]:
        """Return the copy of an open source file, and the offset of its positions there."""

    def put(self, piece: Piece) -> None:
        """Write new values of an array, or leave them to the HDF5 library."""
        array = piece.array
        self.changed[array.path] = array
        if not put_in_place(self.copies, piece):
            self.edits_of(array).values[array.path] = array, piece.values.reshape(array.shape)

    def edits_of(self, array: StoredArray) -> LibraryEdits:
        """Return the edits that the HDF5 library has to make in the copy that holds an array."""
        return self.edits.setdefault(self.place(_file(array))[0], LibraryEdits())

    @abstractmethod
    def finish(self) -> None:
        """Bring everything up to date that depends on what was written."""


class _HDF5Writer(Writer):
    """A writer of HDF5 files."""

    def finish(self) -> None:
        """Let the HDF5 library do the rest."""
        if self.drop:
            groups = optimizer_groups(self.container.store)
            if groups and self.arrays:
                self.edits_of(self.arrays[0]).remove += groups
        self.copies.close()
        for path, edits in self.edits.items():
            apply_edits(path, edits)


class HDF5FileWriter(_HDF5Writer):
    """A single HDF5 file."""

    def copy(self) -> None:
        """Copy the file."""
        copy_file(self.source, self.target)

    def place(self, file: BinaryIO) -> tuple[Path, int]:
        """Return the one copy."""
        return self.target, 0


class KerasArchiveWriter(_HDF5Writer):
    """A ``.keras`` file. Its weights are changed in place, if they are stored as they are.

    Else they are changed in a file of their own, which then takes the member's place.
    """

    def copy(self) -> None:
        """Copy the file, and its weights if they cannot be changed in place."""
        copy_file(self.source, self.target)
        self._member: Path | None = None
        self._shift = 0
        if not self.arrays or not isinstance(self.container, KerasArchive):
            return
        window = self.container.weights
        stored = window.file.name == str(self.source)
        if stored and not self.drop and all(map(keeps_length, self.arrays)):
            return
        folder = self.closing.enter_context(tempfile.TemporaryDirectory(prefix=".k2t-"))
        self._member = Path(folder) / "weights"
        copy_bytes(window, self._member)
        self._shift = -window.offset

    def place(self, file: BinaryIO) -> tuple[Path, int]:
        """Return the archive or the file of its member."""
        return (self._member or self.target), self._shift

    def finish(self) -> None:
        """Bring checksums and directory of the archive up to date."""
        super().finish()
        if self._member is not None and (self.edits or self.changed):
            exchange_member(self.target, WEIGHTS, self._member)
        elif self.changed:
            update_checksum(self.target, WEIGHTS)


class _FolderWriter(Writer):
    """A writer of models of several files."""

    def copy(self) -> None:
        """Copy the folder, or the given file and those that belong to it."""
        if self.source.is_dir():
            copy_folder(self.source, self.target)
            self._folder = self.source
        else:
            self._folder = self.source.parent
            copy_members(self._folder, [self.source.name, *self.container.beside], self.target)

    def place(self, file: BinaryIO) -> tuple[Path, int]:
        """Return the copy of the same name."""
        return self.target / Path(file.name).relative_to(self._folder), 0


class HDF5FolderWriter(_FolderWriter, _HDF5Writer):
    """HDF5 files in a folder: a ``.keras`` folder."""


class CheckpointWriter(_FolderWriter):
    """A SavedModel or a checkpoint of TensorFlow: tensors in place, then their checksums.

    A TF.js model: numbers in place, in files without checksums.
    """

    drops_optimizer = False

    def finish(self) -> None:
        """Write the new checksums."""
        if isinstance(self.container, TensorFlowContainer):
            changed = [one for one in self.changed.values() if isinstance(one, SummedArray)]
            update_checksums(self.copies, self.container.bundle, changed)
        self.copies.close()


WRITERS: Mapping[str, type[Writer]] = {
    "hdf5": HDF5FileWriter,
    "keras_zip": KerasArchiveWriter,
    "folder": HDF5FolderWriter,
    "savedmodel": CheckpointWriter,
    "tf_checkpoint": CheckpointWriter,
    "tfjs": CheckpointWriter,
}


def writer_of(container: Container) -> type[Writer]:
    """Return the writer of a container."""
    return WRITERS[container.kind]


def is_one_file(container: Container) -> bool:
    """Tell whether a model is a single file."""
    return container.kind in ("hdf5", "keras_zip")


def _file(array: StoredArray) -> BinaryIO:
    window = array.window
    if not isinstance(window, Window):
        raise TypeError(f"{array.path} is in several files")
    return window.file
