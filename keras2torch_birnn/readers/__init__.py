"""Read a Keras model file into a ModelSpec. Never imports torch, h5py or Keras.

The order: recognise and open the container (``containers``), parse the architecture (``config``,
``operations``), infer shapes (``schema``), load the weights (``weights``). See ``steps.read``.

Whatever a file holds, a reader raises a ``K2TError``: ``InvalidModelFileError`` where it is damaged
or no model, ``WeightMismatchError`` where weights and configuration differ. ``Raises:`` stands
where there is more to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource, Source
from keras2torch_birnn.readers.steps import PathLike, find_architecture, read, read_given_config
from keras2torch_birnn.spec import NO_CUT, Cut, ModelSpec


def read_model(
    path: ModelSource | Source,
    *,
    config: PathLike | None = None,
    cut: Cut = NO_CUT,
) -> ModelSpec:
    """Read a Keras model file, or a weights file with ``config`` (the text of ``to_json()``).

    ``path``: of a file or a folder, or a live model of Keras. Layers of a loaded plugin have the
    options and weights that the plugin declares, see ``schema/custom_layers.py``.
    ``cut``: where the model is cut, see
    ``config/cut.py``.

    Raises:
        InvalidModelFileError: broken, hostile, or no model; WeightMismatchError: weights and
            configuration differ; UnsupportedLayerError, UnsupportedOptionError: all that cannot
            be converted.
    """
    with opened(path) as container:
        return read(container, config=config, cut=cut).finish()


def read_with_problems(
    path: ModelSource | Source,
    *,
    config: PathLike | None = None,
    values: bool = True,
    cut: Cut = NO_CUT,
) -> tuple[ModelSpec, list[K2TError]]:
    """Read a model, and return it with all that is not supported; weights only if nothing is.

    ``values``: False for the shapes of the weights alone (see ``load_weights``).

    Raises:
        InvalidModelFileError, WeightMismatchError: as ``read_model``.
    """
    with opened(path) as container:
        reading = read(container, config=config, cut=cut, values=values)
        return reading.spec, reading.problems


def read_architecture(path: PathLike, *, config: PathLike | None = None) -> Mapping[str, Any]:
    """Read the JSON of the model, from the file or from ``config``.

    Raises:
        InvalidModelFileError: there is none, or it is broken.
    """
    given = read_given_config(config)
    with opened(path) as container:
        return find_architecture(container, given).model
