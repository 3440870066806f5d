"""Casts of model inputs to the declared dtype, as Keras does them.

A converted model computes in one precision, that of ``like``, also after ``model.to()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from keras2torch_birnn.rnn.checks import check_tensor


def to_float(x: Tensor, like: Tensor) -> Tensor:
    """Cast floats of any precision, integers and bools to the model's floats."""
    check_tensor("input", x, like.dtype)
    return x.to(like.dtype)


def to_integer(x: Tensor) -> Tensor:
    """Cast to integers, as Keras does: floats lose their fraction."""
    check_tensor("input", x, torch.int64)
    return x.long() if x.is_floating_point() or x.dtype.itemsize == 1 else x


def to_ids(x: Tensor) -> Tensor:
    """Cast to int64, which torch requires of ids."""
    check_tensor("input", x, torch.int64)
    return x.long()


def to_bool(x: Tensor) -> Tensor:
    """Cast to bool: all but zero is True."""
    check_tensor("input", x, torch.bool)
    return x.bool()


INPUT_CASTS: Mapping[str, Callable[..., Tensor]] = {
    "float": to_float,
    "int32": to_integer,
    "int64": to_integer,
    "bool": to_bool,
    "ids": to_ids,
}
