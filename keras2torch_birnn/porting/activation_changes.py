"""Known mistakes with activations and softmax, as changes to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.cell_changes import show_activation
from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    Weights,
    configured,
    followed_by,
    weighted,
    weighted_one,
)
from keras2torch_birnn.porting.general_changes import AFTER
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.activations import activate, sigmoid
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array

_TEMPERATURES = (0.5, 2.0, 0.1, 10.0, -1.0, math.log(2))
_SLOPES = (0.01, 0.1, 0.2, 0.3, 0.02, 0.05, 0.25, 0.5)
_ACTIVATIONS: tuple[str | Mapping[str, Any], ...] = (
    "linear",
    *AFTER,
    "softplus",
    "softsign",
    "elu",
    "selu",
    "gelu",
    {"name": "gelu", "approximate": True},
    "silu",
    "mish",
    "relu6",
    "hard_silu",
    *({"name": "elu", "alpha": alpha} for alpha in (0.1, 0.2, 0.3, 0.5, 2.0)),
    *({"name": "celu", "alpha": alpha} for alpha in (0.5, 2.0)),
    "tanh_shrink",
    "log_sigmoid",
    "exponential",
    "hard_tanh",
    *({"name": "leaky_relu", "negative_slope": slope} for slope in _SLOPES),
    "hard_sigmoid_0.2",
    "hard_sigmoid_1/6",
)


def activation_changes(maker: Maker) -> Iterator[Change]:
    """Yield other activations at the end of a layer."""
    own = maker.config["activation"]
    for name in _ACTIVATIONS:
        if name != own:
            words = f"{show_activation(name)} after it, Keras has {show_activation(own)}"
            yield maker.change("activation", words, configured(activation=name))
    for words, function in _WRITTEN.items():
        words = f"{words}, Keras has {show_activation(own)}"
        yield maker.change("activation", words, partial(_followed_by_hand, function))
    for factor in _TEMPERATURES if own in ("softmax", "sigmoid") else ():
        words = f"what its {own} reads is multiplied by {factor:g}"
        yield maker.change("scale", words, weighted(partial(_all_times, factor)))
    if own == "softmax":
        for words, axis in _SOFTMAX_AXES.items():
            if axis != -1:
                apply = configured(activation={"name": "softmax", "axis": axis})
                words = f"softmax over {words}, Keras takes the last axis"
                yield maker.change("axis", words, apply)


def middle_activation_changes(maker: Maker) -> Iterator[Change]:
    """Yield activations between the depthwise and the pointwise part of a separable convolution."""
    for name in _ACTIVATIONS[1:]:
        words = f"{show_activation(name)} between its depthwise and its pointwise part"
        words += ", Keras has none there"
        yield maker.change("activation", words, partial(_between_parts, name))


def _between_parts(name: str | Mapping[str, Any], call: LayerCall) -> Result:
    own = call.layer.config
    ones = tuple(1 for _ in own["kernel_size"])
    plain = {**own, "activation": "linear", "use_bias": False}
    each = replace(call.layer, class_name=f"DepthwiseConv{len(ones)}D", config=plain)
    x, _ = EQUATIONS[each.class_name](each, call.inputs, call.mask, call.context)
    points = {"padding": "valid", "groups": 1}
    points |= dict.fromkeys(("kernel_size", "strides", "dilation_rate"), ones)
    weights = {**call.layer.weights, "kernel": call.layer.weights["pointwise_kernel"]}
    joined = replace(
        call.layer, class_name=f"Conv{len(ones)}D", config={**own, **points}, weights=weights
    )
    return EQUATIONS[joined.class_name](joined, activate(name, x), call.mask, call.context)


def _followed_by_hand(function: Callable[[Array], Array], call: LayerCall) -> Result:
    return followed_by(function)(call.configured(activation="linear"))


def moved_before_activation(maker: Maker, words: str, move: Callable[[Array], Array]) -> Change:
    """Return the change of what a layer's activation reads."""
    own = maker.config["activation"]

    def moved(x: Array) -> Array:
        return activate(own, move(x))

    link = ":" if "is added" in words else " is"
    words = f"what its {show_activation(own)} reads{link} {words}, which Keras does not do"
    return maker.change("scale", words, partial(_followed_by_hand, moved))


