"""The weights that Keras trains, in its order, and the parameters of torch that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError, WeightMismatchError, printable
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.weights.slots import slots
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.writers.inverse import invert
from keras2torch_birnn.writers.layers import Located

_HOW_ELSE = "make the optimizer in torch, with k2t.convert for the model"


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter that is trained. ``owners``: numbers of the variables that it holds."""

    name: str
    param: nn.Parameter
    owners: tuple[int, ...]


@dataclass(frozen=True)
class TrainedVariables:
    """The arrays of all trained weights in Keras' order, and the parameters that hold them.

    ``twins``: path of an array -> that of the one in ``arrays`` which is the same weight.
    """

    arrays: tuple[StoredArray, ...]
    twins: Mapping[str, str]
    parameters: tuple[TrainedParameter, ...]


def find_variables(located: Located, model: nn.Module) -> TrainedVariables:
    """Find what is trained; the order of parameters is that of Keras' variables.

    Raises:
        UnsupportedOptionError: a layer whose weights torch cannot train as Keras does.
    """
    arrays, twins = _trained_arrays(located)
    numbers = {array.path: number for number, array in enumerate(arrays)}
    numbers |= {twin: numbers[path] for twin, path in twins.items() if path in numbers}
    owners: dict[str, set[int]] = {}
    for path, owner, layer in located.layers():
        start = f"{path}." if path else ""
        weights = located.weights
        found = invert(layer, owner, weights.stored, weights.layout, waiting=located.may_wait)
        if found.summed & numbers.keys() or found.computed:
            raise UnsupportedOptionError(
                f"the weights of {printable(layer.class_name)} are added up when it is converted, "
                "and torch trains their sum",
                _HOW_ELSE,
                place=layer.place,
            )
        for array, copies in found.copies.items():
            for one in copies:
                owners.setdefault(start + one.tensor, set()).add(numbers.get(array, -1))
        for array, parts in found.matrices.items():
            for name, _ in parts:
                owners.setdefault(start + name, set()).add(numbers.get(array, -1))
    return TrainedVariables(arrays, twins, _parameters(model, owners))


def _trained_arrays(located: Located) -> tuple[tuple[StoredArray, ...], dict[str, str]]:
    root = with_training_rules(located.spec.root, located.spec.generation)
    stored = located.weights.stored
    twins = {other.path: first.path for first, other in located.twins()}
    found = {
        array.path: array
        for slot in slots(root, layout=located.weights.layout)
        if slot.trainable and (array := stored.get(slot.owner, {}).get(slot.name)) is not None
    }
    return tuple(one for path, one in found.items() if path not in twins), twins


def _parameters(model: nn.Module, owners: Mapping[str, set[int]]) -> tuple[TrainedParameter, ...]:
    found: dict[int, TrainedParameter] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if not param.requires_grad or id(param) in found:
            continue
        own = tuple(sorted(owners.get(name, ())))
        if not own or own[0] < 0:
            raise UnsupportedOptionError(
                f"{printable(name)} is trained in torch, but is no trained weight in Keras",
                _HOW_ELSE,
                place=name,
            )
        found[id(param)] = TrainedParameter(name, param, own)
    return tuple(sorted(found.values(), key=lambda one: one.owners))


def check_one_owner(parameters: tuple[TrainedParameter, ...], what: str) -> None:
    """Refuse parameters that hold several Keras variables, which ``what`` takes one by one.

    Raises:
        UnsupportedOptionError: names the first.
    """
    for one in parameters:
        if len(one.owners) > 1:
            raise UnsupportedOptionError(
                f"{printable(one.name)} holds {len(one.owners)} weights of Keras, which {what} "
                "takes one by one",
                _HOW_ELSE,
                place=one.name,
            )


def with_arrays(located: Located, arrays: Mapping[str, StoredArray]) -> Located:
    """Return the model with other arrays of the file in the place of weights: path -> array."""
    rows = tuple(
        replace(row, arrays={name: arrays.get(one.path, one) for name, one in row.arrays.items()})
        for row in located.weights.rows
    )
    return replace(located, weights=replace(located.weights, rows=rows), lazy=False)


@torch.no_grad()
def read_as_tensors(located: Located) -> dict[str, Tensor]:
    """Read the weights as the tensors of the converted model: name -> tensor.

    Raises:
        WeightMismatchError: they cannot be read.
    """
    found: dict[str, Tensor] = {}
    for path, owner, layer in located.layers():
        try:
            tensors = located.read(layer, owner)
        except ValueError as error:
            raise WeightMismatchError(str(error), "refused", place=layer.place) from error
        found |= {(f"{path}.{name}" if path else name): one for name, one in tensors.items()}
    return found
