"""The ``.h5`` and ``.hdf5`` files of Keras: a whole model, or weights alone."""

from __future__ import annotations

from contextlib import ExitStack

from keras2torch_birnn.readers.containers.container import HDF5Container, Source
from keras2torch_birnn.readers.containers.keras_archive import ends_as_archive
from keras2torch_birnn.readers.containers.mistakes import two_in_one
from keras2torch_birnn.readers.hdf5 import HDF5Store, find_signature


class HDF5File(HDF5Container):
    """A single HDF5 file."""

    kind = "hdf5"

    @staticmethod
    def recognises(source: Source) -> bool:
        """Tell whether the source holds HDF5 data, behind a user block or not."""
        return source.window is not None and find_signature(source.window) is not None

    @classmethod
    def open(cls, source: Source, opening: ExitStack) -> HDF5File:
        """Start the parser's process on the file.

        Raises:
            InvalidModelFileError: the file is a zip archive, too.
        """
        if ends_as_archive(source.opened):
            raise two_in_one()
        return cls(opening.enter_context(HDF5Store(source.opened)))
