"""What Keras' layers are: their options, the weights they own and the shapes they produce.

One row per class in ``SCHEMA``. Readers parse options and weights by it, the builder and the
reference never meet a value that did not pass through it. No torch, no h5py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn.spec import Shape

Config = Mapping[str, Any]


class BadOptionError(ValueError):
    """An option's value is not one the layer can have; the text says what is allowed."""


class ShapeError(ValueError):
    """A layer cannot take an input of this shape; the text says why."""


@dataclass(frozen=True)
class Option:
    """One config key: the value it has when absent, and how a value is read and checked.

    ``parse`` returns the explicit value or raises BadOptionError.
    """

    default: Any
    parse: Callable[[Any], Any]


REQUIRED = object()

# ---- kinds of options -----------------------------------------------------------------------

# Far above any real layer; keeps a hostile number from reaching an allocation.
LARGEST_SIZE = 2**31 - 1


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def size(default: Any = REQUIRED, least: int = 1) -> Option:
    """A whole number, ``least`` to 2^31 - 1. Old files also hold it as a float such as 5.0."""

    def parse(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _is_int(value) or not least <= value <= LARGEST_SIZE:
            raise BadOptionError(f"a whole number from {least} to {LARGEST_SIZE} is expected")
        return int(value)

    return Option(default, parse)


def number(default: Any = REQUIRED, least: float = -math.inf, most: float = math.inf) -> Option:
    """A finite number."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadOptionError("a number is expected")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result) or not least <= result <= most:
            raise BadOptionError(f"a finite number from {least} to {most} is expected")
        return result

    return Option(default, parse)


def optional(option: Option) -> Option:
    """The same option, or None."""
    return Option(
        None if option.default is REQUIRED else option.default,
        lambda value: None if value is None else option.parse(value),
    )


def flag(default: Any = REQUIRED) -> Option:
    """True or False."""

    def parse(value: Any) -> bool:
        if value not in (True, False):
            raise BadOptionError("true or false is expected")
        return bool(value)

    return Option(default, parse)


def choice(default: Any, *allowed: Any) -> Option:
    """One of a few values."""

    def parse(value: Any) -> Any:
        # bool is an int in Python: 1 must not pass for True
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise BadOptionError(f"one of {', '.join(map(repr, allowed))} is expected")
        return value

    return Option(default, parse)


def sizes(default: Any = REQUIRED, least: int = 1) -> Option:
    """Whole numbers as a tuple, or None."""

    def parse(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise BadOptionError("a list of whole numbers is expected")
        return tuple(size(least=least).parse(v) for v in value)

    return Option(default, parse)


def window(default: Any = REQUIRED) -> Option:
    """The one size of a 1D window: 3, or [3] as most versions write it."""

    def parse(value: Any) -> int:
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        return int(size().parse(value))

    return Option(default, parse)


def axes(default: Any) -> Option:
    """One axis or several, as a tuple; negative axes count from the end."""

    def parse(value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(size(least=-32).parse(v) for v in values)

    return Option(default, parse)


# name in the file -> explicit name. ``hard_sigmoid`` is not here: its meaning is the generation's.
ACTIVATIONS: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "linear relu sigmoid tanh softmax elu selu softplus softsign exponential gelu relu6 "
            "leaky_relu log_softmax mish log_sigmoid celu hard_tanh "
            "tanh_shrink hard_shrink soft_shrink squareplus sparse_plus sparse_sigmoid sparsemax "
            "glu hard_sigmoid_0.2 hard_sigmoid_1/6"
        ).split()
    },
    "swish": "silu",
    "silu": "silu",
    "hard_swish": "hard_silu",
    "hard_silu": "hard_silu",
}

# Numbers that belong to an activation, with the value Keras' *function* has by default.
ACTIVATION_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "relu": {
        "negative_slope": number(0.0),
        "max_value": optional(number(None, least=0.0)),
        "threshold": number(0.0),
    },
    "leaky_relu": {"negative_slope": number(0.2)},
    "elu": {"alpha": number(1.0)},
    "celu": {"alpha": number(1.0)},
    "gelu": {"approximate": flag(False)},
    "softmax": {"axis": size(-1, least=-32)},
    "log_softmax": {"axis": size(-1, least=-32)},
    "sparsemax": {"axis": size(-1, least=-32)},
    "glu": {"axis": size(-1, least=-32)},
    "hard_shrink": {"threshold": number(0.5)},
    "soft_shrink": {"threshold": number(0.5)},
    "squareplus": {"b": number(4.0)},
}


def parse_activation(value: Any) -> Any:
    """Read an explicit activation: a name, or ``{"name": ..., option: value}``. None is linear."""
    if value is None:
        return "linear"
    name, given = (value, {}) if isinstance(value, str) else (value.get("name"), dict(value))
    given.pop("name", None)
    if name not in ACTIVATIONS:
        raise BadOptionError(f"one of {', '.join(sorted(ACTIVATIONS))} is expected")
    name = ACTIVATIONS[name]
    options = ACTIVATION_OPTIONS.get(name, {})
    for key in given:
        if key not in options:
            raise BadOptionError(f"activation {name} has no option {key!r}")
    parsed = {key: options[key].parse(value) for key, value in given.items()}
    return {"name": name, **parsed} if parsed else name


def activation(default: Any = "linear") -> Option:
    """An activation, see ``parse_activation``."""
    return Option(default, parse_activation)


# ---- shapes ----------------------------------------------------------------------------------


def known(shape: Shape | None, rank: int | None = None, least_rank: int = 2) -> Shape | None:
    """Return the shape if anything is known of it; refuse a rank that the layer cannot take."""
    if shape is None:
        return None
    if rank is not None and len(shape) != rank:
        raise ShapeError(f"an input of {rank} dimensions is expected, found {list(shape)}")
    if len(shape) < least_rank:
        raise ShapeError(f"at least {least_rank} dimensions are expected, found {list(shape)}")
    return shape


def last(shape: Shape | None) -> int | None:
    """The size of the last axis, or None."""
    return shape[-1] if shape else None


def _same(config: Config, shape: Shape | None) -> Shape | None:
    return shape


def window_length(length: int | None, kernel: int, stride: int, padding: str) -> int | None:
    """Length of a 1D window operation's output (Keras ``conv_output_length``)."""
    if length is None:
        return None
    if padding == "valid":
        length = length - kernel + 1
        if length <= 0:
            raise ShapeError(f"a window of {kernel} does not fit the {length + kernel - 1} steps")
    return -(-length // stride)


# ---- rows ------------------------------------------------------------------------------------

WeightShapes = Mapping[str, Shape]


def _no_weights(config: Config, shape: Shape | None) -> WeightShapes:
    return {}


@dataclass(frozen=True)
class Schema:
    """One Keras class.

    ``weights(config, input shape)`` gives name -> shape in Keras' order (None: any size);
    ``output(config, input shape)`` the output's shape; both may raise ShapeError.
    ``not_trained``: weights that Keras lists after all trainable ones.
    ``parts``: config keys that hold an inner layer. ``aliases``: other names of the class.
    """

    options: Mapping[str, Option] = field(default_factory=dict)
    weights: Callable[[Config, Shape | None], WeightShapes] = _no_weights
    output: Callable[[Config, Shape | None], Any] = _same
    not_trained: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


# -- recurrent

CELL_GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
CELL_STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}

RNN_OPTIONS: Mapping[str, Option] = {
    "units": size(),
    "activation": activation("tanh"),
    "use_bias": flag(True),
    "dropout": number(0.0, 0.0, 1.0),
    "recurrent_dropout": number(0.0, 0.0, 1.0),
    "return_sequences": flag(False),
    "return_state": flag(False),
    "go_backwards": flag(False),
    "stateful": flag(False),
    "unroll": flag(False),
    "time_major": choice(False, False),
    "implementation": choice(2, 0, 1, 2),
    "masked_output": choice(
        REQUIRED, "zeros", "zeros_unreversed", "previous_output", "previous_state"
    ),
}
GATED_OPTIONS: Mapping[str, Option] = {**RNN_OPTIONS, "recurrent_activation": activation(REQUIRED)}


def _rnn_weights(gates: int) -> Callable[[Config, Shape | None], WeightShapes]:
    def weights(config: Config, shape: Shape | None) -> WeightShapes:
        units, width = config["units"], gates * config["units"]
        known(shape, rank=3)
        out: dict[str, Shape] = {
            "kernel": (last(shape), width),
            "recurrent_kernel": (units, width),
        }
        if config["use_bias"]:
            out["bias"] = (2, width) if config.get("reset_after") else (width,)
        return out

    return weights


def rnn_output(config: Config, shape: Shape | None, states: int) -> Any:
    """Output shape of a recurrent layer; with ``return_state`` a tuple (output, *states)."""
    batch, time = shape[:2] if shape else (None, None)
    out: Shape = (batch, config["units"])
    if config["return_sequences"]:
        out = (batch, time, config["units"])
    return (out, *[(batch, config["units"])] * states) if config["return_state"] else out


def _rnn(cell: str, options: Mapping[str, Option], **more: Any) -> Schema:
    return Schema(
        options=options,
        weights=_rnn_weights(CELL_GATES[cell]),
        output=lambda config, shape: rnn_output(config, known(shape, rank=3), CELL_STATES[cell]),
        **more,
    )


# -- dense, embedding, normalisation


def _dense_weights(config: Config, shape: Shape | None) -> WeightShapes:
    known(shape)
    kernel: Shape = (last(shape), config["units"])
    return (
        {"kernel": kernel, "bias": (config["units"],)} if config["use_bias"] else {"kernel": kernel}
    )


def _dense_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape[:-1], config["units"])


