"""Read a Keras model file into a ModelSpec. Never imports torch, h5py or Keras.

The order is: recognise and open the container, parse the architecture, infer shapes, load weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, in_file
from keras2torch_birnn.readers.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.backends import check_backend
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.container import Architecture, Container
from keras2torch_birnn.readers.containers.files import open_file
from keras2torch_birnn.readers.generations import consequences, generation_of
from keras2torch_birnn.readers.limits import JSON_BYTES
from keras2torch_birnn.readers.load_weights import How, load_weights
from keras2torch_birnn.readers.masked_steps import choice_of
from keras2torch_birnn.readers.number_kinds import check_kinds
from keras2torch_birnn.readers.own_layers import check_names
from keras2torch_birnn.readers.penalties import penalty_note
from keras2torch_birnn.readers.strict_json import decode_text, parse_object
from keras2torch_birnn.readers.unrolled import check_calls
from keras2torch_birnn.readers.vocabularies import with_vocabularies
from keras2torch_birnn.readers.window import Window
from keras2torch_birnn.shapes import check_sizes, infer_model
from keras2torch_birnn.spec import LayerSpec, ModelSpec

PathLike = str | os.PathLike[str]


def read_model(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
) -> ModelSpec:
    """Read a Keras model file, or a weights file with ``config`` (the text of ``to_json()``).

    Layers that a loaded plugin takes come with the options and weights that it names, see
    ``own.py``. ``masked_steps``: see ``masked_steps.py``.

    Raises:
        InvalidModelFileError: broken, hostile, or no model; WeightMismatchError: weights and
            configuration differ; UnsupportedLayerError, UnsupportedOptionError: all that cannot
            be converted.
    """
    spec, problems = survey(path, config=config, masked_steps=masked_steps)
    if problems:
        with in_file(path):
            raise gather(problems)
    return spec


def survey(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "read",
) -> tuple[ModelSpec, list[K2TError]]:
    """Read a model; return what is not supported, and read the weights only if nothing is.

    ``weights``: "read", or "shapes" (see ``load_weights``).

    Raises:
        InvalidModelFileError, WeightMismatchError: as ``read_model``.
    """
    with opened(path, config=config, masked_steps=masked_steps, weights=weights) as found:
        return found


@contextmanager
def opened(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "deferred",
) -> Iterator[tuple[ModelSpec, list[K2TError]]]:
    """Read a model as ``survey`` does and keep the file open: weights may still be in it.

    The file must not have changed when it is closed. ``weights``: as ``load_weights`` takes it.
    """
    given = None if config is None else _read_json(config)
    with in_file(path), open_container(path) as container:
        architecture = container.architecture(given)
        parsing = Parsing(generation_of(architecture.version))
        choice = choice_of(masked_steps, parsing.generation)
        root = _parse(architecture, parsing)
        notes = [
            consequences(parsing.generation),
            *parsing.notes,
            *penalty_note(parsing.penalties),
            *_misnamed(path, container),
        ]
        root = _infer_shapes(root, container, parsing)
        if not parsing.problems:
            root, more = load_weights(root, container, parsing, choice, weights)
            notes += more
        yield ModelSpec(root, parsing.generation, tuple(notes), choice), parsing.problems


def _parse(architecture: Architecture, parsing: Parsing) -> LayerSpec:
    """Parse the layers; what is not supported goes to ``parsing.problems``."""
    root = parse_architecture(architecture.model, parsing)
    check_names(root, parsing.problems)
    check_calls(root)
    problems, notes = check_backend(architecture.backend, parsing.generation, root)
    parsing.problems += problems
    parsing.notes += notes
    return root


def _infer_shapes(root: LayerSpec, container: Container, parsing: Parsing) -> LayerSpec:
    """Infer every layer's shapes, unless something is not supported."""
    if not parsing.problems:
        check_kinds(root, parsing.generation, parsing.problems)
        root = with_vocabularies(root, container, parsing.generation, parsing.problems)
    if not parsing.problems:
        root = infer_model(root, parsing.problems)
        check_sizes(root)
    return root


def _misnamed(path: PathLike, container: Container) -> list[str]:
    """Make a note where name and content differ. HDF5 files called .keras are not rare:
    TensorFlow 2 wrote them.
    """
    named_hdf5 = Path(path).suffix.lower() in (".h5", ".hdf5")
    return (
        ["the file is a .keras archive by its content"]
        if container.kind == "keras_zip" and named_hdf5
        else []
    )


def read_architecture(path: PathLike, *, config: PathLike | None = None) -> Mapping[str, Any]:
    """Read the JSON of the model, from the file or from ``config``.

    Raises:
        InvalidModelFileError: there is none, or it is broken.
    """
    given = None if config is None else _read_json(config)
    with in_file(path), open_container(path) as container:
        return container.architecture(given).model


def _read_json(path: PathLike) -> Mapping[str, Any]:
    with in_file(path), open_file(Path(path)) as file:
        size = os.fstat(file.fileno()).st_size
        if size > JSON_BYTES:
            raise InvalidModelFileError(f"more than {JSON_BYTES} bytes of JSON", "refused")
        text = decode_text(Window(file, 0, size).read(size), place="")
        return parse_object(text, place="", needed=["class_name", "config"])
