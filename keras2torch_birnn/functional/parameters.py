"""Make torch parameters of a spec's arrays, also of arrays that are still in the file."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.lazy_array import LazyArray
from keras2torch_birnn.spec import Array

_SOURCE = "lazy_source"


def to_parameter(array: Array) -> nn.Parameter:
    """Make a parameter with the array's values, sharing its memory where possible.

    The arrays of a spec that was read from JSON are placeholders (all strides zero); their
    parameters take no memory either, until a state_dict is assigned. Nor do those of arrays that
    are still in the file, until ``materialize`` reads them.
    """
    if isinstance(array, LazyArray):
        parameter = to_parameter(np.broadcast_to(np.zeros((), array.dtype), array.shape))
        setattr(parameter, _SOURCE, array)
        return parameter
    if array.ndim == 0:
        return nn.Parameter(torch.tensor(array))
    if array.size and not any(array.strides):
        scalar = torch.from_numpy(np.zeros((), dtype=array.dtype))
        return nn.Parameter(scalar.expand(array.shape))
    if min(array.strides) < 0 or not array.flags.writeable:
        # NumPy calls a reversed axis of length 1 contiguous, torch refuses its stride. And a
        # placeholder of one value is contiguous, but read-only.
        array = array.copy()
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)))


def lazy_source(tensor: torch.Tensor) -> LazyArray | None:
    """Return the array in the file that a parameter still waits for; None if it has its values."""
    source = getattr(tensor, _SOURCE, None)
    return source if isinstance(source, LazyArray) else None


def materialize(module: nn.Module) -> None:
    """Read the parameters whose values are still in the file, one after the other."""
    for parameter in module.parameters():
        source = lazy_source(parameter)
        if source is not None:
            parameter.data = torch.from_numpy(source.read())
            delattr(parameter, _SOURCE)
