"""The state of an optimizer in an HDF5 or ``.keras`` file, converted as the weights are.

Slots take the way of the weights that they belong to: they are put in the place of these and
converted, so that gates are reordered and matrices transposed as theirs are.

HDF5 files list all variables of an optimizer in its own order (``optimizer_weights``), ``.keras``
files number them: scalars that count, then the slots as ``Made.slots`` has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import (
    UnsupportedOptionError,
    WeightMismatchError,
    invalid,
    printable,
)
from keras2torch_birnn.limits import MAX_NAMES
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.store import StoredArray
from keras2torch_birnn.readers.weights.slots import slots
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.trainers.compiled import HOW_ELSE, OptimizerConfig
from keras2torch_birnn.trainers.optimizers import Made
from keras2torch_birnn.trainers.weight_places import Located

_LISTED, _NUMBERED = "/optimizer_weights", "/optimizer/vars"
_SCALED = "/optimizer/inner_optimizer"
_EXACT_INTEGERS = 1 << 53  # exact in float64
_HOW_TO_BEGIN = 'give state="new" to begin with a new state, or compile and save it again'
_FORMATS = ("hdf5", "keras_zip")


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
    root = with_training_rules(located.spec.root, located.spec.generation)
    stored = located.weights.stored
    twins = {other.path: first.path for first, other in located.twins()}
    found = {
        array.path: array
        for slot in slots(root, layout=located.weights.layout)
        if slot.trainable and (array := stored.get(slot.path, {}).get(slot.name)) is not None
    }
    arrays = tuple(one for path, one in found.items() if path not in twins)
    numbers = {array.path: number for number, array in enumerate(arrays)}
    numbers |= {twin: numbers[path] for twin, path in twins.items() if path in numbers}
    owners: dict[str, set[int]] = {}
    for (_, layer), inverse in located.inverses():
        if inverse.summed & numbers.keys() or inverse.computed:
            raise UnsupportedOptionError(
                f"the weights of {printable(layer.class_name)} are added up when it is converted, "
                "and torch trains their sum",
                HOW_ELSE,
                place=layer.place,
            )
        held = [(path, one.tensor) for path, parts in inverse.copies.items() for one in parts]
        for path, tensor in [*held, *inverse.whole.items()]:
            owners.setdefault(tensor, set()).add(numbers.get(path, -1))
    return TrainedVariables(arrays, twins, _find_parameters(model, owners))


def _find_parameters(
    model: nn.Module, owners: Mapping[str, set[int]]
) -> tuple[TrainedParameter, ...]:
    found: dict[int, TrainedParameter] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        if not param.requires_grad or id(param) in found:
            continue
        own = tuple(sorted(owners.get(name, ())))
        if not own or own[0] < 0:
            raise UnsupportedOptionError(
                f"{printable(name)} is trained in torch, but is no trained weight in Keras",
                HOW_ELSE,
                place=name,
            )
        found[id(param)] = TrainedParameter(name, param, own)
    return tuple(sorted(found.values(), key=lambda one: one.owners))


def read_state(
    container: Container,
    config: OptimizerConfig,
    made: Made,
    located: Located,
    variables: TrainedVariables,
) -> str:
    """Give an optimizer the steps, learning rate and slots of a file; return a note, or "".

    Raises:
        WeightMismatchError: the state is that of other weights; InvalidModelFileError: damaged.
    """
    if made.fresh:  # which its own note says
        return ""
    if container.kind not in _FORMATS:
        return "the optimizer's state is read from .h5 and .keras files alone: it begins anew"
    if config.scaled or container.store.kind(_SCALED) == "group":
        return "the state inside of a LossScaleOptimizer is not read: it begins anew"
    arrays = container.store.arrays(_list_paths(container))
    scalars = [array for array in arrays if not array.shape]
    rest = [array for array in arrays if array.shape][made.before * len(variables.arrays) :]
    count = sum(map(len, made.slots)) * len(variables.arrays)
    if not arrays or (count and not rest):
        return "the file holds no state of the optimizer: it begins anew, as in Keras"
    if made.unused and len(rest) == count + len(variables.arrays):
        rest = rest[:count]
    wanted = [
        (name, weight) for names in made.slots for weight in variables.arrays for name in names
    ]
    if len(rest) != len(wanted):
        raise WeightMismatchError(
            f"the optimizer's state has {len(rest)} arrays, {len(variables.arrays)} trained "
            f"weights need {len(wanted)}",
            _HOW_TO_BEGIN,
            place="optimizer",
        )
    found: dict[str, dict[str, StoredArray]] = {}
    for array, (name, weight) in zip(rest, wanted, strict=True):
        if array.shape != weight.shape or array.dtype.kind != "f":
            raise WeightMismatchError(
                f"a slot {array.shape} of {array.dtype.name} where one of {weight.shape} is "
                "expected",
                _HOW_TO_BEGIN,
                place=printable(array.path),
            )
        found.setdefault(name, {})[weight.path] = array
    steps = _read_steps(scalars[0]) if scalars else 0
    _read_rate(config, made, scalars[1:])
    for name, slot in found.items():
        _fill(made, name, _with_slots(located, slot, variables), variables)
    for group in made.optimizer.param_groups:
        for param in group["params"] if "epsilon" in group else ():
            made.optimizer.state[param]["step"] = torch.tensor(float(steps))
    return ""


def _list_paths(container: Container) -> list[str]:
    store = container.store
    if store.kind(_LISTED) == "group":
        found = store.attributes(_LISTED, ["weight_names"]).get("weight_names")
        return [f"{_LISTED}/{name}" for name in (found if isinstance(found, list | tuple) else [])]
    if store.kind("/optimizer") == "group" and store.kind(_NUMBERED) == "group":
        count = min(len(store.members(_NUMBERED)), MAX_NAMES)
        return [f"{_NUMBERED}/{number}" for number in range(count)]
    return []


def _read_steps(array: StoredArray) -> int:
    value = float(array.read())
    if not (0 <= value <= _EXACT_INTEGERS and value.is_integer()):
        raise invalid(f"{value} iterations", printable(array.path))
    return int(value)


def _read_rate(config: OptimizerConfig, made: Made, scalars: Sequence[StoredArray]) -> None:
    """Take the present learning rate, which newer optimizers store if it has no schedule."""
    scheduled = isinstance(config.config.get("learning_rate"), Mapping)
    if config.family not in ("keras3", "tf.keras") or scheduled or not scalars:
        return
    value = float(scalars[0].read())
    if not math.isfinite(value):
        raise invalid(f"the number {value}", printable(scalars[0].path))
    for group in made.optimizer.param_groups:
        group["lr"] = value


def _with_slots(
    located: Located, slot: Mapping[str, StoredArray], variables: TrainedVariables
) -> Located:
    """Return the model with the arrays of one slot in the place of its weights."""
    arrays = dict(slot)
    arrays |= {twin: slot[path] for twin, path in variables.twins.items() if path in slot}
    rows = tuple(
        replace(row, arrays={name: arrays.get(one.path, one) for name, one in row.arrays.items()})
        for row in located.weights.rows
    )
    return replace(located, weights=replace(located.weights, rows=rows))


def _fill(made: Made, name: str, located: Located, variables: TrainedVariables) -> None:
    """Read the arrays of one slot as the tensors of the converted model, into the state."""
    tensors: dict[str, Tensor] = {}
    for leaf in located.layers():
        try:
            tensors |= located.read(*leaf)
        except ValueError as error:
            raise WeightMismatchError(str(error), "refused", place=leaf[1].place) from error
    for one in variables.parameters:
        slot = torch.empty_like(one.param, memory_format=torch.preserve_format).detach()
        made.optimizer.state[one.param][name] = slot.copy_(tensors[one.name].detach())
