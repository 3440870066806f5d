"""Containers of Keras models, told apart by their content.

To add a format, write a module with a subclass of ``Container`` that has ``recognises`` and
``open``, and add it to ``FORMATS``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from keras2torch_birnn.readers.containers.container import Container, Format, Source
from keras2torch_birnn.readers.containers.files import file_window, is_folder
from keras2torch_birnn.readers.containers.hdf5_file import HDF5File
from keras2torch_birnn.readers.containers.keras_archive import KerasArchive
from keras2torch_birnn.readers.containers.keras_folder import KerasFolder
from keras2torch_birnn.readers.containers.mistakes import explain_mistake
from keras2torch_birnn.readers.containers.packed import PackedModel
from keras2torch_birnn.readers.containers.saved_model import SavedModel
from keras2torch_birnn.readers.containers.shards import ShardedWeights
from keras2torch_birnn.readers.containers.tf_checkpoint import TensorFlowCheckpoint, with_index
from keras2torch_birnn.readers.containers.tfjs import TensorFlowJS

# The first format that recognises the content opens it.
FORMATS: tuple[Format, ...] = (
    SavedModel,
    KerasFolder,
    PackedModel,
    KerasArchive,
    HDF5File,
    ShardedWeights,
    TensorFlowCheckpoint,
    TensorFlowJS,
)


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open the model at ``path``, a file or a folder, read-only; use it in a ``with`` statement.

    Raises:
        InvalidModelFileError: no format recognises it, or it is damaged.
    """
    path = with_index(Path(path))
    with ExitStack() as opening:
        source = Source(path, None if is_folder(path) else file_window(opening, path))
        for form in FORMATS:
            if form.recognises(source):
                container = form.open(source, opening)
                container.closing = opening.pop_all()
                return container
        raise explain_mistake(source)
