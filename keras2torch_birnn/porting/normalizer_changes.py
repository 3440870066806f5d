"""Known mistakes in a LayerNormalization written by hand, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import Apply
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Axes: TypeAlias = tuple[int, ...]
# x, the axes to normalize, epsilon -> x normalized, before gamma and beta
Formula: TypeAlias = Callable[[Array, Axes, float], Array]
# number of axes of x, Keras' axes -> other ones
Choice: TypeAlias = Callable[[int, Axes], Axes]


def layer_norm_changes(layer: LayerSpec) -> Iterator[tuple[str, str, Apply]]:
    """Yield wrong formulas and wrong axes, as kind, words and change."""
    if layer.config["rms_scaling"]:
        return
    for words, formula in _FORMULAS.items():
        yield "formula", words, _computed(formula, lambda _, own: own)
    for words, choose in _AXES.items():
        yield "axis", f"{words}, Keras over {_shown(layer)}", _computed(_usual, choose)


def _shown(layer: LayerSpec) -> str:
    axes = tuple(layer.config["axis"])
    if axes == (-1,):
        return "the last axis"
    return f"{'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))}"


def _computed(formula: Formula, choose: Choice) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        x = context.number(np.asarray(inputs))
        own = tuple(sorted(axis % x.ndim for axis in layer.config["axis"]))
        y = formula(x, choose(x.ndim, own), layer.config["epsilon"])
        shape = tuple(size if axis in own else 1 for axis, size in enumerate(x.shape))
        if layer.config["scale"]:
            y = y * context.weight(layer, "gamma").reshape(shape)
        if layer.config["center"]:
            y = y + context.weight(layer, "beta").reshape(shape)
        _, out_mask = equation(layer, inputs, mask, context)
        return y, out_mask

    return apply


def _centered(x: Array, axes: Axes) -> Array:
    centered: Array = x - x.mean(axis=axes, keepdims=True)
    return centered


def _usual(x: Array, axes: Axes, epsilon: float) -> Array:
    normalized: Array = _centered(x, axes) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    return normalized


def _unbiased(x: Array, axes: Axes) -> Array:
    """Return the variance that divides by n - 1, as ``torch.var`` does if not told otherwise."""
    if np.prod([x.shape[axis] for axis in axes]) < 2:
        raise ValueError("one value has no such variance")
    variance: Array = x.var(axis=axes, keepdims=True, ddof=1)
    return variance


# What is computed -> its formula
_FORMULAS: Mapping[str, Formula] = {
    "its variance divides by n - 1 (as torch.var does), Keras' by n": (
        lambda x, axes, e: _centered(x, axes) / np.sqrt(_unbiased(x, axes) + e)
    ),
    "it divides by torch.std (of n - 1) + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: _centered(x, axes) / (np.sqrt(_unbiased(x, axes)) + e)
    ),
    "it divides by sqrt(variance) + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: _centered(x, axes) / (x.std(axis=axes, keepdims=True) + e)
    ),
    "it divides by variance + epsilon, Keras by sqrt(variance + epsilon)": (
        lambda x, axes, e: _centered(x, axes) / (x.var(axis=axes, keepdims=True) + e)
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
