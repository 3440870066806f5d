"""The ``.h5`` and ``.hdf5`` files of Keras: a whole model, or weights alone."""

from __future__ import annotations

from contextlib import ExitStack

from keras2torch_birnn.readers.containers.container import HDF5Container, OpenPath
from keras2torch_birnn.readers.containers.hdf5_store import open_store
from keras2torch_birnn.readers.hdf5.store import find_signature


class HDF5File(HDF5Container):
    """A single HDF5 file."""

    kind = "hdf5"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source holds HDF5 data, behind a user block or not."""
        return source.window is not None and find_signature(source.window) is not None

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> HDF5File:
        """Start the parser's process on the file.

        Raises:
            InvalidModelFileError: damaged.
        """
        return cls(opening.enter_context(open_store(source.opened)))