def normalized_axes(config: Config, rank: int) -> tuple[int, ...]:
    """The axes of a normalisation as positive numbers, in the order of the shape."""
    result = sorted({axis % rank for axis in config["axis"] if -rank <= axis < rank})
    if len(result) != len(config["axis"]):
        raise ShapeError(f"axis {list(config['axis'])} does not fit an input of {rank} dimensions")
    return tuple(result)


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


def _prelu_weights(config: Config, shape: Shape | None) -> WeightShapes:
    if shape is None:
        return {"alpha": ()}  # unreachable through a Keras file: PReLU is built from its input
    shared = config["shared_axes"] or ()
    return {"alpha": tuple(1 if i in shared else shape[i] for i in range(1, len(shape)))}


# -- shape layers


def _flatten(config: Config, shape: Shape | None) -> Shape | None:
    if shape is None:
        return None
    if None in shape[1:]:
        return (shape[0], None)
    return (shape[0], math.prod(s for s in shape[1:] if s is not None))


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
    if (free and total[1] % max(fixed, 1)) or (not free and total[1] != fixed):
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


def _embedding_output(config: Config, shape: Shape | None) -> Shape | None:
    return None if shape is None else (*shape, config["output_dim"])


# -- windows over time


def _time_axis(config: Config) -> int:
    return 1 if config["data_format"] == "channels_last" else 2


