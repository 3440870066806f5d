"""The state of an optimizer: from a file into a ``KerasOptimizer``, and back.

Slots take the way of the weights that they belong to: they are put in the place of these and
converted, so that gates are reordered and matrices transposed as theirs are; and the same back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UsageError, WeightMismatchError, invalid, printable
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.tfjs import TensorFlowJS
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.spec import Array
from keras2torch_birnn.trainers.compiled import CompiledTraining
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.stored import StoredState, find_copies, read_compiled
from keras2torch_birnn.trainers.variables import Variable
from keras2torch_birnn.writers.layers import Located, layer_pieces
from keras2torch_birnn.writers.new_values import Model, Piece, encode
from keras2torch_birnn.writers.trained_variables import (
    TrainedVariables,
    find_variables,
    read_as_tensors,
    with_arrays,
)

_EXACT_INTEGERS = 1 << 53  # exact in float64
_NO_PRODUCT = (
    "the file has no place for the product of Nadam's momenta: in Keras it begins at 1 again after "
    "load_model, so the next steps there differ from those here"
)
_NO_COUNT = (
    "the file has no place for the number of steps, which the decay of the learning rate needs: in "
    "Keras they begin at 0 again after load_model, so the next steps there differ from those here"
)
_NO_RATE = (
    "the file has the learning rate in the text of its options, which stay as they are: in Keras "
    "it is {before:g} again after load_model, not {rate:g}"
)
# By whether the model has weights of an optimizer at all; TensorFlow.js' own save writes them.
_NOT_IN_TFJS = {
    False: "a model of TensorFlow.js without an optimizer's state, so there is no place for one",
    True: "the state of an optimizer is neither read from nor written into TensorFlow.js' models",
}
_HOW_ELSE = "keep the file's as it is, and write the state into the Keras file"


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


# ---- the way back ------------------------------------------------------------------------------


class NewState:
    """The state of an optimizer that is to be written into a model's file."""

    def __init__(
        self,
        container: Container,
        located: Located,
        model: nn.Module,
        optimizer: KerasOptimizer,
        config: Mapping[str, Any] | None,
    ) -> None:
        """Find the places of a state; ``config``: the JSON of ``--config``.

        Raises:
            UsageError: the optimizer is another one than that of the file, or of another model, or
                the file has no place for a state.
        """
        compiled = read_compiled(container, config, located.spec.generation)
        _check_same_optimizer(compiled, optimizer)
        self.optimizer, self.located, self.model = optimizer, located, model
        self.variables = find_variables(located, model)
        self.places = _find_places(container, self.variables, optimizer)
        self.stored = self.places[0]
        self._check_parameters()

    def _check_parameters(self) -> None:
        own = {id(one.param) for one in self.variables.parameters}
        held = {id(one) for group in self.optimizer.param_groups for one in group["params"]}
        named = self.model.named_parameters()
        frozen = [name for name, one in named if id(one) in held and not one.requires_grad]
        if frozen:
            raise UsageError(
                f"{printable(frozen[0])} was frozen after the optimizer was made, and the file has "
                "a state of all weights that Keras trains",
                f'thaw it: model.get_parameter("{printable(frozen[0])}").requires_grad_(True)',
            )
        if own != held:
            raise UsageError(
                "the optimizer has other parameters than those that Keras trains in this model",
                "give the model and the optimizer of one k2t.training",
            )

    def describe_losses(self) -> tuple[str, ...]:
        """Return notes about what the file cannot hold of the state."""
        has_product = "product" in self.optimizer.rule.shared()
        lost = has_product and not self.stored.shared and self.optimizer.iterations
        uncounted = self.stored.iterations is None and self.optimizer.settings.decay != 0
        rate, before = float(self.optimizer.param_groups[0]["lr"]), self.optimizer.settings.rate
        fixed = self.stored.rate is None and rate != before
        kept = _NO_RATE.format(rate=rate, before=before)
        found = ((_NO_PRODUCT, lost), (_NO_COUNT, uncounted), (kept, fixed))
        return tuple(note for note, applies in found if applies)

    def pieces(self, facts: Model) -> Iterator[Piece]:
        """Yield what has to be written; ``facts``: the tensors of the trained model.

        Raises:
            WeightMismatchError: the file cannot hold a value.
        """
        for stored in self.places:
            yield from self._pieces_of(stored, facts)

    def _pieces_of(self, stored: StoredState, facts: Model) -> Iterator[Piece]:
        group = self.optimizer.param_groups[0]
        numbers = [(stored.iterations, float(self.optimizer.iterations), False)]
        numbers += [(stored.rate, float(group["lr"]), True)]
        numbers += [(one, group["shared"][name], True) for name, one in stored.shared.items()]
        for array, value, rounding in numbers:
            if array is not None and float(array.read()) != value:
                yield Piece(array, 0, encode(array, np.array([value]), rounding=rounding))
        for name, arrays in stored.slots.items():
            if self.optimizer.is_of_variables(name):
                for array, slot in self._slots_of_variables(stored, name):
                    if not np.array_equal(array.read(), slot):
                        yield Piece(
                            array, 0, encode(array, slot.reshape(-1), rounding=facts.rounding)
                        )
                continue
            own = {one.path for one in arrays.values()}
            there = _with_slots(self.located, stored, name, self.variables)
            tensors = {**facts.tensors, **self._slots(name)}
            for piece in layer_pieces(there, replace(facts, tensors=tensors)):
                if piece.array.path in own:
                    yield piece

    def _slots_of_variables(
        self, stored: StoredState, name: str
    ) -> Iterator[tuple[StoredArray, Array]]:
        found = _of_variables(self.optimizer, stored, name, self.variables)
        for variable, array in found:
            slot = self.optimizer.slots_of_variable(variable)[name]
            yield array, slot.detach().cpu().numpy()

    def _slots(self, name: str) -> dict[str, Tensor]:
        return {
            one.name: self.optimizer.slots_of(one.param)[name].detach().cpu()
            for one in self.variables.parameters
        }

    def check(self, container: Container, located: Located) -> None:
        """Read a written state again, and compare it with that of the optimizer.

        Raises:
            WeightMismatchError: it is another one.
        """
        places = _find_places(container, self.variables, self.optimizer)
        same = all(self._is_held(stored, located) for stored in places)
        if not same:
            raise WeightMismatchError(
                "the optimizer's state would not be read back as it is",
                "nothing was written; please report it",
                place="optimizer",
            )

    def _is_held(self, stored: StoredState, located: Located) -> bool:
        counts = stored.iterations
        same = counts is None or _whole(counts) == self.optimizer.iterations
        for name in stored.slots:
            if self.optimizer.is_of_variables(name):
                for array, values in self._slots_of_variables(stored, name):
                    same = same and np.array_equal(array.read().astype(values.dtype), values)
                continue
            read = read_as_tensors(_with_slots(located, stored, name, self.variables))
            for tensor, slot in ((read[key], one) for key, one in self._slots(name).items()):
                same = same and torch.equal(tensor.detach().to(slot.dtype), slot)
        return same


def _check_same_optimizer(compiled: CompiledTraining, optimizer: KerasOptimizer) -> None:
    there = compiled.optimizer
    settings = optimizer.settings
    if (there.class_name.lower(), there.family) != (settings.class_name, settings.family):
        raise UsageError(
            f"the file was compiled with {printable(there.class_name)}, which is another optimizer",
            "give the optimizer that k2t.training makes of this file",
        )


def _find_places(
    container: Container, variables: TrainedVariables, optimizer: KerasOptimizer
) -> tuple[StoredState, ...]:
    if isinstance(container, TensorFlowJS):
        raise UsageError(_NOT_IN_TFJS[container.has_optimizer], _HOW_ELSE)
    found = find_copies(container, variables.arrays, optimizer)
    if not found:
        raise UsageError(
            "the file has no place for an optimizer's state, because Keras never trained it",
            "keep it as it is, or save the model after a step in Keras",
        )
    return found
