"""New values for the arrays of a file, from the tensors of a trained model.

Elements that the model still has as they were read keep their bytes. All others must be held
exactly by the dtype of the file, unless rounding is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.errors import WeightMismatchError, printable
from keras2torch_birnn.layers.origins import Copies
from keras2torch_birnn.readers.containers.tfjs_manifest import QuantizedArray
from keras2torch_birnn.readers.hdf5.arrays import STORED_DTYPES, StoredArray
from keras2torch_birnn.spec import Array
from keras2torch_birnn.writers.inverse import Inverse

_SAME_SIZE: Mapping[int, torch.dtype] = {
    1: torch.int8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}


@dataclass(frozen=True)
class Piece:
    """New elements of an array in the file: ``values``, as they are stored, from ``start`` on."""

    array: StoredArray
    start: int
    values: Array


@dataclass(frozen=True)
class Model:
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
        return ~same_bits(native.to(now.dtype), now).numpy()


def same_bits(first: Tensor, second: Tensor) -> Tensor:
    """Compare two tensors of one dtype and shape, bit by bit."""
    kind = _SAME_SIZE[first.element_size()]
    return first.contiguous().view(kind) == second.contiguous().view(kind)


def new_pieces(
    inverse: Inverse, arrays: Mapping[str, StoredArray], model: Model
) -> Iterator[Piece]:
    """Yield what has to be written for one layer; nothing of arrays that did not change.

    arrays: those of the layer by path.

    Raises:
        WeightMismatchError: a value that the file cannot hold, or that belongs to no weight.
    """
    _check_shapes(inverse, model)
    _check_fixed(inverse, model)
    for path, copies in inverse.copies.items():
        yield from _array_pieces(arrays[path], copies, model, summed=path in inverse.summed)
    for path, name in inverse.whole.items():
        yield from _array_pieces(arrays[path], [name], model)


def _check_shapes(inverse: Inverse, model: Model) -> None:
    for name, wanted in inverse.shapes.items():
        tensor = model.tensors.get(name)
        found = None if tensor is None else tuple(tensor.shape)
        if found != wanted:
            raise WeightMismatchError(
                f"{printable(name)} is {found} in OUT, and {wanted} by the weights of the file",
                "give the model that OUT was converted from",
            )


def _check_fixed(inverse: Inverse, model: Model) -> None:
    """Refuse a model that has trained what is no weight in Keras."""
    for one in inverse.fixed:
        tensor = model.tensors[one.tensor].reshape(-1)
        if not tensor.is_floating_point():  # BatchNormalization's count of batches
            continue
        now = tensor[torch.from_numpy(one.elements)]
        count = int((~same_bits(torch.from_numpy(one.values).to(now.dtype), now)).sum())
        if count:
            zeros = "zero" if not one.values.any() else "fixed"
            raise WeightMismatchError(
                f"{printable(one.tensor)}: {count} of its values are {zeros} in Keras, and were "
                "changed",
                "add torch's second bias to the first before, or train without it"
                if "bias_hh" in one.tensor
                else "Keras has no weight for them",
            )


class _Target:
    """Values of an array, or of some of its rows, that are put together from tensors."""

    def __init__(self, array: StoredArray, before: Array, model: Model) -> None:
        self._array, self._before, self._model = array, before, model
        self._bits = np.zeros(before.shape, np.int64)  # of the new values in float64
        self._seen = np.zeros(before.shape, bool)
        self.changed = np.zeros(before.shape, bool)

    def put(self, index: Any, now: Tensor, name: str) -> None:
        """Set these elements.

        Raises:
            WeightMismatchError: another tensor says otherwise.
        """
        bits = now.to(torch.float64).numpy().view(np.int64)
        again = self._seen[index]
        agrees = bool((self._bits[index][again] == bits[again]).all())
        self._bits[index] = bits
        if not agrees or not (self._bits[index] == bits).all():
            raise WeightMismatchError(
                f"{printable(name)} and another tensor are one weight in Keras, but differ",
                "give both the same values",
                place=self._array.path,
            )
        self._seen[index] = True
        self.changed[index] |= self._model.differs(self._before[index], now)

    def values(self) -> Array:
        """Return the new values of the changed elements, in float64."""
        found: Array = self._bits[self.changed].view(np.float64)
        return found


def _array_pieces(
    array: StoredArray, copies: Sequence[Copies | str], model: Model, *, summed: bool = False
) -> Iterator[Piece]:
    """Yield the array if it changed; ``copies``: elements of tensors, or the tensor that it is."""
    array.check()
    stored = array.read_stored()
    flat, before = stored.reshape(-1), array.values(stored).reshape(-1)
    half = len(flat) // 2
    if summed:
        before = np.concatenate([before.reshape(2, half).sum(axis=0), before[half:]])
    target = _Target(array, before, model)
    for one in copies:
        if isinstance(one, str):
            target.put(slice(None), model.tensors[one].reshape(-1), one)
            continue
        tensor = model.tensors[one.tensor].reshape(-1)
        target.put(one.positions, tensor[torch.from_numpy(one.elements)], one.tensor)
    if not target.changed.any():
        return
    new = target.values()
    flat[target.changed] = encode(array, new, rounding=model.rounding)
    if summed:
        flat[half:][target.changed[:half]] = 0  # the first half holds the sum now
    yield Piece(array, 0, flat)


def encode(array: StoredArray, values: Array, *, rounding: bool) -> Array:
    """Return float64 values as the numbers that the file stores.

    Raises:
        WeightMismatchError: it cannot hold them.
    """
    if isinstance(array, QuantizedArray) and (array.scale, array.least) != (1.0, 0.0):
        raise WeightMismatchError(
            "a quantized weight, and it was trained",
            "write back into the model as it was before it was quantized",
            place=printable(array.path),
        )
    stored = _to_stored(values, array.stored_as)
    again = np.array(StoredArray.values(array, stored), np.float64)
    exact = (again == values) | (np.isnan(again) & np.isnan(values))
    lost = np.isfinite(values) & ~np.isfinite(again)
    whole = array.dtype.kind != "f"
    if exact.all() or (rounding and not whole and not lost.any()):
        return stored
    count = int((lost if rounding and not whole else ~exact).sum())
    what = printable(array.stored_as.lstrip("<>=")) if whole else _name(array.stored_as)
    raise WeightMismatchError(
        f"the file stores {what}, which cannot hold {count} of {values.size} changed values"
        + ("" if lost.any() or whole else " exactly"),
        "only trained values that fit can be written back"
        if lost.any() or whole
        else "allow them to be rounded (--allow-rounding)",
        place=printable(array.path),
    )


def _name(stored_as: str) -> str:
    return stored_as if stored_as == "bfloat16" else np.dtype(stored_as).newbyteorder("=").name


def _to_stored(values: Array, stored_as: str) -> Array:
    """Round to the nearest numbers that can be stored."""
    kind = np.dtype(STORED_DTYPES[stored_as])
    with np.errstate(over="ignore", invalid="ignore"):
        if stored_as == "bfloat16":
            half = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
            return half.view(torch.int16).numpy().view(kind)
        if kind.kind == "f":
            return values.astype(kind)
        limits = np.iinfo(kind)
        whole: Array = np.clip(np.nan_to_num(np.rint(values)), limits.min, limits.max)
        return whole.astype(kind)
