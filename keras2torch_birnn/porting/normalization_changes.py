"""Known mistakes in normalizers, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    Weights,
    configured,
    reading,
    weighted,
    weighted_one,
)
from keras2torch_birnn.porting.moments import center, compute_variance
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, LayerSpec

Axes: TypeAlias = tuple[int, ...]
# x, the axes to normalize, epsilon -> x normalized, before gamma and beta
Formula: TypeAlias = Callable[[Array, Axes, float], Array]
# number of axes of x, Keras' axes -> other ones
Choice: TypeAlias = Callable[[int, Axes], Axes]


_GROUPS = {1: "one group", -1: "a group for each channel"}
# Numbers of groups that are tried; those that do not divide the channels fail.
_MANY_GROUPS = 16
_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 1e-4, 1e-9, 1e-10, 1e-2, 1e-1, 0.0)


# Weights of normalizers, which all have one shape.
_WEIGHTS = ("gamma", "beta", "moving_mean", "moving_variance")
# Factors of the right epsilon that are tried, too
_TIMES = (0.1, 10.0, 0.01, 100.0, 0.5, 2.0)


def epsilon_changes(maker: Maker) -> Iterator[Change]:
    """Yield other epsilons of a normalizer."""
    own = maker.config["epsilon"]
    for value in dict.fromkeys((*_EPSILONS, *(own * factor for factor in _TIMES))):
        if value != own:
            words = f"epsilon is {value:g}, Keras has {own:g}"
            yield maker.change("epsilon", words, configured(epsilon=value))


def batch_norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield a BatchNormalization in training mode, and one whose weights are not loaded."""
    words = "it normalizes by the batch's own mean and variance (it is in training mode)"
    for free, also in ((0, ""), (1, ", which divides by n - 1 (as torch.var does)")):
        yield maker.change("training mode", f"{words}{also}", partial(_by_batch, free))
    for words, axis in _OTHER_NORMS.items():
        apply = partial(_by_row, axis)
        yield maker.change("formula", f"{words}, Keras uses the moving ones", apply)
    yield from _exchanged_weights(maker)
    moving = weighted(partial(_constant, values={"moving_mean": 0, "moving_variance": 1}))
    words = "the moving mean is 0 and the variance 1, as before training"
    yield maker.change("not loaded", words, moving)


def group_norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield other numbers of groups, statistics of each step, and weights in each other's place."""
    for count in (1, -1, *range(2, _MANY_GROUPS + 1)):
        if count != maker.config["groups"]:
            shown = _GROUPS.get(count, f"{count} groups")
            words = f"it has {shown}, Keras has {maker.config['groups']} groups"
            yield maker.change("groups", words, configured(groups=count))
    words = "it takes the mean and variance of each step, Keras those of all steps"
    yield maker.change("axis", words, _by_step)
    yield from _exchanged_weights(maker)


def _by_step(call: LayerCall) -> Result:
    x = np.asarray(call.inputs)
    if call.layer.config["axis"] % x.ndim != x.ndim - 1:
        raise ValueError("the channels do not come last")
    last = call.configured(axis=-1)
    y, _ = last._replace(inputs=x.reshape(-1, x.shape[-1]), mask=None).run()
    return y.reshape(x.shape), call.mask


def rms_norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield a mean that is subtracted, as in LayerNorm."""
    centered = reading(partial(center, maker.config["axis"]))
    yield maker.change("formula", "the mean is subtracted (as nn.LayerNorm does)", centered)
    yield from _shifted_changes(maker)


_LENGTH_AXES = {0: "the rows of the batch", 1: "axis 1", -2: "axis -2", -1: "the last axis"}
_NORMS: Mapping[str, Callable[[Array, Any], Array]] = {
    "the sum of their absolute values": lambda x, axis: np.abs(x).sum(axis, keepdims=True),
    "their largest absolute value": lambda x, axis: np.abs(x).max(axis, keepdims=True),
    "the square of their length": lambda x, axis: (x * x).sum(axis, keepdims=True),
}


def unit_norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield lengths over other axes, and other norms."""
    own = maker.config["axis"]
    for axis, words in _LENGTH_AXES.items():
        words = f"the length is taken over {words}, Keras takes axis {', '.join(map(str, own))}"
        yield maker.change("axis", words, configured(axis=axis))
    for words, norm in _NORMS.items():
        words = f"it divides values by {words}, Keras by their length"
        yield maker.change("formula", words, partial(_by_norm, norm))


