"""Containers of Keras models, told apart by their content; a live model is one of them.

To add a format, write a module with a subclass of ``Container`` that has ``recognises`` and
``open``, and add it to ``FORMATS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from keras2torch_birnn.errors import in_file
from keras2torch_birnn.readers.containers.container import (
    Container,
    Format,
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


@dataclass(frozen=True)
class FormatRow:
    """A format. ``may_be``: the sources for which its class, in ``module``, is asked."""

    name: str
    module: str
    may_be: Callable[[OpenPath], bool]

    def load(self) -> Format:
        """Import the module and return the class."""
        form: Format = getattr(import_module(f"{__name__}.{self.module}"), self.name)
        return form


def _is_file(source: OpenPath) -> bool:
    return source.window is not None


def _is_folder(source: OpenPath) -> bool:
    return source.window is None


# The first format that recognises the content opens it.
FORMATS: tuple[FormatRow, ...] = (
    FormatRow("SavedModel", "tensorflow", _is_folder),
    FormatRow("KerasFolder", "keras", _is_folder),
    FormatRow("KerasArchive", "keras", _is_file),
    FormatRow("HDF5File", "keras", _is_file),
    FormatRow("TensorFlowCheckpoint", "tensorflow", lambda _: True),
    FormatRow("TensorFlowJS", "tfjs", _is_file),
)


@contextmanager
def opened(model: ModelSource | Source) -> Iterator[Container]:
    """Open a model read-only until the ``with`` statement ends; errors in it name the model.

    Raises:
        K2TError: as ``open_container``.
    """
    source = source_of(model)
    with in_file(source.name), open_container(source) as container:
        yield container


def open_container(model: ModelSource | Source) -> Container:
    """Open a model read-only; use it in a ``with`` statement.

    Raises:
        InvalidModelFileError: no format recognises it, or it is damaged; K2TError: a live model
            that cannot be read, see ``open_live``.
    """
    source = source_of(model)
    if source.path is None:
        from keras2torch_birnn.readers.containers.live_model import open_live

        container = open_live(source.model)
    else:
        container = _open_path(source.path)
    container.source = source
    return container


def _open_path(path: Path) -> Container:
    path = with_index(path)
    with ExitStack() as opening:
        if folder := is_folder(path):
            check_folder(path)
        place = OpenPath(path, None if folder else file_window(opening, path))
        for form in (row.load() for row in FORMATS if row.may_be(place)):
            if form.recognises(place):
                container = form.open(place, opening)
                container.closing = opening.pop_all()
                return container
        from keras2torch_birnn.readers.containers.mistakes import explain_mistake

        raise explain_mistake(place)