def divide_by_sum(x: Array) -> Array:
    """Divide by the sum over the last axis."""
    shares: Array = x / x.sum(axis=-1, keepdims=True)
    return shares


# Activations that are written by hand, as torch has no function for them
_WRITTEN: Mapping[str, Callable[[Array], Array]] = {
    "x sigmoid(1.702 x) (a quick gelu) after it": lambda x: x / (1 + np.exp(-1.702 * x)),
    "2 sigmoid(x) - 1 after it": lambda x: 2 / (1 + np.exp(-x)) - 1,
    "log(1 + relu(x)) after it": lambda x: np.log1p(np.maximum(x, 0)),
    "relu(x) squared after it": lambda x: np.maximum(x, 0) ** 2,
    "(tanh(x) + 1) / 2 after it": lambda x: (np.tanh(x) + 1) / 2,
    "clip(x / 4 + 1 / 2, 0, 1) after it": lambda x: np.clip(x / 4 + 0.5, 0, 1),
    "clip(x / 2 + 1 / 2, 0, 1) after it": lambda x: np.clip(x / 2 + 0.5, 0, 1),
    "clip(x, 0, 1) after it": lambda x: np.clip(x, 0, 1),
    "1.7159 tanh(2 x / 3) after it": lambda x: 1.7159 * np.tanh(2 * x / 3),
    "log(1 + exp(2 x)) / 2 (a softplus of beta 2) after it": lambda x: np.logaddexp(2 * x, 0) / 2,
    "elu(x) + 1 after it": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "arctan(x) after it": np.arctan,
    "sin(x) after it": np.sin,
    "x squared after it": np.square,
    "the absolute value of x after it": np.abs,
    "sigmoid(x) divided by the sum of all (for a softmax) after it": lambda x: divide_by_sum(
        sigmoid(x)
    ),
    "x divided by the sum of all (a softmax without exp) after it": divide_by_sum,
}


def _all_times(factor: float, weights: Weights) -> Weights:
    return {name: factor * array for name, array in weights.items()}


def replaced_activation_changes(maker: Maker) -> Iterator[Change]:
    """Yield other activations in the place of a layer that is one."""
    for name in _ACTIVATIONS[1:]:  # without it the layer is left out
        words = f"{show_activation(name)} is in its place, Keras has {maker.layer.class_name}"
        yield maker.change("activation", words, partial(_activated, name))


def _activated(name: str | Mapping[str, Any], call: LayerCall) -> Result:
    _, out_mask = call.run()
    return activate(name, call.context.number(np.asarray(call.inputs))), out_mask


def softmax_axis_changes(maker: Maker) -> Iterator[Change]:
    """Yield other axes of a Softmax."""
    own = _axes_of(maker.config["axis"])
    for words, axis in _SOFTMAX_AXES.items():
        if _axes_of(axis) != own:
            known = (w for w, a in _SOFTMAX_AXES.items() if _axes_of(a) == own)
            shown = next(known, f"axes {own}")
            words = f"softmax over {words}, Keras takes {shown}"
            yield maker.change("axis", words, configured(axis=axis))


def _axes_of(axis: Any) -> tuple[int, ...]:
    return tuple(np.atleast_1d(axis).tolist())


_SOFTMAX_AXES: Mapping[str, int | tuple[int, ...]] = {
    "the last axis": -1,
    "axis 1": 1,
    "axis 2": 2,
    "the batch": 0,
    "axes 1 and 2 together": (1, 2),
    "all axes, the batch, too": (0, 1, 2),
}


