"""Known mistakes that can be made in any layer, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from keras2torch_birnn.porting.axis_changes import view_changes
from keras2torch_birnn.porting.changes import Apply, Change, Maker, followed_by, left_out, reading
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.schema.embedding import EMBEDDINGS
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves

AFTER = ("relu", "sigmoid", "softmax", "log_softmax", "tanh")


def general_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes that can be made in any layer."""
    yield maker.change("left out", "it is left out", left_out)
    for name in AFTER:
        after = followed_by(partial(activate, name))
        yield maker.change("extra", f"{name} follows it, which Keras does not have", after)
    words = "a LayerNorm without weights follows it, which Keras does not have"
    yield maker.change("extra", words, followed_by(_normalized))
    for words, factor in _FACTORS.items():
        yield maker.change("extra", f"its output is {words}", followed_by(partial(_times, factor)))
    for words, power in _POWERS_OF_WIDTH.items():
        yield maker.change("extra", f"its output is {words}", _scaled_by_width(power))
    yield from view_changes(maker)
    yield maker.change("extra", "it is applied twice, Keras does it once", _twice)
    words = "its input is added to its output, which Keras does not do"
    yield maker.change("extra", words, _with_input)
    turned = followed_by(lambda y: y[:, ::-1] if y.ndim > 2 else y)
    yield maker.change("direction", "its steps come in reversed order", turned)
    for words, move in _MOVES.items():
        yield maker.change("steps", f"its steps come one step too {words}", followed_by(move))
    if maker.layer.class_name in EMBEDDINGS:
        for words, move in _MOVES.items():
            yield maker.change("steps", f"its ids come one step too {words}", reading(move))
    yield maker.change("left out", "zeros stand in its place", followed_by(np.zeros_like))


_FACTORS: Mapping[str, float] = {"doubled": 2.0, "halved": 0.5, "negated": -1.0}
_POWERS_OF_WIDTH: Mapping[str, float] = {
    "divided by the square root of the width": -0.5,
    "multiplied by the square root of the width": 0.5,
}


def _twice(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = _of_its_shape(equation(layer, inputs, mask, context), inputs)
    more, _ = equation(layer, output, mask, context.aside())
    return more, out_mask


def _one_later(x: Array) -> Array:
    """Move the steps of (B, T, ...) one on; zeros come first."""
    if x.ndim < 2:
        raise ValueError("it has no steps")
    later: Array = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return later


def _one_earlier(x: Array) -> Array:
    """Move the steps of (B, T, ...) one back; zeros come last."""
    return _one_later(x[:, ::-1])[:, ::-1]


_MOVES: Mapping[str, Callable[[Array], Array]] = {"late": _one_later, "early": _one_earlier}


def _with_input(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = _of_its_shape(equation(layer, inputs, mask, context), inputs)
    return output + inputs, out_mask


def _of_its_shape(result: Result, inputs: Structure) -> Result:
    """Return the result of a layer, if its output has the shape of its input."""
    output, _ = result
    if np.shape(output) != np.shape(inputs) or isinstance(output, tuple):
        raise ValueError("another shape")
    return result


def _normalized(y: Array) -> Array:
    """Normalize the last axis, with torch's epsilon."""
    if y.shape[-1] < 2:
        raise ValueError("nothing to normalize")
    scale = np.sqrt(y.var(axis=-1, keepdims=True) + 1e-5)
    normalized: Array = (y - y.mean(axis=-1, keepdims=True)) / scale
    return normalized


def scaled_by(path: str, place: str, layer: LayerSpec, factor: float) -> Change:
    """Return the change that multiplies a layer's output."""
    words = f"its output is multiplied by {factor:.6g}"
    apply = followed_by(partial(_times, factor))
    return Change("extra", path, words, {(place, layer.class_name): apply})


def read_scaled(path: str, place: str, layer: LayerSpec, factor: float) -> Change:
    """Return the change that multiplies a layer's input."""
    words = f"its input is multiplied by {factor:.6g}"
    apply = reading(partial(_times, factor))
    return Change("extra", path, words, {(place, layer.class_name): apply})


def _times(factor: float, y: Array) -> Array:
    return factor * y


def _scaled_by_width(power: float) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, out_mask = equation(layer, inputs, mask, context)
        first = next(iter(leaves(inputs)))
        width = output.shape[-1] if layer.class_name in EMBEDDINGS else np.shape(first)[-1]
        return output * width**power, out_mask

    return apply
