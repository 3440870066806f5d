"""Make torch parameters of a spec's arrays."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.spec import Array


def to_parameter(array: Array) -> nn.Parameter:
    """Make a parameter with the array's values, sharing its memory where possible.

    The arrays of a spec that was read from JSON are placeholders (all strides zero); their
    parameters take no memory either, until a state_dict is assigned.
    """
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
