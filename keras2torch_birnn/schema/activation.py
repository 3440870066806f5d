"""Activation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    REQUIRED,
    activation,
    axes,
    choice,
    flag,
    number,
    optional,
    sizes,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes
from keras2torch_birnn.spec import Shape


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


LAYERS: Mapping[str, Schema] = {
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
}


def activation_label(value: Any) -> str:
    """Write an activation as its name, followed by its options in parentheses if it has any."""
    if isinstance(value, str):
        return value
    options = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
    return f"{value['name']}({options})"
