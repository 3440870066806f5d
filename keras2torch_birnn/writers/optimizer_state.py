"""The state of an optimizer: from a file into a ``KerasOptimizer``.

Slots take the way of the weights that they belong to: they are put in the place of these and
converted, so that gates are reordered and matrices transposed as theirs are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.stored import StoredState
from keras2torch_birnn.trainers.variables import Variable
from keras2torch_birnn.writers.layers import Located
from keras2torch_birnn.writers.trained_variables import (
    TrainedVariables,
    read_as_tensors,
    with_arrays,
)

_EXACT_INTEGERS = 1 << 53  # exact in float64


def read_state(
    optimizer: KerasOptimizer,
    stored: StoredState,
    located: Located,
    variables: TrainedVariables,
) -> None:
    """Give an optimizer the iterations, learning rate and slots of a file.

    Raises:
        InvalidModelFileError: a number that cannot be.
    """
    group = optimizer.param_groups[0]
    if stored.iterations is not None:
        group["iterations"] = _whole(stored.iterations)
    if stored.rate is not None:
        optimizer.set_nominal_rate(_number(stored.rate))
    group["shared"] |= {name: _number(array) for name, array in stored.shared.items()}
    if stored.shared and "count" in group["shared"]:  # of multiplications, one for each step
        group["shared"]["count"] = group["iterations"] + 1.0
    for name in stored.slots:
        if optimizer.is_of_variables(name):
            for variable, array in _of_variables(optimizer, stored, name, variables):
                value = torch.from_numpy(array.read())
                optimizer.state[variable.keeper][name] = value.to(variable.keeper)
            continue
        tensors = read_as_tensors(_with_slots(located, stored, name, variables))
        for one in variables.parameters:
            optimizer.state[one.param][name] = _like(tensors[one.name], one.param)


def _of_variables(
    optimizer: KerasOptimizer, stored: StoredState, name: str, variables: TrainedVariables
) -> Iterator[tuple[Variable, StoredArray]]:
    """Yield the variables that have a slot in Keras' layout, and where it is in the file."""
    for one in optimizer.variables:
        array = stored.slots[name].get(variables.arrays[one.number].path)
        if array is not None:
            yield one, array


def _with_slots(
    located: Located, stored: StoredState, name: str, variables: TrainedVariables
) -> Located:
    """Return the model with the arrays of one slot in the place of its weights."""
    arrays = dict(stored.slots[name])
    arrays |= {twin: arrays[path] for twin, path in variables.twins.items() if path in arrays}
    return with_arrays(located, arrays)


def _like(slot: Tensor, param: Tensor) -> Tensor:
    found = torch.empty_like(param, memory_format=torch.preserve_format)
    return found.detach().copy_(slot.detach())


def _number(array: StoredArray) -> float:
    value = float(array.read())
    if not math.isfinite(value):
        raise invalid(f"the number {value}", printable(array.path))
    return value


def _whole(array: StoredArray) -> int:
    value = _number(array)
    if not (0 <= value <= _EXACT_INTEGERS and value.is_integer()):
        raise invalid(f"{value} iterations", printable(array.path))
    return int(value)
