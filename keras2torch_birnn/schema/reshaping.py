"""Layers that give the same values another shape."""

from __future__ import annotations

import math
from collections.abc import Mapping

from keras2torch_birnn.schema.operations.movement import product
from keras2torch_birnn.schema.options import size, sizes
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, known
from keras2torch_birnn.schema.windows import DATA_FORMAT
from keras2torch_birnn.spec import Shape


def _flatten(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (shape[0], product(shape[1:]))


def _reshape(config: Config, shape: Shape | None) -> Shape:
    target: tuple[int, ...] = config["target_shape"]
    batch = shape[0] if shape else None
    total = _flatten(config, shape)
    free = [s for s in target if s == -1]
    fixed = math.prod(s for s in target if s != -1)
    if len(free) > 1:
        raise ShapeError(f"target_shape {list(target)} has more than one -1")
    if total is None or total[1] is None:
        return (batch, *(None if s == -1 else s for s in target))
    if (free and (not fixed or total[1] % fixed)) or (not free and total[1] != fixed):
        raise ShapeError(f"{total[1]} values do not fit target_shape {list(target)}")
    return (batch, *(total[1] // fixed if s == -1 else s for s in target))


def _permute(config: Config, shape: Shape | None) -> Shape | None:
    dims: tuple[int, ...] = config["dims"]
    if sorted(dims) != list(range(1, len(dims) + 1)):
        raise ShapeError(f"dims {list(dims)} is not a permutation of 1 to {len(dims)}")
    shape = known(shape, rank=len(dims) + 1)
    return None if shape is None else (shape[0], *(shape[d] for d in dims))


def _repeat_vector(config: Config, shape: Shape | None) -> Shape | None:
    shape = known(shape, rank=2)
    return None if shape is None else (shape[0], config["n"], shape[1])


LAYERS: Mapping[str, Schema] = {
    "Flatten": Schema({"data_format": DATA_FORMAT}, output=_flatten),
    "Reshape": Schema({"target_shape": sizes(least=-1)}, output=_reshape),
    "Permute": Schema({"dims": sizes()}, output=_permute),
    "RepeatVector": Schema({"n": size()}, output=_repeat_vector),
}
