"""A cell in the words of the Triton kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from keras2torch_birnn.functional.activations import FUNCTIONS, Activation
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, GRU_BEFORE
from keras2torch_birnn.rnn.gpu.function_options import FUNCTION_OPTIONS, WHOLE_ROWS
from keras2torch_birnn.rnn.layer import Cell

# How the kernels are launched. steps: behind a product of torch's for each step; fused: once for a
# step, which they multiply themselves; persistent: once for all steps.
Form: TypeAlias = Literal["steps", "fused", "persistent"]


class StepFunction(NamedTuple):
    """An activation: its name in ``FUNCTIONS``, and up to three numbers that belong to it."""

    name: str
    first: float = 0.0
    second: float = 0.0
    third: float = 0.0


class StepCell(NamedTuple):
    """A cell as the kernels take it; kind: a key of ``CELL_KINDS``."""

    kind: str
    activation: StepFunction
    recurrent_activation: StepFunction
    form: Form = "steps"

    @property
    def gates(self) -> int:
        """The blocks of H rows in a weight."""
        return CELL_KINDS[self.kind].gates

    @property
    def resets_before(self) -> bool:
        """Tell whether a step needs a second product, of the state that was reset."""
        return self.kind == GRU_BEFORE

    @property
    def needs_whole_rows(self) -> bool:
        """Tell whether one program of a kernel has to compute all units of a row."""
        names = (self.activation.name, self.recurrent_activation.name)
        return self.form == "persistent" or not WHOLE_ROWS.isdisjoint(names)


_NAMES: Mapping[Activation, str] = {function: name for name, function in FUNCTIONS.items()}


def to_step_cell(cell: Cell) -> StepCell | None:
    """Return a cell in the words of the kernels; None if they lack one of its activations."""
    activation = _find(cell.activation)
    recurrent = _find(cell.recurrent_activation)
    if activation is None or recurrent is None:
        return None
    return StepCell(cell.kind, activation, recurrent)


def _find(function: Activation) -> StepFunction | None:
    given = function.keywords if isinstance(function, partial) else {}
    name = _NAMES.get(function.func if isinstance(function, partial) else function, "")
    if name not in FUNCTION_OPTIONS:
        return None
    if name in WHOLE_ROWS and given.get("axis", -1) not in (-1, 1):
        return None  # over the rows of a batch
    options = {key: given.get(key, default) for key, default in FUNCTION_OPTIONS[name].items()}
    return StepFunction(name, *(float("inf") if o is None else float(o) for o in options.values()))