def _by_norm(norm: Callable[[Array, Any], Array], call: LayerCall) -> Result:
    _, out_mask = call.run()
    x = np.asarray(call.inputs, np.float64)
    return x / norm(x, call.layer.config["axis"]), out_mask


def _exchanged_weights(maker: Maker) -> Iterator[Change]:
    """Yield weights of a normalizer in each other's place, and those from before training."""
    weights = maker.layer.weights
    known = [name for name in _WEIGHTS if name in weights]
    for order in list(permutations(known))[1:]:
        moved = [pair for pair in zip(known, order, strict=True) if pair[0] != pair[1]]
        words = f"{moved[0][0]} and {moved[0][1]} are exchanged"
        if len(moved) > 2:
            words = ", ".join(f"{other} is in the place of {one}" for one, other in moved)
        yield maker.change("exchanged", words, weighted(partial(_in_order, moved)))
    if "gamma" in weights and "beta" in weights:
        early = weighted(lambda w: {"beta": w["beta"] * w["gamma"]})
        words = "beta is added before gamma multiplies, Keras adds it after"
        yield maker.change("formula", words, early)
    yield from _shifted_changes(maker)
    for name, fresh in (("gamma", 1), ("beta", 0)):
        if name in weights:
            apply = weighted(partial(_constant, values={name: fresh}))
            yield maker.change("not loaded", f"{name} is {fresh}, as before training", apply)


def _shifted_changes(maker: Maker) -> Iterator[Change]:
    """Yield a gamma or a beta that is stored as its distance from 1, or taken to be so."""
    for name in ("gamma", "scale", "beta"):
        for shift, words in _SHIFTS.items() if name in maker.layer.weights else ():
            moved = weighted_one(name, partial(_shifted, shift))
            yield maker.change("formula", f"{words.format(name)}, Keras uses {name}", moved)


# What is added to a weight of a normalizer -> in words
_SHIFTS: Mapping[float, str] = {
    1.0: "1 + {0} is used (a zero-centred {0})",
    -1.0: "{0} - 1 is used",
}


def _shifted(shift: float, array: Array) -> Array:
    return np.asarray(array, np.float64) + shift


def divisor_changes(maker: Maker) -> Iterator[Change]:
    """Yield wrong divisors of a BatchNormalization written by hand, as variances of another one."""
    epsilon = maker.config["epsilon"]
    for words, square in _DIVISORS.items():
        apply = weighted_one("moving_variance", partial(_divided, epsilon, square))
        yield maker.change("formula", f"{words}, Keras by sqrt(variance + epsilon)", apply)
    zero = weighted(partial(_constant, values={"moving_mean": 0}))
    yield maker.change("formula", "the moving mean is not subtracted", zero)


def _divided(epsilon: float, square: Callable[[Array, float], Array], variance: Array) -> Array:
    return square(np.asarray(variance, np.float64), epsilon) - epsilon


# What it divides by -> the square of that
_DIVISORS: Mapping[str, Callable[[Array, float], Array]] = {
    "it divides by variance + epsilon": lambda v, epsilon: (v + epsilon) ** 2,
    "it divides by sqrt(variance) + epsilon": lambda v, epsilon: (np.sqrt(v) + epsilon) ** 2,
    "it divides by sqrt(variance^2 + epsilon)": lambda v, epsilon: v**2 + epsilon,
}


def _in_order(moved: Sequence[tuple[str, str]], weights: Weights) -> Weights:
    return {one: weights[other] for one, other in moved}


