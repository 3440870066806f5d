"""Known mistakes where one tensor is made of all steps, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from keras2torch_birnn.porting.changes import Apply, Change, Maker, masked_by
from keras2torch_birnn.porting.recurrent_changes import first_step, last_step
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def pool_mask_changes(maker: Maker) -> Iterator[Change]:
    """Yield a pooling that does not use its mask."""
    yield maker.change(
        "mask missing", "the mask is not used: padding is averaged, too", masked_by(lambda _: None)
    )


def sum_changes(maker: Maker) -> Iterator[Change]:
    """Yield a sum in the place of a mean."""
    if maker.layer.class_name == "GlobalAveragePooling1D":
        words = "it adds up the steps, Keras takes their mean"
        yield maker.change("other operation", words, _added_up)


def _added_up(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    count = np.full(output.shape[:1], np.shape(inputs)[1])
    if isinstance(mask, np.ndarray):
        count = mask.astype(bool).sum(axis=1)
    return output * count.reshape(-1, *[1] * (output.ndim - 1)), out_mask


def one_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield one step in the place of a reduction over all steps."""
    own = maker.layer.class_name
    for words, pick in (("last", last_step), ("first", first_step)):
        apply = _picked(pick)
        yield maker.change("other operation", f"takes the {words} step, Keras has {own}", apply)


def other_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield other steps of a sequence (B, T, F) than the one that a slice takes."""
    for words, pick in _STEPS.items():
        yield maker.change("last state", words, _picked(pick))


def _picked(pick: Callable[[Array], Array]) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, out_mask = equation(layer, inputs, mask, context)
        found = pick(np.asarray(inputs)) if np.ndim(inputs) == 3 else None
        if found is None or found.shape != np.shape(output):
            raise ValueError("it takes no step")
        return found, out_mask

    return apply


def _ends_of_halves(y: Array) -> Array:
    """Return the last step of the first half of the features, and the first of the second half."""
    half = y.shape[-1] // 2
    ends: Array = np.concatenate([y[:, -1, :half], y[:, 0, half:]], axis=-1)
    return ends


_STEPS: Mapping[str, Callable[[Array], Array]] = {
    "takes the last step of the forward half and the first of the backward half (as h_n has them), "
    "Keras takes one step of both": _ends_of_halves,
    "takes the first step, Keras takes another one": first_step,
    "takes the last step, Keras takes another one": last_step,
}
