"""Known mistakes where one tensor is made of all steps, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from keras2torch_birnn.porting.changes import Apply, Change, LayerCall, Maker, configured, masked_by
from keras2torch_birnn.porting.recurrent_changes import CELLS, first_step, last_step
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, LayerSpec, map_structure


def pool_mask_changes(maker: Maker) -> Iterator[Change]:
    """Yield poolings that do not use their mask as Keras does."""
    own = maker.layer.class_name
    yield maker.change(
        "mask missing", "the mask is not used: padding is averaged, too", masked_by(lambda _: None)
    )
    for words, pool in MASKED_POOLINGS.items():
        yield maker.change("mask rule", f"{words}, Keras has {own}", partial(pool, None))


def _pooled(pool: Callable[[Array, Array], Array], path: str | None, call: LayerCall) -> Result:
    """Pool the steps that count by the layer's own mask, or by that of the call ``path``."""
    _, out_mask = call.run()
    steps = call.mask if path is None else call.context.masks[path]
    if not isinstance(steps, np.ndarray) or steps.shape != np.shape(call.inputs)[:2]:
        raise ValueError("there is no mask")
    return pool(np.asarray(call.inputs, np.float64), steps.astype(bool)[..., np.newaxis]), out_mask


def _added(x: Array, valid: Array) -> Array:
    total: Array = np.where(valid, x, 0).sum(axis=1)
    return total


# Poolings of x (B, T, F) and the steps that count (B, T, 1)
_POOLINGS: Mapping[str, Callable[[Array, Array], Array]] = {
    "the sum of the steps that count is divided by the number of all steps": (
        lambda x, valid: _added(x, valid) / x.shape[1]
    ),
    "the sum of all steps is divided by the number of those that count": (
        lambda x, valid: x.sum(axis=1) / valid.sum(axis=1)
    ),
    "the sum of the steps that count is divided by the root of their number": (
        lambda x, valid: _added(x, valid) / np.sqrt(valid.sum(axis=1))
    ),
    "the sum of the steps that count is divided by their number - 1": (
        lambda x, valid: _added(x, valid) / np.maximum(valid.sum(axis=1) - 1, 1)
    ),
    "the sum of the steps that count is divided by their number + 1": (
        lambda x, valid: _added(x, valid) / (valid.sum(axis=1) + 1)
    ),
    "the mean of the steps that count is taken": (
        lambda x, valid: _added(x, valid) / valid.sum(axis=1)
    ),
    "the maximum of the steps that count is taken": (
        lambda x, valid: np.where(valid, x, -np.inf).max(axis=1)
    ),
    "the maximum is taken with zeros where nothing counts": (
        lambda x, valid: np.where(valid, x, 0).max(axis=1)
    ),
    "the steps that count are added up": _added,
}
MASKED_POOLINGS: Mapping[str, Callable[..., Result]] = {
    words: partial(_pooled, pool) for words, pool in _POOLINGS.items()
}


def sum_changes(maker: Maker) -> Iterator[Change]:
    """Yield a sum in the place of a mean."""
    if maker.layer.class_name == "GlobalAveragePooling1D":
        words = "it adds up the steps, Keras takes their mean"
        yield maker.change("other operation", words, _added_up)


def _added_up(call: LayerCall) -> Result:
    output, out_mask = call.run()
    count = np.full(output.shape[:1], np.shape(call.inputs)[1])
    if isinstance(call.mask, np.ndarray):
        count = call.mask.astype(bool).sum(axis=1)
    return output * count.reshape(-1, *[1] * (output.ndim - 1)), out_mask


def reading_part(start: int, stop: int, steps: int) -> Apply:
    """Read a part of the steps of each input (B, steps, ...); an output of such steps is put back.

    Zeros are at the steps that are not read.
    """

    def cut(x: Array | None) -> Array | None:
        return x[:, start:stop] if x is not None and x.shape[1:2] == (steps,) else x

    def put_back(x: Array | None, least: int = 2) -> Array | None:
        if x is None or x.ndim < least or x.shape[1] != stop - start:
            return x
        ends: Array = np.pad(x, [(0, 0), (start, steps - stop), *[(0, 0)] * (x.ndim - 2)])
        return ends

    def apply(call: LayerCall) -> Result:
        output, out_mask = call._replace(
            inputs=map_structure(cut, call.inputs), mask=map_structure(cut, call.mask)
        ).run()
        whole = map_structure(partial(put_back, least=3), output)  # (B, F) has no steps
        return whole, map_structure(put_back, out_mask)

    return apply


def mixes_steps(layer: LayerSpec) -> bool:
    """Tell whether a layer computes a step from others, too."""
    return reads_mask(layer) or has_windows(layer)


