"""Dense and EinsumDense."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import einsum
from keras2torch_birnn.schema.options import REQUIRED, Option, activation, flag, size
from keras2torch_birnn.schema.row import Config, Schema, WeightShapes, known, last
from keras2torch_birnn.spec import Shape


def _dense_weights(config: Config, shape: Shape | None) -> WeightShapes:
    known(shape)
    units: Shape = (config["units"],)
    names = (
        ("kernel", (last(shape), *units), True),
        ("bias", units, config["use_bias"]),
    )
    return {name: size_ for name, size_, there in names if there}


def _dense_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape[:-1], config["units"])


LAYERS: Mapping[str, Schema] = {
    "Dense": Schema(
        {
            "units": size(),
            "activation": activation(),
            "use_bias": flag(True),
        },
        _dense_weights,
        _dense_output,
    ),
    "EinsumDense": Schema(
        {
            "equation": Option(REQUIRED, einsum.equation),
            "output_shape": Option(REQUIRED, einsum.output_shape),
            "activation": activation(),
            "bias_axes": Option(None, einsum.bias_axes),
        },
        einsum.weights,
        einsum.output,
    ),
}
