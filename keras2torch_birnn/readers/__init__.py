"""Read a Keras model file into a ModelSpec. Never imports torch, h5py or Keras.

The order: recognise and open the container (``containers``), parse the architecture (``config``,
``operations``), infer shapes (``schema``), load the weights (``weights``). See ``open_model``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, in_file
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.live_model import (
    ModelSource,
    is_path,
    name_source,
    read_live_arrays,
)
from keras2torch_birnn.readers.steps import (
    PathLike,
    find_architecture,
    infer_shapes,
    parse,
    read_given_config,
    read_vocabularies,
    read_weights,
)
from keras2torch_birnn.readers.weights.load_weights import How
from keras2torch_birnn.spec import NO_CUT, Array, Cut, ModelSpec


def read_model(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    cut: Cut = NO_CUT,
) -> ModelSpec:
    """Read a Keras model file, or a weights file with ``config`` (the text of ``to_json()``).

    ``path``: of a file or a folder, or a live model of Keras. Layers of a loaded plugin have the
    options and weights that the plugin declares, see ``schema/custom_layers.py``.
    ``masked_steps``: see ``weights/masked_steps.py``. ``cut``: where the model is cut, see
    ``config/cut.py``.

    Raises:
        InvalidModelFileError: broken, hostile, or no model; WeightMismatchError: weights and
            configuration differ; UnsupportedLayerError, UnsupportedOptionError: all that cannot
            be converted.
    """
    spec, problems = read_with_problems(path, config=config, masked_steps=masked_steps, cut=cut)
    if problems:
        with in_file(name_source(path)):
            raise gather(problems)
    return spec


def read_with_problems(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "read",
    cut: Cut = NO_CUT,
) -> tuple[ModelSpec, list[K2TError]]:
    """Read a model, and return it with all that is not supported; weights only if nothing is.

    ``weights``: "read", or "shapes" (see ``load_weights``).

    Raises:
        InvalidModelFileError, WeightMismatchError: as ``read_model``.
    """
    with open_model(
        path, config=config, masked_steps=masked_steps, weights=weights, cut=cut
    ) as found:
        return found


@contextmanager
def open_model(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "lazy",
    cut: Cut = NO_CUT,
) -> Iterator[tuple[ModelSpec, list[K2TError]]]:
    """Read a model as ``read_with_problems`` does, and keep the file open for its lazy weights.

    The file must not have changed when it is closed. ``weights``: see ``load_weights``.
    """
    with in_file(name_source(path)), open_container(path) as container:
        reading = parse(container, path, config=config, masked_steps=masked_steps, cut=cut)
        reading = infer_shapes(reading)
        reading = read_weights(reading, weights)
        reading = read_vocabularies(reading)
        yield reading.spec, reading.problems


def read_arrays(path: ModelSource) -> dict[str, Array]:
    """Read all weights of a model by name, whatever its architecture is; see ``k2t.weights``.

    Raises:
        InvalidModelFileError: broken, hostile, or no model.
    """
    with in_file(name_source(path)):
        found = _read_stored_arrays(path) if is_path(path) else read_live_arrays(path)
        if not found:
            raise InvalidModelFileError("holds no weights", "give a file with weights")
        return found


def _read_stored_arrays(path: ModelSource) -> dict[str, Array]:
    with open_container(path) as container:
        names = container.weight_names()
        arrays = container.store.arrays(list(names.values()))
        return {name: array.read() for name, array in zip(names, arrays, strict=True)}


def read_architecture(path: ModelSource, *, config: PathLike | None = None) -> Mapping[str, Any]:
    """Read the JSON of the model, from the file or from ``config``.

    Raises:
        InvalidModelFileError: there is none, or it is broken.
    """
    given = read_given_config(config)
    with in_file(name_source(path)), open_container(path) as container:
        return find_architecture(container, path, given).model