def _conv1d_weights(config: Config, shape: Shape | None) -> WeightShapes:
    shape = known(shape, rank=3)
    channels = shape[3 - _time_axis(config)] if shape else None
    groups = config["groups"]
    if config["filters"] % groups or (channels is not None and channels % groups):
        raise ShapeError(f"groups={groups} does not divide the channels")
    kernel: Shape = (
        config["kernel_size"],
        None if channels is None else channels // groups,
        config["filters"],
    )
    return (
        {"kernel": kernel, "bias": (config["filters"],)}
        if config["use_bias"]
        else {"kernel": kernel}
    )


def _conv1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    extent = (config["kernel_size"] - 1) * config["dilation_rate"] + 1
    time = window_length(shape[_time_axis(config)], extent, config["strides"], config["padding"])
    if config["data_format"] == "channels_last":
        return (shape[0], time, config["filters"])
    return (shape[0], config["filters"], time)


def _pool1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    axis = _time_axis(config)
    stride = config["strides"] or config["pool_size"]
    time = window_length(shape[axis], config["pool_size"], stride, config["padding"])
    return (*shape[:axis], time, *shape[axis + 1 :])


def _global_pool1d_output(config: Config, shape: Shape | None) -> Shape | None:
    if (shape := known(shape, rank=3)) is None:
        return None
    axis = _time_axis(config)
    kept = (1,) if config["keepdims"] else ()
    return (*shape[:axis], *kept, *shape[axis + 1 :])


_DATA_FORMAT = choice("channels_last", "channels_last", "channels_first")
_NORMALIZATION: Mapping[str, Option] = {
    "axis": axes(-1),
    "epsilon": number(1e-3, 0.0),
    "center": flag(True),
    "scale": flag(True),
}
_POOL: Mapping[str, Option] = {
    "pool_size": window(2),
    "strides": optional(window(None)),
    "padding": choice("valid", "valid", "same"),
    "data_format": _DATA_FORMAT,
}
_GLOBAL_POOL: Mapping[str, Option] = {"data_format": _DATA_FORMAT, "keepdims": flag(False)}
_DROPOUT: Mapping[str, Option] = {"rate": number(REQUIRED, 0.0, 1.0)}

