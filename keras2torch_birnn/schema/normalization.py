"""Layers that normalize by statistics of their input."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import REQUIRED, Option, axes, choice, flag, number, size
from keras2torch_birnn.schema.row import (
    Config,
    Schema,
    ShapeError,
    WeightShapes,
    known,
    normalized_axes,
)
from keras2torch_birnn.spec import Shape


def _norm_shape(config: Config, shape: Shape | None) -> Shape:
    if shape is None:
        return (None,) * len(config["axis"])
    return tuple(shape[axis] for axis in normalized_axes(config, len(shape)))


def _layer_norm_weights(config: Config, shape: Shape | None) -> WeightShapes:
    size_ = _norm_shape(config, known(shape))
    rms = config.get("rms_scaling", False)  # has a gamma always, a beta never
    names = (("gamma", config["scale"] or rms), ("beta", config["center"] and not rms))
    return {name: size_ for name, there in names if there}


def _batch_norm_weights(config: Config, shape: Shape | None) -> WeightShapes:
    size_ = _norm_shape(config, known(shape))
    return {
        **_layer_norm_weights(config, shape),
        "moving_mean": size_,
        "moving_variance": size_,
    }


def _group_norm_weights(config: Config, shape: Shape | None) -> WeightShapes:
    channels = None
    if shape is not None:
        (axis,) = normalized_axes({"axis": (config["axis"],)}, len(shape))
        if axis == 0:
            raise ShapeError("axis 0 holds the samples, which have no groups")
        channels = shape[axis]
        if channels is not None and channels % abs(config["groups"]):
            raise ShapeError(f"groups={config['groups']} does not divide {channels} channels")
    return {name: (channels,) for name in ("gamma", "beta") if config[_SWITCH[name]]}


_SWITCH = {"gamma": "scale", "beta": "center"}


def _rms_norm_weights(config: Config, shape: Shape | None) -> WeightShapes:
    if shape is not None:
        found = normalized_axes(config, len(shape))
        if found != tuple(range(len(shape) - len(found), len(shape))):
            raise ShapeError(
                f"axis {list(config['axis'])} is not at the end, where Keras applies the scale"
            )
    return {"scale": _norm_shape(config, known(shape))}


def _groups() -> Option:
    """Make the option of the number of groups; -1 is one for each channel."""
    return Option(32, lambda value: -1 if value == -1 else size().parse(value))


_NORMALIZATION: Mapping[str, Option] = {
    "axis": axes(-1),
    "epsilon": number(1e-3, 0.0),
    "center": flag(True),
    "scale": flag(True),
}

LAYERS: Mapping[str, Schema] = {
    "BatchNormalization": Schema(
        {**_NORMALIZATION, "momentum": number(0.99), "renorm": choice(False, False)},
        _batch_norm_weights,
        not_trained=("moving_mean", "moving_variance"),
        refused=("several axes", "renorm=True"),
    ),
    "LayerNormalization": Schema(
        {**_NORMALIZATION, "rms_scaling": flag(False)}, _layer_norm_weights
    ),
    # masking: a mask weighs the steps in tf.keras (and has to have the input's shape)
    "GroupNormalization": Schema(
        {
            **_NORMALIZATION,
            "axis": size(-1, least=-32),
            "groups": _groups(),
        },
        _group_norm_weights,
        semantics={"masking": choice(REQUIRED, "ignore", "weigh")},
        refused=("a mask (tf.keras)",),
    ),
    # smallest_norm: what a shorter vector is divided by
    "UnitNormalization": Schema(
        {"axis": axes(-1)}, semantics={"smallest_norm": number(REQUIRED, 0.0)}
    ),
    "RMSNormalization": Schema(
        {"axis": axes(-1), "epsilon": number(1e-6, 0.0)},
        _rms_norm_weights,
        refused=("axes that are not the last ones",),
    ),
}
