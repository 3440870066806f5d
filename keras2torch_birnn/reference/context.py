"""What every equation of the reference is given besides its layer: where it is, which Keras it is.

An equation is a function ``(layer, inputs, mask, context) -> (output, mask)``. ``mask`` has the
structure of what it belongs to, with None for "no mask"; True marks a step that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.lazy_array import LazyArray
from keras2torch_birnn.spec import Array, Generation, LayerSpec, Structure

# output and its mask
Result: TypeAlias = tuple[Structure, Structure]
Equation: TypeAlias = Callable[[LayerSpec, Structure, Structure, "Context"], Result]


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
    """Where a layer stands in a run.

    ``path`` names the call (``outer#1/inner``), ``place`` the layer, whatever call reaches it
    (``outer/inner``). ``layers`` and ``masks`` collect what the calls give; ``states`` holds what
    stateful layers carry, None where nothing is carried. ``scans`` collects every direction of the
    recurrent layers, None where nobody asks. ``arguments``: how many this call passed, and
    ``call_options`` what else it said (``Schema.call_options``). ``nudge`` changes what every step
    of a recurrent layer reads.
    """

    generation: Generation
    dtype: npt.DTypeLike
    equations: Mapping[str, Equation]
    layers: dict[str, Structure]
    masks: dict[str, Structure]
    states: dict[str, tuple[Array, ...]] | None
    path: str = ""
    place: str = ""
    initial_state: tuple[Array, ...] | None = None
    arguments: int = 1
    call_options: Mapping[str, Any] = field(default_factory=dict)
    own: Equation | None = None
    scans: dict[str, Scan] | None = None
    nudge: Callable[[Array], Array] | None = None

    def inside(self, name: str, call: int = 0) -> Context:
        """The context of call number ``call`` of the layer ``name`` inside this one."""
        step = name if call == 0 else f"{name}#{call}"
        return replace(
            self,
            path=f"{self.path}/{step}" if self.path else step,
            place=f"{self.place}/{name}" if self.place else name,
            initial_state=None,
        )

    def starting(self, initial_state: tuple[Array, ...] | None) -> Context:
        """The same context with the states that the call was given."""
        return replace(self, initial_state=initial_state)

    def aside(self) -> Context:
        """The same place in a run that leaves no trace and carries nothing."""
        return replace(self, layers={}, masks={}, states=None, scans=None)

    def apply(self, layer: LayerSpec, inputs: Structure, mask: Structure) -> Any:
        """Run the equation of the layer's class here; ``own`` is that of plugins' layers."""
        equation = self.equations.get(layer.class_name, self.own)
        if equation is None:
            raise KeyError(layer.class_name)
        return equation(layer, inputs, mask, self)

    def number(self, array: Array) -> Array:
        """The array in the precision of this run."""
        return np.asarray(array).astype(self.dtype)

    def weight(self, layer: LayerSpec, name: str) -> Array:
        """A weight in the precision of this run; one that is still in the file stays there."""
        array = layer.weights[name]
        return array.astype(self.dtype) if isinstance(array, LazyArray) else self.number(array)


# ---- rules that changed between Keras versions, where the spec does not hold them --------------


def _since(generation: Generation, name: str, major: int, minor: int) -> bool:
    """Whether this is ``name`` of at least that version ("2.2.4-tf" is TF 1.13 to 2.1)."""
    numbers = tuple(int(part) for part in generation.version.split(".")[:2] if part.isdigit())
    return generation.name == name and numbers >= (major, minor)


def passed_mask_goes_on(generation: Generation) -> bool:
    """Whether a mask passed as an argument is the one that later layers see.

    Yes in Keras 3 since 3.11 (``Layer.__call__``) and in tf.keras 2.x
    (``Layer._get_input_masks``, 2.15). In multi-backend Keras (``Layer.__call__``, 2.2.4) and in
    TF 1 the mask of the input tensor goes on, whatever was passed.
    """
    return _since(generation, "keras3", 3, 11) or _since(generation, "tf.keras", 2, 3)


def softmax_uses_mask(generation: Generation) -> bool:
    """Whether the Softmax layer looks at its mask: tf.keras from 2.4 on, Keras 3."""
    return generation.name == "keras3" or _since(generation, "tf.keras", 2, 4)


def relu_passes_mask(generation: Generation) -> bool:
    """Whether the ReLU layer passes its mask on: not in tf.keras up to 2.4 (TF 1.14 to 2.4)."""
    return generation.name != "tf.keras" or _since(generation, "tf.keras", 2, 5)


def carried_state_wins(generation: Generation) -> bool:
    """Whether a stateful layer prefers what it carries, unless all zero, to ``initial_state``.

    tf.keras 2.x does (``RNN._process_inputs``, 2.4 and 2.15); the others use ``initial_state``.
    """
    return _since(generation, "tf.keras", 2, 3)


def softmax_zeroes_masked(generation: Generation) -> bool:
    """Whether the Softmax layer gives 0 where it is masked, even if all is: since Keras 3.13."""
    return _since(generation, "keras3", 3, 13)


def mask_of_lists(generation: Generation) -> str:
    """How the masks of a list of tensors become one: "all", "any" or "none".

    All in Keras 2 and tf.keras. ``Layer.__call__`` of Keras 3.0 to 3.3 looks for the mask of the
    list itself and finds none. Since 3.4 any, and values heed masks too (``base_merge.py``).
    """
    if generation.name != "keras3":
        return "all"
    return "any" if _since(generation, "keras3", 3, 4) else "none"


def heads_heed_masks(generation: Generation) -> bool:
    """Whether MultiHeadAttention looks at the masks of its inputs: tf.keras since 2.10, Keras 3."""
    return generation.name == "keras3" or _since(generation, "tf.keras", 2, 10)


def empty_rows_are_zero(generation: Generation, *, by_hand: bool) -> bool:
    """Whether a query with nothing to look at gets weights 0, not equal ones.

    Only where Keras does not call ``ops.dot_product_attention`` (``by_hand``: it drops out, or
    gives the scores) and its Softmax layer zeroes: since 3.13.
    """
    return by_hand and softmax_zeroes_masked(generation)


def mask_enters_time_distributed(generation: Generation) -> bool:
    """Whether TimeDistributed hands its mask to the inner layer: not before Keras 2.2.0."""
    return generation.name in ("tf.keras", "keras3") or _since(generation, "keras2", 2, 2)


def fixed_batch_keeps_mask(generation: Generation) -> bool:
    """Whether TimeDistributed hands on the mask it was given where the batch size is fixed.

    TensorFlow 1.14 to 2.1 do (``TimeDistributed.compute_mask``), though the mask enters the layer.
    """
    return generation.name == "tf.keras" and not _since(generation, "tf.keras", 2, 3)


def smallest_norm(generation: Generation) -> float:
    """What UnitNormalization divides a shorter vector by.

    1e-6 in tf.keras and Keras 3.0 to 3.5 (the square is 1e-12 at least), 1e-12 since 3.6.
    """
    return 1e-12 if _since(generation, "keras3", 3, 6) else 1e-6
