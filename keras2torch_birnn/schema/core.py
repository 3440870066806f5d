"""Dense, Embedding, activation, dropout and normalisation layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
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
from keras2torch_birnn.schema.row import (
    Config,
    Schema,
    ShapeError,
    WeightShapes,
    known,
    last,
    normalized_axes,
)
from keras2torch_birnn.schema.windows import DATA_FORMAT
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


def _prelu_weights(config: Config, shape: Shape | None) -> WeightShapes:
    if shape is None:
        return {"alpha": ()}  # unreachable through a Keras file: PReLU is built from its input
    sizes_ = list(shape[1:])
    for axis in config["shared_axes"] or ():
        # Keras takes 1 away and lets Python count from the end: -1 is the last axis but one.
        if not -len(sizes_) <= axis - 1 < len(sizes_):
            raise ShapeError(f"shared_axes {axis} of an input of {len(shape)} dimensions")
        sizes_[axis - 1] = 1
    return {"alpha": tuple(sizes_)}


def _embedding_weights(config: Config, shape: Shape | None) -> WeightShapes:
    rows: Shape = (config["input_dim"],)
    table: dict[str, Shape] = {"embeddings": (*rows, config["output_dim"])}
    return {**table, "embeddings_scale": rows} if config.get("quantized") else table


def _embedding_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape, config["output_dim"])


def _noise_shape(value: Any) -> tuple[int | None, ...] | None:
    """Sizes of what dropout draws, None for the input's own."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadOptionError("a list of whole numbers and null is expected")
    return tuple(None if part is None else size().parse(part) for part in value)


def _groups() -> Option:
    """Number of groups; -1 is one for each channel."""
    return Option(32, lambda value: -1 if value == -1 else size().parse(value))


_NORMALIZATION: Mapping[str, Option] = {
    "axis": axes(-1),
    "epsilon": number(1e-3, 0.0),
    "center": flag(True),
    "scale": flag(True),
}
_DROPOUT: Mapping[str, Option] = {"rate": number(REQUIRED, 0.0, 1.0)}
_NOISE: Mapping[str, Option] = {"noise_shape": Option(None, _noise_shape)}

LAYERS: Mapping[str, Schema] = {
    # dense and embedding
    "Dense": Schema(
        {
            "units": size(),
            "activation": activation(),
            "use_bias": flag(True),
            "quantized": choice(None, None, "inputs and weights", "weights"),
        },
        _dense_weights,
        _dense_output,
    ),
    # of Keras 1, and as legacy of Keras 2; of vectors only, under the names that the files have
    "Highway": Schema({"activation": activation(), "use_bias": flag(True)}, _highway_weights),
    "MaxoutDense": Schema(
        {"units": size(), "nb_feature": size(4), "use_bias": flag(True)},
        _maxout_weights,
        _dense_output,
    ),
    "Embedding": Schema(
        {
            "input_dim": size(),
            "output_dim": size(),
            "mask_zero": flag(False),
            "quantized": choice(None, None, "weights"),
        },
        _embedding_weights,
        _embedding_output,
    ),
    "Masking": Schema({"mask_value": number(0.0)}, output=lambda c, s: known(s, least_rank=2)),
    # activations
    "Activation": Schema({"activation": activation(REQUIRED)}),
    "ReLU": Schema({**ACTIVATION_OPTIONS["relu"], "passes_mask": flag(True)}),
    "LeakyReLU": Schema({"negative_slope": number(0.3)}),
    "ELU": Schema({"alpha": number(1.0)}),
    "ThresholdedReLU": Schema({"theta": number(1.0)}),
    "Softmax": Schema({"axis": axes(-1), "masking": choice(REQUIRED, "ignore", "add", "replace")}),
    "PReLU": Schema(
        {"shared_axes": optional(sizes(None, least=-32))},
        _prelu_weights,
    ),
    # training only
    "Dropout": Schema({**_DROPOUT, **_NOISE}),
    "SpatialDropout1D": Schema(_DROPOUT),
    "SpatialDropout2D": Schema({**_DROPOUT, "data_format": DATA_FORMAT}),
    "SpatialDropout3D": Schema({**_DROPOUT, "data_format": DATA_FORMAT}),
    "Identity": Schema({"passes_mask": flag()}),
    "GaussianNoise": Schema({"stddev": number(REQUIRED, 0.0)}),
    "GaussianDropout": Schema(_DROPOUT),
    "AlphaDropout": Schema({**_DROPOUT, **_NOISE}),
    "ActivityRegularization": Schema({"l1": number(0.0), "l2": number(0.0)}),
    # normalisation
    "BatchNormalization": Schema(
        {**_NORMALIZATION, "momentum": number(0.99), "renorm": choice(False, False)},
        _batch_norm_weights,
        not_trained=("moving_mean", "moving_variance"),
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
            "masking": choice(REQUIRED, "ignore", "weigh"),
        },
        _group_norm_weights,
    ),
    # smallest_norm: what a shorter vector is divided by
    "UnitNormalization": Schema({"axis": axes(-1), "smallest_norm": number(REQUIRED, 0.0)}),
    "RMSNormalization": Schema({"axis": axes(-1), "epsilon": number(1e-6, 0.0)}, _rms_norm_weights),
}
