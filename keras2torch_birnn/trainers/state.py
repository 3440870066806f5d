"""Put the state of an optimizer in a file into a ``KerasOptimizer``, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.stored import StoredState
from keras2torch_birnn.trainers.variables import (
    TrainedVariables,
    read_as_tensors,
    with_arrays,
)
from keras2torch_birnn.writers.layers import Located

_MOST_STEPS = 1 << 53  # exact in float64


def read_state(
    optimizer: KerasOptimizer,
    stored: StoredState,
    located: Located,
    variables: TrainedVariables,
) -> None:
    """Give an optimizer the iterations, learning rate and slots of a file.

    Slots take the way of the weights that they belong to: they are put in the place of these and
    converted, so that gates are reordered and matrices transposed as theirs are.

    Raises:
        InvalidModelFileError: a number that cannot be.
    """
    group = optimizer.param_groups[0]
    if stored.iterations is not None:
        group["iterations"] = _whole(stored.iterations)
    if stored.rate is not None:
        optimizer.set_nominal_rate(_number(stored.rate))
    group["shared"] |= {name: _number(array) for name, array in stored.shared.items()}
    for name, arrays in stored.slots.items():
        tensors = read_as_tensors(with_arrays(located, arrays))
        for one in variables.parameters:
            optimizer.state[one.param][name] = _like(tensors[one.name], one.param)


def _like(slot: Tensor, param: Tensor) -> Tensor:
    found = torch.empty_like(param, memory_format=torch.preserve_format)
    return found.detach().copy_(slot.detach())


def _number(array: StoredArray) -> float:
    value = float(array.read())
    if not math.isfinite(value):
        raise InvalidModelFileError(f"the number {value}", "refused", place=printable(array.path))
    return value


def _whole(array: StoredArray) -> int:
    value = _number(array)
    if not (0 <= value <= _MOST_STEPS and value.is_integer()):
        raise InvalidModelFileError(f"{value} iterations", "refused", place=printable(array.path))
    return int(value)
