"""Open the HDF5 data of any container, unless they are a zip archive at the same time."""

from __future__ import annotations

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.containers.zip_archive import ends_as_archive
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.store import HDF5Store, find_signature

_HEAD = 4096


def open_store(window: Window) -> HDF5Store:
    """Start the parser's process on HDF5 data.

    Raises:
        InvalidModelFileError: they are not HDF5, or a zip archive, too.
    """
    if ends_as_archive(window):
        raise two_in_one()
    if find_signature(window) is None:
        from keras2torch_birnn.readers.containers.mistakes import describe

        if found := describe("head", [window.head(_HEAD)]):
            raise InvalidModelFileError(*found)
    return HDF5Store(window)


def two_in_one() -> InvalidModelFileError:
    """Make the error for a file that one program reads as HDF5, another one as a zip archive."""
    return InvalidModelFileError(
        "an HDF5 file and a zip archive in one; programs differ in which they read",
        "save the model again",
    )