LAYERS: Mapping[str, Schema] = {
    "InputLayer": Schema(
        {"shape": Option(None, lambda shape: shape), "dtype": Option("float32", lambda d: d)}
    ),
    "Sequential": Schema(),
    "Functional": Schema(aliases=("Model",)),
    # recurrent
    "LSTM": _rnn("LSTM", GATED_OPTIONS, aliases=("CuDNNLSTM",)),
    "GRU": _rnn("GRU", {**GATED_OPTIONS, "reset_after": flag()}, aliases=("CuDNNGRU",)),
    "SimpleRNN": _rnn("SimpleRNN", RNN_OPTIONS),
    "Bidirectional": Schema(
        {"merge_mode": choice("concat", "concat", "sum", "mul", "ave", None)},
        parts=("forward_layer", "backward_layer"),
    ),
    # masking: the mask passes by (where the batch is fixed); or goes in and comes out as the inner
    # layer makes it (or the input's, reduced to steps); or goes in and comes out as it was
    "TimeDistributed": Schema(
        {"masking": choice(REQUIRED, "passes by", "inner", "inner unless fixed", "input")},
        parts=("layer",),
    ),
    # dense and embedding
    "Dense": Schema(
        {"units": size(), "activation": activation(), "use_bias": flag(True)},
        _dense_weights,
        _dense_output,
    ),
    "Embedding": Schema(
        {"input_dim": size(), "output_dim": size(), "mask_zero": flag(False)},
        lambda config, shape: {"embeddings": (config["input_dim"], config["output_dim"])},
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
        {"shared_axes": optional(sizes(None))},
        _prelu_weights,
    ),
    # training only
    "Dropout": Schema({**_DROPOUT, "noise_shape": Option(None, lambda v: v)}),
    "SpatialDropout1D": Schema(_DROPOUT),
    "GaussianNoise": Schema({"stddev": number(REQUIRED, 0.0)}),
    "GaussianDropout": Schema(_DROPOUT),
    "AlphaDropout": Schema({**_DROPOUT, "noise_shape": choice(None, None)}),
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
    # shapes
    "Flatten": Schema({"data_format": _DATA_FORMAT}, output=_flatten),
    "Reshape": Schema({"target_shape": sizes(least=-1)}, output=_reshape),
    "Permute": Schema({"dims": sizes()}, output=_permute),
    "RepeatVector": Schema({"n": size()}, output=_repeat_vector),
    # windows over time
    "Conv1D": Schema(
        {
            "filters": size(),
            "kernel_size": window(),
            "strides": window(1),
            "padding": choice("valid", "valid", "same", "causal"),
            "data_format": _DATA_FORMAT,
            "dilation_rate": window(1),
            "groups": size(1),
            "activation": activation(),
            "use_bias": flag(True),
        },
        _conv1d_weights,
        _conv1d_output,
        aliases=("Convolution1D",),
    ),
    "MaxPooling1D": Schema(_POOL, output=_pool1d_output),
    "AveragePooling1D": Schema(_POOL, output=_pool1d_output),
    "GlobalMaxPooling1D": Schema(_GLOBAL_POOL, output=_global_pool1d_output),
    "GlobalAveragePooling1D": Schema(
        {**_GLOBAL_POOL, "use_mask": flag(True)}, output=_global_pool1d_output
    ),
}

# Operations of Keras 3 (``keras.ops``), which its files hold beside the layers. Their arguments come
# with the call; the first is the tensor. No mask goes in or out.
OPS: Mapping[str, Schema] = {
    "ops.NotEqual": Schema(),
    "ops.Any": Schema(
        {"axis": optional(axes(None)), "keepdims": flag(False)}, output=lambda c, s: None
    ),
}
SCHEMA: Mapping[str, Schema] = {**LAYERS, **OPS}

CLASS_NAMES: Mapping[str, str] = {
    **{name: name for name in SCHEMA},
    **{alias: name for name, schema in SCHEMA.items() for alias in schema.aliases},
}


def merged_output(merge_mode: str | None, forward: Any, backward: Any) -> Any:
    """Output shape of a Bidirectional from those of its halves (with their states, if any)."""
    with_state = bool(forward) and isinstance(forward[0], tuple)
    heads: list[Any] = []
    states: list[Any] = []
    for half in (forward, backward):
        heads.append(half[0] if with_state else half)
        states.extend(half[1:] if with_state else ())
    out: tuple[Any, ...]
    if merge_mode is None:
        out = tuple(heads)
    elif merge_mode == "concat":
        out = ((*heads[0][:-1], heads[0][-1] + heads[1][-1]),)
    elif heads[0] != heads[1]:
        raise ShapeError(
            f"merge_mode {merge_mode!r} needs halves of equal size, found {list(heads[0])} and "
            f"{list(heads[1])}"
        )
    else:
        out = (heads[0],)
    out = (*out, *states)
    return out[0] if len(out) == 1 else out
