"""A single change of Keras' computation, as a mistake in a port makes it, and how it is applied.

A change replaces the equations of some layers of the reference. If the reference with it gives
what the port gives, then it describes what the port does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure, map_structure

# Place of a layer in the reference (``outer/inner``, ``bi/forward_layer``), and its class: a
# TimeDistributed and the layer in it have the same place.
Key: TypeAlias = tuple[str, str]


class LayerCall(NamedTuple):
    """A call of a layer in the reference: the equation that computes it, and what that is given."""

    equation: Equation
    layer: LayerSpec
    inputs: Structure
    mask: Structure
    context: Context

    @property
    def masks(self) -> tuple[Structure, ...]:
        """The masks of several inputs; none if there is one input, or none has a mask."""
        return tuple(self.mask) if isinstance(self.mask, tuple | list) else ()

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

    def aside(self) -> LayerCall:
        """Return the call of which nothing is collected or carried on."""
        return self._replace(context=self.context.aside())


# A layer's weights by Keras' names
Weights: TypeAlias = Mapping[str, Array]
# The call that a change is made in -> the result
Apply: TypeAlias = Callable[[LayerCall], Result]
# What is applied, and a call with it -> the result
Compute: TypeAlias = Callable[[tuple[Apply, ...], LayerCall], Result]


@dataclass(frozen=True, eq=False)
class Change:
    """A deviation of a port from Keras, in words, and the equations that follow from it.

    ``kind``: a word for programs; ``layer``: path of the layer that the user sees; ``tensors``:
    details on the port's own tensors, in words. ``rank``: changes of one layer with a higher one
    go around those with a lower one: INSIDE, usual (0), AROUND. One without words is no mistake.
    """

    kind: str
    layer: str
    words: str
    applied: Mapping[Key, Apply]
    tensors: tuple[str, ...] = ()
    rank: int = 0


class Maker:
    """Changes of a layer: the path of its call, itself, and its keys in the reference.

    Those of several layers alike, as of both halves, have the keys of all, and one of the layers.
    """

    def __init__(self, path: str, layer: LayerSpec, keys: Collection[Key] = ()) -> None:
        self.path, self.layer = path, layer
        self.keys = keys or [(place_of(path), layer.class_name)]
        self.config: Mapping[str, Any] = layer.config

    def change(self, kind: str, words: str, apply: Apply, rank: int = 0) -> Change:
        """Make a change at every key."""
        return Change(kind, self.path, words, dict.fromkeys(self.keys, apply), rank=rank)


# Kinds of changes that read the outputs of other layers.
_OF_CONNECTIONS = ("other input", "other layer", "other mask", "other state", "other sum", "order")
# Of what replaces the equation itself, and of what becomes of the outputs of both halves.
INSIDE, AROUND = -1, 1


def _apply(
    change: Apply,
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    return change(LayerCall(equation, layer, inputs, mask, context))


def with_changes(
    changes: Sequence[Change], equations: Mapping[str, Equation], compute: Compute
) -> Mapping[str, Equation]:
    """Return the equations of all classes with these changes; later ones go around earlier ones.

    compute: computes a call with changes, given those; not where outputs of other layers are
    read.
    """
    connected = {key for one in changes if one.kind in _OF_CONNECTIONS for key in one.applied}
    by_key: dict[Key, list[Apply]] = {}
    for change in sorted(changes, key=lambda one: one.rank):
        for key, apply in change.applied.items():
            by_key.setdefault(key, []).append(apply)

    def changed(equation: Equation) -> Equation:
        def run(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
            key = context.place, layer.class_name
            applied = by_key.get(key)
            if applied is None:
                return equation(layer, inputs, mask, context)
            one = equation
            for apply in applied:
                one = partial(_apply, apply, one)
            call = LayerCall(one, layer, inputs, mask, context)
            return call.run() if key in connected else compute(tuple(applied), call)

        return run

    if not by_key:
        return equations
    return {name: changed(equation) for name, equation in equations.items()}


# ---- ways to change an equation ------------------------------------------------------------------


def configured(**options: Any) -> Apply:
    """Make a change of a layer's options."""

    return lambda call: call.configured(**options).run()


