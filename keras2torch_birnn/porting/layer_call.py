"""A call of a layer in the reference as it was recorded, and ways to compute it otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves, map_structure

# Place of a layer in the reference (``outer/inner``, ``bi/forward_layer``), and its class: a
# TimeDistributed and the layer in it have the same place.
Key: TypeAlias = tuple[str, str]
# A layer's weights by Keras' names
Weights: TypeAlias = Mapping[str, Array]


class LayerCall(NamedTuple):
    """A call of a layer in the reference: the equation that computes it, and what that is given."""

    equation: Equation
    layer: LayerSpec
    inputs: Structure
    mask: Structure
    context: Context

    def run(self) -> Result:
        """Compute the output and its mask."""
        return self.equation(self.layer, self.inputs, self.mask, self.context)

    def configured(self, **options: Any) -> LayerCall:
        """Return the call with other options of the layer."""
        config = {**self.layer.config, **options}
        return self._replace(layer=replace(self.layer, config=config))

    def weighted(self, weights: Weights) -> LayerCall:
        """Return the call with other arrays for some weights of the layer."""
        own = {**self.layer.weights, **weights}
        return self._replace(layer=replace(self.layer, weights=own))

    def with_parts(self, parts: Mapping[str, LayerSpec]) -> LayerCall:
        """Return the call with other layers inside of the layer."""
        return self._replace(layer=replace(self.layer, parts=parts))

    def starting(self, states: tuple[Array, ...] | None) -> LayerCall:
        """Return the call with these initial states."""
        return self._replace(context=self.context.starting(states))

    def rewritten(self, rewrites: Mapping[Key, Apply]) -> Result:
        """Compute the call with its own equation or those of layers inside of it rewritten."""
        classes = {class_name for _, class_name in rewrites}
        changed = {
            name: partial(_rewrite, rewrites, all_equations()[name])
            for name in classes
            if name in all_equations()
        }
        context = self.context.with_fields(equations={**all_equations(), **changed})
        equation = changed.get(self.layer.class_name, self.equation)
        return equation(self.layer, self.inputs, self.mask, context)


# The call that a rewrite is made in -> the result
Apply: TypeAlias = Callable[[LayerCall], Result]


@cache
def all_equations() -> Mapping[str, Equation]:
    """Return the reference's equations of all classes, without looking them up page by page."""
    return dict(EQUATIONS)


def _rewrite(
    rewrites: Mapping[Key, Apply],
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    call = LayerCall(equation, layer, inputs, mask, context)
    apply = rewrites.get((context.place, layer.class_name))
    return call.run() if apply is None else apply(call)


class Rewrite(NamedTuple):
    """A usual mistake: a word for programs, what the port does in words, and how it is computed.

    ``keys``: the layers inside of the call that it changes; none: the call's own.
    """

    kind: str
    words: str
    apply: Apply
    keys: tuple[Key, ...] = ()


# ---- ways to rewrite a call ----------------------------------------------------------------------


def configured(**options: Any) -> Apply:
    """Compute a layer with other options."""
    return lambda call: call.configured(**options).run()


def weighted(change: Callable[[Weights], Weights]) -> Apply:
    """Compute a layer with other weights: ``change`` takes all, and returns those that differ."""

    def apply(call: LayerCall) -> Result:
        weights = {name: np.asarray(array) for name, array in call.layer.weights.items()}
        return call.weighted(change(weights)).run()

    return apply


def weighted_one(name: str, change: Callable[[Array], Array]) -> Apply:
    """Compute a layer with another array for one of its weights."""
    return weighted(lambda weights: {name: change(weights[name])})


def reading(change: Callable[[Array], Array]) -> Apply:
    """Compute a layer on another input; constants of an operation stay as they are."""

    def read(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, np.ndarray) else leaf

    return lambda call: call._replace(inputs=map_structure(read, call.inputs)).run()


def followed_by(change: Callable[[Array], Array], before: Apply = LayerCall.run) -> Apply:
    """Change a layer's output, its first one if there are several."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = before(call)
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:]), out_mask
        return change(output), out_mask

    return apply


def masked_by(change: Callable[[Array], Array | None], *, goes_on: bool = False) -> Apply:
    """Compute a layer with another mask (B, T); ``goes_on``: later layers see that one, too."""

    def moved(mask: Any) -> Any:
        return change(mask.astype(bool)) if isinstance(mask, np.ndarray) else mask

    def apply(call: LayerCall) -> Result:
        if not any(isinstance(one, np.ndarray) for one in leaves(call.mask)):
            raise ValueError("there is no mask")
        output, out_mask = call._replace(mask=map_structure(moved, call.mask)).run()
        return output, out_mask if goes_on else call.run()[1]

    return apply


def to_end(mask: Array) -> Array:
    """Move the padding of every row to its end, as lengths alone would tell it."""
    count = np.asarray(mask).astype(bool).sum(axis=1)
    ends: Array = np.arange(mask.shape[1])[None] < count[:, None]
    return ends


def valid_steps(mask: Structure, sequence: Array) -> Array:
    """Return the mask (B, T) of a sequence (B, T, H), all true if it has none."""
    if isinstance(mask, np.ndarray):
        return mask.astype(bool)
    return np.ones(sequence.shape[:2], bool)


# ---- activations ---------------------------------------------------------------------------------

# Activations in words -> as the reference has them
ACTIVATIONS: Mapping[str, Any] = {
    "no activation": "linear",
    "Keras 2's hard_sigmoid, clip(0.2 x + 0.5, 0, 1)": "hard_sigmoid_0.2",
    "torch's hardsigmoid, clip(x / 6 + 0.5, 0, 1)": "hard_sigmoid_1/6",
    **{
        name: name
        for name in (
            "relu sigmoid tanh softmax log_softmax elu selu gelu silu softplus softsign relu6"
        ).split()
    },
    **{
        f"leaky_relu of slope {slope}": {"name": "leaky_relu", "negative_slope": slope}
        for slope in (0.01, 0.2, 0.3)
    },
    "gelu by tanh": {"name": "gelu", "approximate": True},
}


def activation_rewrites(option: str, own: Any, where: str) -> Iterator[Rewrite]:
    """Yield other activations than a layer's own one, in an option of the layer."""
    names = [words for words, value in ACTIVATIONS.items() if value == own]
    shown = names[0] if names else own if isinstance(own, str) else own["name"]
    for words, value in ACTIVATIONS.items():
        if value != own:
            apply = configured(**{option: value})
            yield Rewrite("activation", f"{words} {where}, Keras has {shown}", apply)
