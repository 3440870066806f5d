"""Dense, EinsumDense, and layers of vectors: Highway, MaxoutDense and RandomFourierFeatures."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import einsum
from keras2torch_birnn.schema.options import REQUIRED, Option, activation, choice, flag, size
from keras2torch_birnn.schema.row import Config, Schema, WeightShapes, known, last
from keras2torch_birnn.spec import Shape


def _dense_weights(config: Config, shape: Shape | None) -> WeightShapes:
    known(shape)
    units: Shape = (config["units"],)
    names = (
        ("kernel", (last(shape), *units), True),
        ("bias", units, config["use_bias"]),
        ("kernel_scale", units, config.get("quantized")),
    )
    return {name: size_ for name, size_, there in names if there}


def _dense_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape[:-1], config["units"])


def _highway_weights(config: Config, shape: Shape | None) -> WeightShapes:
    size_ = last(known(shape, rank=2))
    return {
        name: shape_
        for name, shape_, there in (
            ("W", (size_, size_), True),
            ("W_carry", (size_, size_), True),
            ("b", (size_,), config["use_bias"]),
            ("b_carry", (size_,), config["use_bias"]),
        )
        if there
    }


def _maxout_weights(config: Config, shape: Shape | None) -> WeightShapes:
    features, units = config["nb_feature"], config["units"]
    kernel: Shape = (features, last(known(shape, rank=2)), units)
    return {"W": kernel, "b": (features, units)} if config["use_bias"] else {"W": kernel}


def _fourier_weights(config: Config, shape: Shape | None) -> WeightShapes:
    units = config["output_dim"]
    kernel: Shape = (last(known(shape, rank=2)), units)
    return {"kernel_scale": (1,), "unscaled_kernel": kernel, "bias": (units,)}


def _fourier_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape[:-1], config["output_dim"])


LAYERS: Mapping[str, Schema] = {
    "Dense": Schema(
        {
            "units": size(),
            "activation": activation(),
            "use_bias": flag(True),
        },
        _dense_weights,
        _dense_output,
        semantics={"quantized": choice(None, None, "inputs and weights", "weights")},
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
        semantics={"quantized": choice(None, None, "inputs and weights", "weights")},
    ),
    # of Keras 1, and as legacy of Keras 2; of vectors only, under the names that the files have
    "Highway": Schema(
        {"activation": activation(), "use_bias": flag(True)},
        _highway_weights,
        renamed={"bias": "use_bias"},
        ignored=("init", "input_dim"),
    ),
    "MaxoutDense": Schema(
        {"units": size(), "nb_feature": size(4), "use_bias": flag(True)},
        _maxout_weights,
        _dense_output,
        renamed={"bias": "use_bias", "output_dim": "units"},
        ignored=("init", "input_dim"),
    ),
    # of tf.keras alone
    "RandomFourierFeatures": Schema(
        {"output_dim": size()},
        _fourier_weights,
        _fourier_output,
        not_trained=("unscaled_kernel", "bias"),
        ignored=("scale",),
    ),
}
