"""Read a Keras model file into a ModelSpec. Never imports torch, h5py or Keras.

The order: recognise and open the container (``containers``), parse the architecture (``config``,
``operations``), infer shapes (``schema``), load the weights (``weights``). See ``steps.read``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.source import ModelSource, Source
from keras2torch_birnn.readers.steps import PathLike, find_architecture, read, read_given_config
from keras2torch_birnn.readers.weights.load_weights import How
from keras2torch_birnn.spec import NO_CUT, Cut, ModelSpec


def read_model(
    path: ModelSource | Source,
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
    with opened(path) as container:
        reading = read(container, config=config, masked_steps=masked_steps, cut=cut, weights="read")
        reading.check()
        return reading.spec


def read_with_problems(
    path: ModelSource | Source,
    *,
    config: PathLike | None = None,
    weights: How = "read",
    cut: Cut = NO_CUT,
) -> tuple[ModelSpec, list[K2TError]]:
    """Read a model, and return it with all that is not supported; weights only if nothing is.

    ``weights``: "read", or "shapes" (see ``load_weights``).

    Raises:
        InvalidModelFileError, WeightMismatchError: as ``read_model``.
    """
    with open_model(path, config=config, weights=weights, cut=cut) as found:
        return found


@contextmanager
def open_model(
    path: ModelSource | Source,
    *,
    config: PathLike | None = None,
    masked_steps: str | None = None,
    weights: How = "lazy",
    cut: Cut = NO_CUT,
) -> Iterator[tuple[ModelSpec, list[K2TError]]]:
    """Read a model as ``read_with_problems`` does, and keep the file open for its lazy weights.

    The file must not have changed when it is closed. ``weights``: see ``load_weights``.
    """
    with opened(path) as container:
        reading = read(
            container, config=config, masked_steps=masked_steps, cut=cut, weights=weights
        )
        yield reading.spec, reading.problems


def read_architecture(path: PathLike, *, config: PathLike | None = None) -> Mapping[str, Any]:
    """Read the JSON of the model, from the file or from ``config``.

    Raises:
        InvalidModelFileError: there is none, or it is broken.
    """
    given = read_given_config(config)
    with opened(path) as container:
        return find_architecture(container, given).model
