"""Containers of Keras models, told apart by their content; a live model is one of them.

To add a format, write a module with a subclass of ``Container`` that has ``recognises`` and
``open``, and add it to ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from keras2torch_birnn.readers.containers.container import Container, Format, Source
from keras2torch_birnn.readers.containers.files import (
    check_folder,
    file_window,
    is_folder,
    with_index,
)
from keras2torch_birnn.readers.containers.live_model import ModelSource, is_path, open_live


@dataclass(frozen=True)
class FormatRow:
    """A format. ``may_be``: the sources for which its class, in ``module``, is asked."""

    name: str
    module: str
    may_be: Callable[[Source], bool]

    def load(self) -> Format:
        """Import the module and return the class."""
        form: Format = getattr(import_module(f"{__name__}.{self.module}"), self.name)
        return form


def _is_file(source: Source) -> bool:
    return source.window is not None


def _is_folder(source: Source) -> bool:
    return source.window is None


def _is_archive(source: Source) -> bool:
    return source.is_zip or source.is_gzip or source.is_tar


# The first format that recognises the content opens it.
FORMATS: tuple[FormatRow, ...] = (
    FormatRow("SavedModel", "saved_model", _is_folder),
    FormatRow("KerasFolder", "keras_folder", _is_folder),
    FormatRow("PackedModel", "packed", _is_archive),
    FormatRow("KerasArchive", "keras_archive", _is_archive),
    FormatRow("HDF5File", "hdf5_file", _is_file),
    FormatRow("ShardedWeights", "shards", _is_file),
    FormatRow("TensorFlowCheckpoint", "tf_checkpoint", lambda _: True),
    FormatRow("TensorFlowJS", "tfjs", _is_file),
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
        for row in FORMATS:
            if row.may_be(source) and (form := row.load()).recognises(source):
                container = form.open(source, opening)
                container.closing = opening.pop_all()
                return container
        from keras2torch_birnn.readers.containers.mistakes import explain_mistake

        raise explain_mistake(source)
