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
from keras2torch_birnn.spec import LayerSpec
from keras2torch_birnn.trainers.variables import Variable
from keras2torch_birnn.trainers.weight_views import views_of
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
    for (_, _, layer), found in located.inverses():
        if found.summed & numbers.keys() or found.computed:
            raise UnsupportedOptionError(
                f"the weights of {printable(layer.class_name)} are added up when it is converted, "
                "and torch trains their sum",
                _HOW_ELSE,
                place=layer.place,
            )
        for array, copies in found.copies.items():
            for one in copies:
                owners.setdefault(one.tensor, set()).add(numbers.get(array, -1))
        for array, name in found.whole.items():
            owners.setdefault(name, set()).add(numbers.get(array, -1))
    return TrainedVariables(arrays, twins, _parameters(model, owners))


def find_whole_variables(located: Located, trained: TrainedVariables) -> tuple[Variable, ...]:
    """Find where in the parameters the variables are, as Keras has them.

    Raises:
        UnsupportedOptionError: a parameter that is in no variable as a whole.
    """
    numbers = {array.path: number for number, array in enumerate(trained.arrays)}
    numbers |= {twin: numbers[path] for twin, path in trained.twins.items() if path in numbers}
    named = {one.name: one.param for one in trained.parameters}
    paths = _paths(located)
    found: list[Variable] = []
    for _, inverse in located.inverses():
        for array, view in views_of(inverse, located.arrays).items():
            names = [name for name in view.names() if name in named]
            if array in numbers and names:
                own = {name: named[name] for name in names}
                shape = located.arrays[array].shape
                found.append(Variable(numbers[array], *paths[array], shape, view, own))
    held = {id(param) for one in found for param in one.parameters.values()}
    for one in trained.parameters:
        if id(one.param) not in held:
            raise UnsupportedOptionError(
                f"{printable(one.name)} is no weight of Keras as a whole",
                _HOW_ELSE,
                place=one.name,
            )
    return tuple(sorted(found, key=lambda one: one.number))


# Cells that Keras makes inside of a layer, by the layer's class.
_CELLS: Mapping[str, str] = {
    "LSTM": "lstm_cell",
    "GRU": "gru_cell",
    "SimpleRNN": "simple_rnn_cell",
    **{f"ConvLSTM{n}D": f"conv_lstm_{n}d_cell" for n in (1, 2, 3)},
}


def _paths(located: Located) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return how Keras names each array's variable, and the names of what is around its layer."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}

    def walk(layer: LayerSpec, key: tuple[str, ...], around: tuple[str, ...]) -> None:
        cell = _CELLS.get(layer.class_name)
        start = (layer.name, cell) if cell else (layer.name,)
        for name, array in located.weights.stored.get(key, {}).items():
            found[array.path] = ("/".join((*start, name)), around)
        # A model of layers is in the path where it builds them itself.
        named = layer.class_name != "Functional"
        outer = (*around, layer.name) if named else around
        for part, inner in layer.parts.items():
            walk(inner, (*key, part), outer)
        for inner in layer.graph.layers if layer.graph else ():
            walk(inner, (*key, inner.name), outer)

    walk(located.spec.root, (), ())
    return found


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
    return replace(located, weights=replace(located.weights, rows=rows))


@torch.no_grad()
def read_as_tensors(located: Located) -> dict[str, Tensor]:
    """Read the weights as the tensors of the converted model: name -> tensor.

    Raises:
        WeightMismatchError: they cannot be read.
    """
    found: dict[str, Tensor] = {}
    for leaf in located.layers():
        try:
            found |= located.read(*leaf)
        except ValueError as error:
            raise WeightMismatchError(str(error), "refused", place=leaf[2].place) from error
    return found
