"""Containers of Keras models, told apart by their content; a live model is one of them.

To add a format, write a module with a subclass of ``Container`` that has ``recognises`` and
``open``, and yield both in ``_formats``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from keras2torch_birnn.errors import in_file
from keras2torch_birnn.readers.containers.container import (
    Container,
    ModelSource,
    OpenPath,
    Source,
    source_of,
)
from keras2torch_birnn.readers.input_files import (
    check_folder,
    file_window,
    is_folder,
    with_index,
)

Test: TypeAlias = Callable[[OpenPath], bool]
Open: TypeAlias = Callable[[OpenPath, ExitStack], Container]


def _formats() -> Iterator[tuple[Test, Open]]:
    """Yield how each format is recognised and opened; the first that is recognised counts.

    Those of TensorFlow are imported when the path is none of the others.
    """
    from keras2torch_birnn.readers.containers import keras

    yield keras.KerasFolder.recognises, keras.KerasFolder.open
    yield keras.KerasArchive.recognises, keras.KerasArchive.open
    yield keras.HDF5File.recognises, keras.HDF5File.open

    from keras2torch_birnn.readers.containers import tensorflow

    yield tensorflow.SavedModel.recognises, tensorflow.SavedModel.open
    yield tensorflow.TensorFlowCheckpoint.recognises, tensorflow.TensorFlowCheckpoint.open

    from keras2torch_birnn.readers.containers import tfjs

    yield tfjs.TensorFlowJS.recognises, tfjs.TensorFlowJS.open


@contextmanager
def opened(model: ModelSource | Source) -> Iterator[Container]:
    """Open a model read-only until the ``with`` statement ends; errors in it name the model."""
    source = source_of(model)
    with in_file(source.name), open_container(source) as container:
        yield container


def open_container(model: ModelSource | Source) -> Container:
    """Open a model read-only; use it in a ``with`` statement.

    Raises:
        InvalidModelFileError: no format recognises it, or it is damaged; K2TError: a live model
            that cannot be read, see ``write_live``.
    """
    source = source_of(model)
    if source.path is None:
        container = _open_live(source.model)
    else:
        container = _open_path(source.path)
    container.source = source
    return container


def _open_live(model: object) -> Container:
    """Let a live model be written to a private folder, open it, and remove the folder."""
    from keras2torch_birnn.readers.containers.live_model import write_live

    with ExitStack() as opening:
        folder = TemporaryDirectory(prefix="k2t-", ignore_cleanup_errors=True)
        opening.enter_context(folder)
        container = _open_path(write_live(model, Path(folder.name)))
        # Open files need no names, except on Windows: a process that is killed leaves nothing.
        folder.cleanup()
        opening.push(container.closing)
        container.closing = opening.pop_all()
        return container


def _open_path(path: Path) -> Container:
    path = with_index(path)
    with ExitStack() as opening:
        if folder := is_folder(path):
            check_folder(path)
        place = OpenPath(path, None if folder else file_window(opening, path))
        for recognises, open_source in _formats():
            if recognises(place):
                container = open_source(place, opening)
                container.closing = opening.pop_all()
                return container
        from keras2torch_birnn.readers.containers.mistakes import explain_mistake

        raise explain_mistake(place)