def settled(**semantics: Any) -> Apply:
    """Make a change of what the version of Keras determines."""

    def apply(call: LayerCall) -> Result:
        changed = replace(call.layer, semantics={**call.layer.semantics, **semantics})
        return call._replace(layer=changed).run()

    return apply


def called_with(**options: Any) -> Apply:
    """Make a change of the arguments of a call that are not tensors."""

    def apply(call: LayerCall) -> Result:
        changed = replace(call.context, call_options={**call.context.call_options, **options})
        return call._replace(context=changed).run()

    return apply


def weighted(change: Callable[[Weights], Weights]) -> Apply:
    """Make a change of a layer's weights: given all of them, it returns those that differ."""

    def apply(call: LayerCall) -> Result:
        weights = {name: np.asarray(array) for name, array in call.layer.weights.items()}
        return call.weighted(change(weights)).run()

    return apply


def weighted_one(name: str, change: Callable[[Array], Array]) -> Apply:
    """Make a change of one of a layer's weights."""
    return weighted(lambda weights: {name: change(weights[name])})


def weighted_as(weights: Weights) -> Apply:
    """Make a change that gives a layer these weights."""
    return lambda call: call.weighted(weights).run()


def only_at(path: str, apply: Apply) -> Apply:
    """Make a change in one call alone of a layer that is called several times."""

    def limited(call: LayerCall) -> Result:
        return apply(call) if f"{call.context.path}/".startswith(f"{path}/") else call.run()

    return limited


def in_one_call(change: Change, path: str) -> Change:
    """Let a change of a layer that is called several times be made in this call alone."""
    number = int(path.rpartition("#")[2].partition("/")[0]) + 1 if "#" in path else 1
    applied = {key: only_at(path, apply) for key, apply in change.applied.items()}
    return replace(change, words=f"in call {number} alone: {change.words}", applied=applied)


def reading(change: Callable[[Array], Array]) -> Apply:
    """Make a change of a layer's input; constants of an operation stay as they are."""

    def read(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, np.ndarray) else leaf

    return lambda call: call._replace(inputs=map_structure(read, call.inputs)).run()


def reading_one(number: int, change: Callable[[Array], Array]) -> Apply:
    """Make a change of one of a layer's inputs."""

    def apply(call: LayerCall) -> Result:
        numbers = count()

        def read(leaf: Any) -> Any:
            return change(np.asarray(leaf)) if next(numbers) == number else leaf

        return call._replace(inputs=map_structure(read, call.inputs)).run()

    return apply


def followed_by(change: Callable[[Array], Array]) -> Apply:
    """Make a change of a layer's output, its first one if there are several."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = call.run()
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:]), out_mask
        return change(output), out_mask

    return apply


def masked_by(change: Callable[[Array], Array | None]) -> Apply:
    """Make a change of the mask that a layer uses, not of the one that goes on."""

    def apply(call: LayerCall) -> Result:
        if not isinstance(call.mask, np.ndarray):
            return call.run()
        output, _ = call._replace(mask=change(call.mask)).run()
        _, out_mask = call.aside().run()
        return output, out_mask

    return apply


def left_out(call: LayerCall) -> Result:
    """Give the input, if the layer keeps its shape."""
    output, out_mask = call.run()
    if np.shape(output) != np.shape(call.inputs):
        raise ValueError("another shape")
    return call.inputs, out_mask


def without_mask(call: LayerCall) -> Result:
    """Give no mask to later layers."""
    output, out_mask = call.run()
    return output, map_structure(lambda _: None, out_mask)


def masks_given(change: Callable[[Array, Structure], Array]) -> Apply:
    """Make a change of the mask that a layer makes: from that mask and from the layer's input."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = call.run()
        if not isinstance(out_mask, np.ndarray):
            return output, out_mask
        return output, change(out_mask.astype(bool), call.inputs)

    return apply


def to_end(mask: Array) -> Array:
    """Move the padding of every row to its end, as lengths alone would tell it."""
    count = np.asarray(mask).astype(bool).sum(axis=1)
    ends: Array = np.arange(mask.shape[1])[None] < count[:, None]
    return ends
