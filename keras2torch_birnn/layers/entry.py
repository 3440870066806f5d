"""What Keras makes of a tensor where it enters a model: numbers of the kind that is declared.

A converted model computes in one precision, that of ``like``, whatever ``model.to()`` made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from keras2torch_birnn.rnn.tensor_checks import check_tensor


def floats(x: Tensor, like: Tensor) -> Tensor:
    """The model's floats: of those of any other precision, of whole numbers, of bools."""
    check_tensor("input", x, like.dtype)
    return x.to(like.dtype)


def whole_numbers(x: Tensor) -> Tensor:
    """What Keras makes of an input declared as integers: floats lose their fraction."""
    check_tensor("input", x, torch.int64)
    return x.long() if x.is_floating_point() or x.dtype.itemsize == 1 else x


def indices(x: Tensor) -> Tensor:
    """Whole numbers of the kind that torch's own functions want for ids."""
    return x.long()


def truths(x: Tensor) -> Tensor:
    """What is not zero is true."""
    check_tensor("input", x, torch.bool)
    return x.bool()


ENTRIES: Mapping[str, Callable[..., Tensor]] = {
    "float": floats,
    "int32": whole_numbers,
    "int64": whole_numbers,
    "bool": truths,
    "ids": indices,  # of a plugin's layer
}
