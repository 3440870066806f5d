"""New values for the arrays of a file, from the tensors of a trained model.

Elements that the model still has as they were read stay as they are. All others must be held
exactly by the dtype of the file, unless rounding is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.errors import WeightMismatchError, in_place, printable
from keras2torch_birnn.layers.origins import Copies, Positions
from keras2torch_birnn.readers.store import StoredArray
from keras2torch_birnn.spec import Array
from keras2torch_birnn.trainers.weight_places import Inverse, Located

_SAME_SIZE: Mapping[int, torch.dtype] = {
    1: torch.int8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}
# The largest rounding errors of bfloat16 (relative), and of a denormal float16 (absolute).
_ROUNDED = (2.0**-8, 2.0**-25)


@dataclass(frozen=True)
class Trained:
    """Tensors of a trained model by name, on the CPU.

    ``read_as``: the float dtype in which the file's weights are read. ``rounding``: values may be
    rounded to the dtype of the file.
    """

    tensors: Mapping[str, Tensor]
    read_as: np.dtype[Any]
    rounding: bool = False

    def differs(self, values: Array, now: Tensor) -> Array:
        """Tell for each element whether it is not what the value in the file is read as."""
        native = torch.from_numpy(np.ascontiguousarray(values, dtype=self.read_as))
        return ~_same_bits(native.to(now.dtype), now).numpy()


def _same_bits(first: Tensor, second: Tensor) -> Tensor:
    """Compare two tensors of one dtype and shape, bit by bit."""
    kind = _SAME_SIZE[first.element_size()]
    return first.contiguous().view(kind) == second.contiguous().view(kind)


def find_changed(located: Located, trained: Trained) -> dict[str, Array]:
    """Find the arrays that have to be written: path -> all of its values, as ``read`` returns them.

    Raises:
        WeightMismatchError: a value that the file cannot hold, or that belongs to no weight.
    """
    found: dict[str, Array] = {}
    for leaf, inverse in located.inverses():
        *_, layer = leaf
        with in_place(printable(layer.place)):
            _check_shapes(inverse, trained)
            _check_fixed(inverse, trained)
            if inverse.computed:
                _check_unchanged(inverse.computed, located.read(*leaf), trained)
            held: dict[str, Sequence[Copies] | str] = {**inverse.copies, **inverse.whole}
            for path, copies in held.items():
                array, summed = located.arrays[path], path in inverse.summed
                values = _put_together(array, copies, trained, summed=summed)
                if found.setdefault(path, values).tobytes() != values.tobytes():
                    raise _differ(path)
    for one, other in located.twins():
        both = [found[path].tobytes() for path in (one.path, other.path) if path in found]
        if len(set(both)) > 1:
            raise _differ(other.path)
    return {
        path: values
        for path, values in found.items()
        if values.tobytes() != located.arrays[path].read().tobytes()
    }


def _differ(path: str) -> WeightMismatchError:
    return WeightMismatchError(
        "two layers of OUT are one in Keras, but differ",
        "give both the same weights; a layer that is called in several places trains as one there "
        "(docs/training.md shows how to share it here)",
        place=printable(path),
    )


def _check_shapes(inverse: Inverse, trained: Trained) -> None:
    for name, wanted in inverse.shapes.items():
        tensor = trained.tensors.get(name)
        found = None if tensor is None else tuple(tensor.shape)
        if found != wanted:
            raise WeightMismatchError(
                f"{printable(name)} is {found} in OUT, and {wanted} by the weights of the file",
                "give the model that OUT was converted from",
            )


def _check_fixed(inverse: Inverse, trained: Trained) -> None:
    """Refuse a model that has trained what is no weight in Keras."""
    for one in inverse.fixed:
        tensor = trained.tensors[one.tensor].reshape(-1)
        if not tensor.is_floating_point():  # BatchNormalization's count of batches
            continue
        now = tensor[torch.from_numpy(one.elements)]
        count = int((~_same_bits(torch.from_numpy(one.values).to(now.dtype), now)).sum())
        if count:
            zeros = "zero" if not one.values.any() else "fixed"
            raise WeightMismatchError(
                f"{printable(one.tensor)}: {count} of its values are {zeros} in Keras, and were "
                "changed",
                "add torch's second bias to the first before, or train without it"
                if "bias_hh" in one.tensor
                else "Keras has no weight for them",
            )


def _check_unchanged(
    computed: Mapping[str, Positions], read: Mapping[str, Tensor], trained: Trained
) -> None:
    """Refuse changed elements that are computed from weights, not copied.

    read: the tensors by the weights of the file.
    """
    for name, elements in computed.items():
        at = torch.from_numpy(elements)
        before, now = read[name].detach().reshape(-1)[at], trained.tensors[name].reshape(-1)[at]
        if not _same_bits(before.to(now.dtype), now).all():
            raise WeightMismatchError(
                f"{printable(name)} is computed from the weights of the file, and was changed",
                "only modules that keep their weights as they are can be written back",
            )


def _put_together(
    array: StoredArray, copies: Sequence[Copies] | str, trained: Trained, *, summed: bool
) -> Array:
    """Return the new values of an array; ``copies``: elements of tensors, or the tensor it is.

    Raises:
        WeightMismatchError: two tensors do not agree, or the file cannot hold a value.
    """
    values = array.read()
    flat = values.reshape(-1)
    half = len(flat) // 2
    before = np.concatenate([flat[:half] + flat[half:], flat[half:]]) if summed else flat
    bits = np.zeros(len(flat), np.int64)  # of the new values in float64
    seen, changed = np.zeros(len(flat), bool), np.zeros(len(flat), bool)
    for name, elements, at in _parts(copies):
        now = trained.tensors[name].reshape(-1)[elements]
        new = now.to(torch.float64).numpy().view(np.int64)
        agrees = bool((bits[at] == new)[seen[at]].all())
        bits[at] = new
        if not agrees or not (bits[at] == new).all():
            raise WeightMismatchError(
                f"{printable(name)} and another tensor are one weight in Keras, but differ",
                "give both the same values",
                place=array.path,
            )
        seen[at] = True
        changed[at] |= trained.differs(before[at], now)
    if changed.any():
        new_values = bits[changed].view(np.float64)
        flat[changed] = _fit(array, new_values, rounding=trained.rounding)
        if summed:
            flat[half:][changed[:half]] = 0  # the first half holds the sum now
    return values


def _parts(copies: Sequence[Copies] | str) -> Iterator[tuple[str, Any, Any]]:
    """Yield tensors, elements of them, and where these are in the array."""
    if isinstance(copies, str):
        yield copies, slice(None), slice(None)
        return
    for one in copies:
        yield one.tensor, torch.from_numpy(one.elements), one.positions


def _fit(array: StoredArray, values: Array, *, rounding: bool) -> Array:
    """Return float64 values as numbers that the file can store.

    Raises:
        WeightMismatchError: it cannot hold them.
    """
    stored = _to_stored(values, array)
    again = stored.astype(np.float64)
    exact = (again == values) | (np.isnan(again) & np.isnan(values))
    lost = np.isfinite(values) & ~np.isfinite(again)
    whole = array.dtype.kind != "f"
    if exact.all() or (rounding and not whole and not lost.any()):
        return stored
    count = int((lost if rounding and not whole else ~exact).sum())
    what = "bfloat16" if array.stored_as == "bfloat16" else array.dtype.name
    raise WeightMismatchError(
        f"the file stores {what}, which cannot hold {count} of {values.size} changed values"
        + ("" if lost.any() or whole else " exactly"),
        "only trained values that fit can be written back"
        if lost.any() or whole
        else "allow them to be rounded (--allow-rounding)",
        place=printable(array.path),
    )


def _to_stored(values: Array, array: StoredArray) -> Array:
    """Round to the nearest numbers that can be stored."""
    kind = array.dtype
    if array.stored_as == "bfloat16":
        half = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return half.to(torch.float32).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        if kind.kind in "fb":
            return values.astype(kind)
        limits = np.iinfo(kind)
        whole: Array = np.clip(np.nan_to_num(np.rint(values)), limits.min, limits.max)
        return whole.astype(kind)


def check_reads_as(located: Located, trained: Trained) -> None:
    """Compare a written model with the trained one, tensor by tensor.

    Raises:
        WeightMismatchError: it is not the same.
    """
    for leaf in located.layers():
        for name, tensor in located.read(*leaf).items():
            if not _reads_as(tensor.detach(), trained.tensors[name], rounding=trained.rounding):
                raise WeightMismatchError(
                    f"{printable(name)} would not be read back as it is in OUT",
                    "nothing was written; please report it",
                    place=printable(leaf[1].place),
                )


def _reads_as(read: Tensor, wanted: Tensor, *, rounding: bool) -> bool:
    if not wanted.is_floating_point():  # BatchNormalization's count of batches
        return True
    if read.shape != wanted.shape:
        return False
    now = read.to(wanted.dtype)
    same = _same_bits(now, wanted) | ((now == 0) & (wanted == 0))  # a sum has no negative zero
    if rounding:
        same |= torch.isclose(now, wanted, rtol=_ROUNDED[0], atol=_ROUNDED[1], equal_nan=True)
    return bool(same.all())
