"""Containers of Keras models, told apart by their content; a live model is one of them.

To add a format, write a module with a subclass of ``Container`` that has ``recognises`` and
``open``, and add it to ``FORMATS``.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from keras2torch_birnn.readers.containers.container import Container, Format, Source
from keras2torch_birnn.readers.containers.files import check_folder, file_window, is_folder
from keras2torch_birnn.readers.containers.hdf5_file import HDF5File
from keras2torch_birnn.readers.containers.keras_archive import KerasArchive
from keras2torch_birnn.readers.containers.keras_folder import KerasFolder
from keras2torch_birnn.readers.containers.live_model import ModelSource, is_path, open_live
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


def open_container(model: ModelSource) -> Container:
    """Open a model read-only; use it in a ``with`` statement.

    model: the path of a file or a folder, or a live model of Keras.

    Raises:
        InvalidModelFileError: no format recognises it, or it is damaged; K2TError: a live model
            that cannot be read, see ``open_live``.
    """
    if not is_path(model):
        return open_live(model)
    path = with_index(Path(model))
    with ExitStack() as opening:
        if folder := is_folder(path):
            check_folder(path)
        source = Source(path, None if folder else file_window(opening, path))
        for form in FORMATS:
            if form.recognises(source):
                container = form.open(source, opening)
                container.closing = opening.pop_all()
                return container
        raise explain_mistake(source)
