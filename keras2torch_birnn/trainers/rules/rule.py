"""Interface of an update rule, and the numbers of one step in the precision of its Keras."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from torch import Tensor

from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.compiled import Family
from keras2torch_birnn.trainers.embedding_rows import Rows
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.variables import Variable

Tensors: TypeAlias = list[Tensor]
Slots: TypeAlias = Mapping[str, Tensors]
EPSILON = 1e-7  # ``backend.epsilon()`` of every Keras, which "null" in a file stands for


@dataclass(frozen=True)
class Now:
    """The numbers of one step.

    ``rate``: the learning rate. ``step``: the number of the step, from 1 on. ``double``: the
    weights are float64. ``shared``: numbers of the whole optimizer that a rule may change, before
    and after. ``owners``: the number of the Keras variable of each parameter. ``rows``: by number
    of a parameter, gradients of Embeddings whose rows this Keras squares one by one. ``tables``:
    numbers of all parameters whose gradients have rows, because they are tables of Embeddings.
    ``on_tensorflow``: this is Keras on TensorFlow, which rounds numbers of Python to float32.
    ``variables``: what the tensors are, for a rule of whole variables.
    """

    rate: float
    step: int
    double: bool
    family: Family
    shared: MutableMapping[str, float]
    owners: Sequence[int]
    rows: Mapping[int, Rows] = field(default_factory=dict)
    tables: frozenset[int] = frozenset()
    on_tensorflow: bool = True
    variables: Sequence[Variable] = ()

    def only(self, number: int) -> Now:
        """Return what is left of it for one of the tensors."""
        rows = {0: self.rows[number]} if number in self.rows else {}
        return replace(self, owners=self.owners[number : number + 1], rows=rows)

    def add_squares(self, averages: Tensors, grads: Tensors, weight: float) -> None:
        """Add the squares of gradients to averages, in place."""
        if not self.rows:
            foreach.addcmul_(averages, grads, grads, weight)
            return
        for number, (average, grad) in enumerate(zip(averages, grads, strict=True)):
            rows = self.rows.get(number)
            average.add_(grad.square() if rows is None else rows.squares(grad), alpha=weight)

    def rounded(self, tensor: Tensor) -> Tensor:
        """Return a tensor as means, norms and comparisons have it: Keras on torch rounds it."""
        return tensor if self.on_tensorflow else tensor.float()

    def exact(self, value: float) -> Any:
        """Return a number in the dtype of the weights."""
        return np.float64(value) if self.double else np.float32(value)

    def cast(self, value: float) -> Any:
        """Return a number in the dtype of the weights, rounded to float32 before as in Keras.

        Keras 1 and 2 keep it in a variable of the weights' dtype.
        """
        rounds = self.family != "keras2" and self.on_tensorflow
        return self.exact(single(value) if rounds else value)

    def weight(self, beta: float) -> float:
        """Return the weight of new values in a moving average: 1 - beta.

        Newer optimizers compute it from the number of Python, older ones from their variable.
        """
        if self.family in ("keras3", "tf.keras"):
            return 1 - beta
        return float(self.exact(1) - self.cast(beta))


_NAME = "option"


def option(default: Any, name: str = "") -> Any:
    """Describe a field that is an option in a file: a number, or a flag, if ``parse`` says no more.

    name: in the file, where that differs.
    """
    return field(default=default, metadata={_NAME: name})


def _read(options: Options, name: str, default: float) -> float:
    """Read an option; an epsilon of 0 stands for its default, as in Keras."""
    if isinstance(default, bool):
        return options.flag(name, default=default)
    value = options.number(name, default=default)
    return EPSILON if name == "epsilon" and not value else value


@dataclass(frozen=True)
class Rule(ABC):
    """An update rule with its options; ``family``: whose it is.

    ``ignored``: options that change nothing here. ``slot_names``: the slots as Keras stores them,
    those of one tuple variable by variable, before those of the next. ``left``: what OptimizerV2
    leaves as it is in the rows of a table that were not looked up. ``of_whole_variables``: the rule
    updates variables in Keras' layout in the place of parameters.
    """

    family: Family
    ignored: ClassVar[tuple[str, ...]] = ()
    slot_names: ClassVar[tuple[tuple[str, ...], ...]] = ()
    left: ClassVar[Literal["", "weights", "all"]] = ""
    of_whole_variables: ClassVar[bool] = False

    @classmethod
    def options(cls) -> Mapping[str, tuple[str, Any]]:
        """Return the fields that are options, with the name in a file and the default of each."""
        return {
            one.name: (one.metadata[_NAME] or one.name, one.default)
            for one in fields(cls)
            if _NAME in one.metadata
        }

    @classmethod
    def known(cls) -> frozenset[str]:
        """Return the names of all options that the rule takes."""
        return frozenset((*(name for name, _ in cls.options().values()), *cls.ignored))

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file. computed: fields that are no plain options.

        Raises:
            InvalidModelFileError: an option is broken.
        """
        plain = {
            one: _read(options, *row) for one, row in cls.options().items() if one not in computed
        }
        return cls(family, **plain, **computed)

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots, see ``slot_names``."""
        return self.slot_names

    def slot_shape(self, slot: str, variable: Variable) -> tuple[int, ...] | None:
        """Return the shape of a slot of a whole variable, None if it has none."""
        return variable.shape

    def unused_numbers(self, variable: Variable) -> int:
        """Count the numbers without a use that Keras stores for a whole variable."""
        return 0

    def weight_decay(self, variable: Variable, common: float) -> float:
        """Return the weight decay of a whole variable; ``common``: the optimizer's."""
        return common

    def decays(self) -> bool:
        """Tell whether the rule has a weight decay of its own."""
        return False

    def start(self, slot: str) -> float:
        """Return the value that a new slot is filled with."""
        return 0.0

    def shared(self) -> Mapping[str, float]:
        """Return numbers of the whole optimizer with their start values."""
        return {}

    def left_alone(self) -> Literal["", "weights", "all"]:
        """Tell what OptimizerV2 leaves alone, see ``left``."""
        return self.left

    @abstractmethod
    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Update parameters and slots in place; call it without gradients recorded.

        params, grads: of one dtype and device. slots: name -> one tensor for each parameter, empty
        where a variable has no such slot.
        """