# The softmax, what it reads, and the places (broadcast) that count -> the shares
Rule: TypeAlias = Callable[[Callable[[Array], Array], Array, Array], Array]


def masked_softmax_changes(maker: Maker) -> Iterator[Change]:
    """Yield a softmax that leaves padding out, and shares of padding that are set to 0 after it."""
    for words, leave_out in SOFTMAX_MASKS.items():
        apply = partial(leave_out, None)
        yield maker.change("mask rule", f"{words}, Keras does not do that here", apply)


def _masked(rule: Rule, own_axis: bool, path: str | None, call: LayerCall) -> Result:
    """Leave padded steps out of a softmax, by its own mask or by that of the call ``path``.

    own_axis: the steps lie along the axis of the softmax, as in scores; else along axis 1.
    """
    x = np.asarray(call.inputs, np.float64)
    steps = call.mask if path is None else call.context.masks[path]
    function = call.layer.config.get("function")  # of an operation
    options = function if isinstance(function, Mapping) else call.layer.config
    axis = int(np.ravel(options.get("axis", -1))[-1]) % x.ndim if own_axis else 1
    if not isinstance(steps, np.ndarray) or steps.shape != (len(x), x.shape[axis]):
        raise ValueError("there is no mask")
    shape = [1] * x.ndim
    shape[0], shape[axis] = steps.shape
    _, out_mask = call.aside().run()
    kept = steps.astype(bool).reshape(shape)
    return rule(lambda scores: call._replace(inputs=scores, mask=None).run()[0], x, kept), out_mask


_RULES: Mapping[str, Rule] = {
    "padding is left out of the softmax": (
        lambda softmax, x, kept: softmax(np.where(kept, x, -1e9))
    ),
    "the shares of padding are set to 0 after the softmax (they no longer add up to 1)": (
        lambda softmax, x, kept: np.where(kept, softmax(x), 0)
    ),
}
# What is done -> the change, given the call whose mask is used (None: the layer's own)
SOFTMAX_MASKS: Mapping[str, Callable[..., Result]] = {
    f"{words}{also}": partial(_masked, rule, own_axis)
    for also, own_axis in (("", False), (" (along its own axis)", True))
    for words, rule in _RULES.items()
}


def alpha_changes(maker: Maker) -> Iterator[Change]:
    """Yield other slopes of a PReLU, which has one for each unit or shares them."""
    for words, change in _ALPHAS.items():
        apply = weighted_one("alpha", partial(_shared, change))
        yield maker.change("slope", f"{words}, Keras has one for each of its units", apply)


def _shared(change: Callable[[Array], float], alpha: Array) -> Array:
    return np.full(alpha.shape, change(np.asarray(alpha, np.float64)))


_ALPHAS: Mapping[str, Callable[[Array], float]] = {
    "its slope is 0.25 everywhere (as nn.PReLU begins)": lambda alpha: 0.25,
    "the slope of the first unit is that of all": lambda alpha: float(alpha.flat[0]),
    "the mean of the slopes is that of all": lambda alpha: float(alpha.mean()),
}


def late_bias_changes(maker: Maker) -> Iterator[Change]:
    """Yield a bias that is added to what the activation gives."""
    if maker.config.get("use_bias") and maker.config["activation"] != "linear":
        words = "the bias is added after the activation, Keras adds it before"
        yield maker.change("bias", words, _with_late_bias)


def _with_late_bias(call: LayerCall) -> Result:
    bias = np.asarray(call.layer.weights["bias"])
    output, out_mask = call.weighted({"bias": np.zeros_like(bias)}).run()
    return output + bias, out_mask


def slope_changes(maker: Maker) -> Iterator[Change]:
    """Yield other slopes below zero."""
    for option in ("negative_slope", "alpha"):
        if option in maker.config:
            for value in (*_SLOPES, 1.0):
                if value != maker.config[option]:
                    words = f"slope {value:g}, Keras has {maker.config[option]:g}"
                    yield maker.change("slope", words, configured(**{option: value}))
