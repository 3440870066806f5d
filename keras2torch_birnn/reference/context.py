"""The context of an evaluation, passed to every equation of the reference, and version rules.

An equation is a function ``(layer, inputs, mask, context) -> (output, mask)``. ``mask`` has the
structure of what it belongs to, with None for "no mask"; True marks a step that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.spec import Array, Generation, LayerSpec, Structure

# output and its mask
Result: TypeAlias = tuple[Structure, Structure]
Equation: TypeAlias = Callable[[LayerSpec, Structure, Structure, "Context"], Result]


@dataclass(frozen=True)
class OwnEquations:
    """Equations of plugins: of a layer, or of a step of a cell; and of a cell's initial states.

    ``initial_states``: ``(cell, rows, context) -> arrays (rows, size)``.
    """

    layer: Equation
    initial_states: Callable[[LayerSpec, int, Context], tuple[Array, ...]]


class Scan(NamedTuple):
    """One direction of a recurrent layer, step by step: all (B, T, ...) in the order of time.

    ``before`` and ``after``: the states around each step; ``output``: what the cell gives there,
    at a masked step as well. ``start``: the states (B, ...) before the first step that is read.
    """

    x: Array
    mask: Array | None
    start: tuple[Array, ...]
    before: tuple[Array, ...]
    output: Array
    after: tuple[Array, ...]


@dataclass(frozen=True)
class Context:
    """Evaluation context of one layer in a run of the reference.

    ``path`` names the call (``outer#1/inner``), ``place`` the layer, whatever call reaches it
    (``outer/inner``). ``layers`` and ``masks`` collect what the calls give; ``states`` holds what
    stateful layers carry, None where nothing is carried. ``scans`` collects every direction of the
    recurrent layers, None if they are not needed; nothing goes into ``layers`` and ``masks``
    without ``keep``. ``arguments``: the number of tensors in this
    call, and ``call_options`` its other arguments (``Schema.call_options``). ``nudge`` changes what
    every step of a recurrent layer reads.
    """

    generation: Generation
    dtype: npt.DTypeLike
    equations: Mapping[str, Equation]
    layers: dict[str, Structure] = field(default_factory=dict)
    masks: dict[str, Structure] = field(default_factory=dict)
    states: dict[str, tuple[Array, ...]] | None = None
    path: str = ""
    place: str = ""
    initial_state: tuple[Array, ...] | None = None
    arguments: int = 1
    call_options: Mapping[str, Any] = field(default_factory=dict)
    own: OwnEquations | None = None
    scans: dict[str, Scan] | None = None
    nudge: Callable[[Array], Array] | None = None
    keep: bool = True

    def with_fields(self, **fields: Any) -> Context:
        """Return this context with other values of some fields: ``replace`` in a fifth of the time.

        Every call of every layer makes a few of them, for arrays of few numbers.
        """
        other = object.__new__(Context)
        vars(other).update(vars(self), **fields)
        return other

    def inside(self, name: str, call: int = 0) -> Context:
        """Return the context of call number ``call`` of the layer ``name`` inside this one."""
        step = name if call == 0 else f"{name}#{call}"
        return self.with_fields(
            path=f"{self.path}/{step}" if self.path else step,
            place=f"{self.place}/{name}" if self.place else name,
            initial_state=None,
        )

    def starting(self, initial_state: tuple[Array, ...] | None) -> Context:
        """Return this context with the initial states of the call."""
        return self.with_fields(initial_state=initial_state)

    def aside(self) -> Context:
        """Return this context for a call of which nothing is collected or carried."""
        return self.with_fields(keep=False, states=None, scans=None)

    def apply(self, layer: LayerSpec, inputs: Structure, mask: Structure) -> Any:
        """Run the equation of the layer's class; ``own`` is that of plugins' layers."""
        own = None if self.own is None else self.own.layer
        equation = self.equations.get(layer.class_name, own)
        if equation is None:
            raise KeyError(layer.class_name)
        return equation(layer, inputs, mask, self)

    def number(self, array: Array) -> Array:
        """Return the array in the precision of this run."""
        return np.asarray(array).astype(self.dtype)

    def weight(self, layer: LayerSpec, name: str) -> Array:
        """Return a weight in the precision of this run."""
        return self.number(layer.weights[name])


# ---- rules that changed between Keras versions, where the spec does not hold them --------------


def _since(generation: Generation, name: str, major: int, minor: int) -> bool:
    """Tell whether this is ``name`` of at least that version."""
    return generation.name == name and generation.numbers >= (major, minor)


def passed_mask_goes_on(generation: Generation) -> bool:
    """Tell whether a mask passed as an argument is the one that later layers see.

    Yes in Keras 3 since 3.11 (``Layer.__call__``) and in tf.keras 2.x
    (``Layer._get_input_masks``, 2.15). In multi-backend Keras (``Layer.__call__``, 2.2.4) and in
    TF 1 later layers see the mask of the input tensor, whatever was passed.
    """
    return _since(generation, "keras3", 3, 11) or _since(generation, "tf.keras", 2, 3)


def softmax_uses_mask(generation: Generation) -> bool:
    """Tell whether the Softmax layer uses its mask: tf.keras from 2.4 on, Keras 3."""
    return generation.name == "keras3" or _since(generation, "tf.keras", 2, 4)


def relu_passes_mask(generation: Generation) -> bool:
    """Tell whether ReLU passes its mask on: not in tf.keras up to 2.4 (TF 1.14 to 2.4)."""
    return generation.name != "tf.keras" or _since(generation, "tf.keras", 2, 5)


def carried_state_wins(generation: Generation) -> bool:
    """Tell whether a carried state, unless all zero, takes precedence over ``initial_state``.

    tf.keras 2.x does (``RNN._process_inputs``, 2.4 and 2.15); the others use ``initial_state``.
    """
    return _since(generation, "tf.keras", 2, 3)


def states_are_asked(generation: Generation) -> bool:
    """Tell whether an RNN asks its cell for the first states: in tf.keras and Keras 3."""
    return generation.name in ("tf.keras", "keras3")


def softmax_zeroes_masked(generation: Generation) -> bool:
    """Tell whether Softmax is 0 where it is masked, even if all is: since Keras 3.13."""
    return _since(generation, "keras3", 3, 13)


def mask_of_lists(generation: Generation) -> str:
    """Return how the masks of a list of tensors are merged: "all", "any" or "none".

    All in Keras 2 and tf.keras. ``Layer.__call__`` of Keras 3.0 to 3.3 looks for the mask of the
    list itself and finds none. Since 3.4 any, and values use masks too (``base_merge.py``).
    """
    if generation.name != "keras3":
        return "all"
    return "any" if _since(generation, "keras3", 3, 4) else "none"


def heads_use_masks(generation: Generation) -> bool:
    """Tell whether MultiHeadAttention uses its inputs' masks: tf.keras since 2.10, Keras 3."""
    return generation.name == "keras3" or _since(generation, "tf.keras", 2, 10)


def empty_rows_are_zero(generation: Generation, *, by_hand: bool) -> bool:
    """Tell whether a query without any valid key has attention weights 0, not equal ones.

    Only where Keras does not call ``ops.dot_product_attention`` (``by_hand``: with dropout, or if
    the scores are returned) and its Softmax layer zeroes: since 3.13.
    """
    return by_hand and softmax_zeroes_masked(generation)


def masked_scores_are_replaced(generation: Generation, *, by_hand: bool) -> bool:
    """Tell whether -1e9 replaces a masked score, to which it is added otherwise.

    By ``ops.dot_product_attention``, which Keras calls since 3.7 if not ``by_hand``; and by its
    Softmax layer since 3.13.
    """
    uses_function = _since(generation, "keras3", 3, 7) and not by_hand
    return uses_function or softmax_zeroes_masked(generation)


def mask_enters_time_distributed(generation: Generation) -> bool:
    """Tell whether TimeDistributed passes its mask to the inner layer: not before Keras 2.2.0."""
    return generation.name in ("tf.keras", "keras3") or _since(generation, "keras2", 2, 2)


def fixed_batch_keeps_mask(generation: Generation) -> bool:
    """Tell whether TimeDistributed returns its input's mask where the batch size is fixed.

    TensorFlow 1.14 to 2.1 do (``TimeDistributed.compute_mask``), though the mask enters the layer.
    """
    return generation.name == "tf.keras" and not _since(generation, "tf.keras", 2, 3)


def smallest_norm(generation: Generation) -> float:
    """Return the norm by which UnitNormalization divides a shorter vector.

    1e-6 in tf.keras and Keras 3.0 to 3.5 (the square is 1e-12 at least), 1e-12 since 3.6.
    """
    return 1e-12 if _since(generation, "keras3", 3, 6) else 1e-6
