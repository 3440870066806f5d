"""Layers that act in training only, and Identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.options import REQUIRED, BadOptionError, Option, flag, number, size
from keras2torch_birnn.schema.row import Schema
from keras2torch_birnn.schema.windows import DATA_FORMAT


def _noise_shape(value: Any) -> tuple[int | None, ...] | None:
    """Parse the shape of the noise, None for the input's own sizes."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadOptionError("a list of whole numbers and null is expected")
    return tuple(None if part is None else size().parse(part) for part in value)


_DROPOUT: Mapping[str, Option] = {"rate": number(REQUIRED, 0.0, 1.0)}
_NOISE: Mapping[str, Option] = {"noise_shape": Option(None, _noise_shape)}

LAYERS: Mapping[str, Schema] = {
    "Dropout": Schema({**_DROPOUT, **_NOISE}, renamed={"p": "rate"}),
    # they derive their own noise_shape
    "SpatialDropout1D": Schema(_DROPOUT, ignored=("noise_shape",)),
    "SpatialDropout2D": Schema({**_DROPOUT, "data_format": DATA_FORMAT}, ignored=("noise_shape",)),
    "SpatialDropout3D": Schema({**_DROPOUT, "data_format": DATA_FORMAT}, ignored=("noise_shape",)),
    "Identity": Schema(semantics={"passes_mask": flag()}),
    "GaussianNoise": Schema({"stddev": number(REQUIRED, 0.0)}),
    "GaussianDropout": Schema(_DROPOUT),
    "AlphaDropout": Schema({**_DROPOUT, **_NOISE}),
    "ActivityRegularization": Schema({"l1": number(0.0), "l2": number(0.0)}),
}
