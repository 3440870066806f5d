"""Read a Keras model file into a ModelSpec. Never imports torch, h5py or Keras.

The order is: recognise and open the container, parse the architecture, infer shapes, load weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, in_file
from keras2torch_birnn.limits import MAX_JSON_BYTES
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.backends import check_backend
from keras2torch_birnn.readers.config.custom_layers import check_names
from keras2torch_birnn.readers.config.generations import consequences, generation_of
from keras2torch_birnn.readers.config.number_kinds import check_kinds
from keras2torch_birnn.readers.config.penalties import penalty_note
from keras2torch_birnn.readers.config.unrolled import check_calls
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.files import open_file
from keras2torch_birnn.readers.files.strict_json import decode_text, parse_object
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.weights.load_weights import How, load_weights
from keras2torch_birnn.readers.weights.masked_steps import choice_of
from keras2torch_birnn.readers.weights.vocabularies import with_vocabularies
from keras2torch_birnn.schema.shape_inference import check_layer_sizes, infer_model
from keras2torch_birnn.spec import LayerSpec, MaskedSteps, ModelSpec

PathLike = str | os.PathLike[str]


def read_model(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
) -> ModelSpec:
    """Read a Keras model file, or a weights file with ``config`` (the text of ``to_json()``).

    Layers that a loaded plugin takes come with the options and weights that it names, see
    ``schema/custom_layers.py``. ``masked_steps``: see ``weights/masked_steps.py``.

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


@dataclass(frozen=True)
class Reading:
    """A model on its way from the container to a ``ModelSpec``; each step returns a new one."""

    container: Container
    parsing: Parsing
    root: LayerSpec
    notes: tuple[str, ...]
    masked_steps: MaskedSteps | None

    @property
    def problems(self) -> list[K2TError]:
        """What is not supported, of all steps so far."""
        return self.parsing.problems

    @property
    def spec(self) -> ModelSpec:
        """The model as read so far."""
        return ModelSpec(self.root, self.parsing.generation, self.notes, self.masked_steps)


@contextmanager
def opened(
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "deferred",
) -> Iterator[tuple[ModelSpec, list[K2TError]]]:
    """Read a model as ``survey`` does and keep the file open: weights may still be in it.

    The file must not have changed when it is closed. ``weights``: as ``read_weights`` takes it.
    """
    with in_file(path), open_container(path) as container:
        reading = parse(container, path, config=config, masked_steps=masked_steps)
        reading = infer_shapes(reading)
        reading = read_weights(reading, weights)
        yield reading.spec, reading.problems


def parse(
    container: Container,
    path: PathLike,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
) -> Reading:
    """Find the architecture and parse its layers by the rules of the Keras that wrote it.

    path: the name that the user gave. config: an architecture in a file of its own.

    Raises:
        InvalidModelFileError: there is no architecture, or it is broken; UsageError: a choice of
            ``masked_steps`` that this Keras does not have.
    """
    architecture = container.architecture(None if config is None else _read_json(config))
    parsing = Parsing(generation_of(architecture.version))
    choice = choice_of(masked_steps, parsing.generation)
    root = parse_architecture(architecture.model, parsing)
    check_names(root, parsing.problems)
    check_calls(root)
    problems, backend_notes = check_backend(architecture.backend, parsing.generation, root)
    parsing.problems += problems
    notes = (
        consequences(parsing.generation, architecture.writer),
        *parsing.notes,
        *backend_notes,
        *penalty_note(parsing.penalties),
        *_misnamed(path, container),
    )
    return Reading(container, parsing, root, notes, choice)


def infer_shapes(reading: Reading) -> Reading:
    """Infer the shapes of every layer, unless something is not supported.

    Raises:
        InvalidModelFileError: a layer that is larger than any memory.
    """
    root, parsing = reading.root, reading.parsing
    if not parsing.problems:
        check_kinds(root, parsing.generation, parsing.problems)
        root = with_vocabularies(root, reading.container, parsing.generation, parsing.problems)
    if not parsing.problems:
        root = infer_model(root, parsing.problems)
        check_layer_sizes(root)
    return replace(reading, root=root)


def read_weights(reading: Reading, how: How) -> Reading:
    """Locate, check and read the weights, unless something is not supported.

    how: as ``load_weights`` takes it.

    Raises:
        WeightMismatchError: the weights and the configuration do not fit each other.
    """
    if reading.problems:
        return reading
    root, notes = load_weights(
        reading.root, reading.container, reading.parsing, reading.masked_steps, how
    )
    return replace(reading, root=root, notes=(*reading.notes, *notes))


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
        if size > MAX_JSON_BYTES:
            raise InvalidModelFileError(f"more than {MAX_JSON_BYTES} bytes of JSON", "refused")
        text = decode_text(Window(file, 0, size).read(size), place="")
        return parse_object(text, place="", needed=["class_name", "config"])
