"""Dense layers, Embedding, Masking, activations, and layers that act in training only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema import einsum
from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    DATA_FORMAT,
    REQUIRED,
    BadOptionError,
    Option,
    activation,
    axes,
    choice,
    flag,
    number,
    optional,
    size,
    sizes,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, known, last
from keras2torch_birnn.spec import Shape

# ---- Dense and EinsumDense -----------------------------------------------------------------------


def _dense_weights(config: Config, shape: Shape | None) -> WeightShapes:
    known(shape)
    kernel: WeightShapes = {"kernel": (last(shape), config["units"])}
    return {**kernel, "bias": (config["units"],)} if config["use_bias"] else kernel


def _dense_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape[:-1], config["units"])


# ---- Embedding -----------------------------------------------------------------------------------


def _embedding_weights(config: Config, shape: Shape | None) -> WeightShapes:
    return {"embeddings": (config["input_dim"], config["output_dim"])}


def _embedding_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape, config["output_dim"])


# ---- activations ---------------------------------------------------------------------------------


def _slopes(config: Config, shape: Shape | None) -> WeightShapes:
    """Return slopes of the input's shape without the batch, and of size 1 on shared axes."""
    if shape is None:  # unreachable through a Keras file: the layer is built from its input
        return {"alpha": ()}
    sizes_ = list(shape[1:])
    for axis in config["shared_axes"] or ():
        # Keras takes 1 away and lets Python count from the end: -1 is the last axis but one.
        if not -len(sizes_) <= axis - 1 < len(sizes_):
            raise ShapeError(f"shared_axes {axis} of an input of {len(shape)} dimensions")
        sizes_[axis - 1] = 1
    return {"alpha": tuple(sizes_)}


def activation_label(value: Any) -> str:
    """Write an activation as its name, followed by its options in parentheses if it has any."""
    if isinstance(value, str):
        return value
    options = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
    return f"{value['name']}({options})"


# ---- layers that act in training only ------------------------------------------------------------


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
    "Embedding": Schema(
        {"input_dim": size(), "output_dim": size(), "mask_zero": flag(False)},
        _embedding_weights,
        _embedding_output,
    ),
    "Masking": Schema({"mask_value": number(0.0)}, output=lambda c, s: known(s, least_rank=2)),
    "Activation": Schema({"activation": activation(REQUIRED)}),
    "ReLU": Schema(ACTIVATION_OPTIONS["relu"], semantics={"passes_mask": flag(True)}),
    "LeakyReLU": Schema({"negative_slope": number(0.3)}, renamed={"alpha": "negative_slope"}),
    "ELU": Schema({"alpha": number(1.0)}),
    "ThresholdedReLU": Schema({"theta": number(1.0)}),
    "Softmax": Schema(
        {"axis": axes(-1)},
        semantics={"masking": choice(REQUIRED, "ignore", "add", "replace")},
        refused=("a mask into more than two dimensions",),
    ),
    "PReLU": Schema({"shared_axes": optional(sizes(None, least=-32))}, _slopes),
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