def _constant(weights: Weights, *, values: Mapping[str, float]) -> Weights:
    return {name: np.full_like(weights[name], value) for name, value in values.items()}


# Normalizers that stand for a BatchNormalization -> the first axis of which they take the mean
_OTHER_NORMS: Mapping[str, int] = {
    "it normalizes by the mean and variance of each step's features (LayerNorm)": -1,
    "it normalizes by each row's own mean and variance over the steps (InstanceNorm)": 1,
}


def _by_row(axis: int, call: LayerCall) -> Result:
    x = call.context.number(np.asarray(call.inputs))
    axes = (-1,) if axis < 0 else tuple(range(axis, x.ndim - 1))
    if not axes:
        raise ValueError("there are no steps")
    own = {"moving_mean": 0.0, "moving_variance": 1 - call.layer.config["epsilon"]}
    plain = call.weighted(_constant(call.layer.weights, values=own))
    return plain._replace(inputs=_usual(x, axes, call.layer.config["epsilon"])).run()


def _by_batch(free: int, call: LayerCall) -> Result:
    axes = tuple(
        a
        for a in range(call.inputs.ndim)
        if a not in {x % call.inputs.ndim for x in call.layer.config["axis"]}
    )
    own = {
        "moving_mean": call.inputs.mean(axis=axes).reshape(-1),
        "moving_variance": call.inputs.var(axis=axes, ddof=free).reshape(-1),
    }
    return call.weighted(own).run()


def layer_norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield a LayerNormalization by another formula or over other axes."""
    if not maker.config["rms_scaling"]:
        for words, formula in _FORMULAS.items():
            yield maker.change("formula", words, partial(_computed, formula, lambda _, own: own))
        for words, choose in _AXES.items():
            words = f"{words}, Keras over {_shown(maker.layer)}"
            yield maker.change("axis", words, partial(_computed, _usual, choose))
    yield from _exchanged_weights(maker)


def _shown(layer: LayerSpec) -> str:
    axes = tuple(layer.config["axis"])
    if axes == (-1,):
        return "the last axis"
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def _computed(formula: Formula, choose: Choice, call: LayerCall) -> Result:
    x = call.context.number(np.asarray(call.inputs))
    own = tuple(sorted(axis % x.ndim for axis in call.layer.config["axis"]))
    y = formula(x, choose(x.ndim, own), call.layer.config["epsilon"])
    shape = tuple(size if axis in own else 1 for axis, size in enumerate(x.shape))
    if call.layer.config["scale"]:
        y = y * call.context.weight(call.layer, "gamma").reshape(shape)
    if call.layer.config["center"]:
        y = y + call.context.weight(call.layer, "beta").reshape(shape)
    _, out_mask = call.run()
    return y, out_mask


def _usual(x: Array, axes: Axes, epsilon: float) -> Array:
    normalized: Array = center(axes, x) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    return normalized


# What is computed -> its formula
_FORMULAS: Mapping[str, Formula] = {
    "its variance divides by n - 1 (as torch.var does), Keras' by n": (
        lambda x, axes, e: center(axes, x) / np.sqrt(compute_variance(axes, x, free=1) + e)
    ),
    "it divides by torch.std (of n - 1) + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: center(axes, x) / (np.sqrt(compute_variance(axes, x, free=1)) + e)
    ),
    "it divides by sqrt(variance) + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: center(axes, x) / (x.std(axis=axes, keepdims=True) + e)
    ),
    "it divides by variance + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: center(axes, x) / (x.var(axis=axes, keepdims=True) + e)
    ),
    "the mean is not subtracted": (
        lambda x, axes, e: x / np.sqrt(x.var(axis=axes, keepdims=True) + e)
    ),
    "it divides by the root of the mean square (RMSNorm), without the mean": (
        lambda x, axes, e: x / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + e)
    ),
}
_AXES: Mapping[str, Choice] = {
    "it normalizes over all axes but the batch": lambda count, _: tuple(range(1, count)),
    "it normalizes over the steps": lambda *_: (1,),
    "it normalizes over the batch": lambda *_: (0,),
}