def reads_mask(layer: LayerSpec) -> bool:
    """Tell whether a layer computes a step from others that its mask may leave out."""
    return layer.class_name in _MIXING


def has_windows(layer: LayerSpec) -> bool:
    """Tell whether a layer is a convolution or a pooling of windows."""
    return not {"kernel_size", "pool_size"}.isdisjoint(layer.config)


_MIXING = (
    *CELLS,
    "Bidirectional",
    "Attention",
    "AdditiveAttention",
    "MultiHeadAttention",
    "GlobalAveragePooling1D",
    "GlobalMaxPooling1D",
)


def norm_changes(maker: Maker) -> Iterator[Change]:
    """Yield a Euclidean norm in the place of a sum."""
    if maker.layer.class_name == "ops.Sum":
        words = "it computes the Euclidean norm (the root of the sum of squares), Keras has Sum"
        yield maker.change("other operation", words, _root_of_squares)


def _root_of_squares(call: LayerCall) -> Result:
    squares = map_structure(lambda x: x**2 if isinstance(x, np.ndarray) else x, call.inputs)
    output, out_mask = call._replace(inputs=squares).run()
    return np.sqrt(output), out_mask


def one_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield one step, or another reduction, in the place of a reduction over all steps."""
    own = maker.layer.class_name
    for words, pick in _ONE_STEP.items():
        yield maker.change(
            "other operation", f"takes {words}, Keras has {own}", partial(_picked, pick)
        )


def other_step_changes(maker: Maker) -> Iterator[Change]:
    """Yield other steps of a sequence (B, T, F) than the one that a slice takes."""
    for words, pick in _STEPS.items():
        yield maker.change("last state", words, partial(_picked, pick))


def moved_key_changes(maker: Maker) -> Iterator[Change]:
    """Yield a slice that begins or ends one place off, or at the other end of its axis."""
    key = maker.config["key"]
    for place, own in enumerate(key):
        for moved in dict.fromkeys(_moved_keys(own)):
            if moved != own:
                told = f"along its axis {place} it takes {_shown(moved)}, Keras {_shown(own)}"
                there = (*key[:place], moved, *key[place + 1 :])
                yield maker.change("steps", told, configured(key=there))


def _moved_keys(own: Any) -> Iterator[Any]:
    if isinstance(own, int):
        yield from (own + 1, own - 1, 0, -1)
    if not isinstance(own, tuple):
        return
    start, stop, step = own
    for more in product((0, 1, -1), repeat=2):
        yield *(x + n if isinstance(x, int) else x for x, n in zip(own, more, strict=False)), step
    if isinstance(start, int) and stop is None:
        yield None, -start, step
    if isinstance(stop, int) and start is None:
        yield -stop, None, step
    yield None, None, step


def _shown(key: Any) -> str:
    if not isinstance(key, tuple):
        return f"place {key}"
    return ":".join("" if bound is None else str(bound) for bound in key[:2])


def _picked(pick: Callable[[Array], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    found = pick(np.asarray(call.inputs)) if np.ndim(call.inputs) == 3 else None
    if found is None or found.shape != np.shape(output):
        raise ValueError("it takes no step")
    return found, out_mask


def _ends_of_halves(y: Array) -> Array:
    """Return the last step of the first half of the features, and the first of the second half."""
    half = y.shape[-1] // 2
    ends: Array = np.concatenate([y[:, -1, :half], y[:, 0, half:]], axis=-1)
    return ends


_ONE_STEP: Mapping[str, Callable[[Array], Array]] = {
    "the last step": last_step,
    "the first step": first_step,
    "the last states of both halves (h_n)": _ends_of_halves,
    "the least value of all steps": lambda y: y.min(axis=1),
    "the median of all steps (of two the lower one)": (
        lambda y: np.sort(y, axis=1)[:, (y.shape[1] - 1) // 2]
    ),
    "the standard deviation of all steps": lambda y: y.std(axis=1),
    "the standard deviation of all steps, of n - 1": lambda y: y.std(axis=1, ddof=1),
    "the root of the mean square of all steps": lambda y: np.sqrt(np.square(y).mean(axis=1)),
    "the length of all steps (the root of the sum of squares)": (
        lambda y: np.sqrt(np.square(y).sum(axis=1))
    ),
    "the logarithm of the sum of exp of all steps": lambda y: np.log(np.exp(y).sum(axis=1)),
}
_STEPS: Mapping[str, Callable[[Array], Array]] = {
    "takes the last step of the forward half and the first of the backward half (as h_n has them), "
    "Keras takes one step of both": _ends_of_halves,
    "takes the first step, Keras takes another one": first_step,
    "takes the last step, Keras takes another one": last_step,
}
