"""One recurrent layer as the engines see it. H units, G gates, F features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from keras2torch_birnn.rnn.activations import Activation
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.engines import EngineRequest
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.rnn.native.library import NativeCell


@dataclass(frozen=True)
class Cell:
    """A cell's kind (a key of ``CELL_KINDS``) and its two nonlinearities."""

    kind: str
    activation: Activation
    recurrent_activation: Activation


class Weights(NamedTuple):
    """One direction's parameters by torch's names; a bias may be absent."""

    ih: Tensor  # (G*H, F)
    hh: Tensor  # (G*H, H)
    bias_ih: Tensor | None  # (G*H,)
    bias_hh: Tensor | None  # (G*H,)


# Torch's names of them, without the layer's number and direction.
WEIGHT_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True)
class DropoutRates:
    """Rates of the input's and the state's dropout, and whether each gate has its own mask."""

    inputs: float = 0.0
    recurrent: float = 0.0
    per_gate: bool = False

    def drop(self) -> bool:
        """Return whether there is any dropout: Keras drops for 0 < rate < 1 only."""
        return 0.0 < self.inputs < 1.0 or 0.0 < self.recurrent < 1.0


class RnnLayer(NamedTuple):
    """A cell and the weights of its directions.

    parameters: four for each direction, in the order of ``Weights``. kernel: the function of torch
    that computes this cell; native: the cell in the codes of the native kernel; None where there is
    none. engine: as the caller chose, None for ``K2T_ENGINE``. precision: None for float32.
    """

    cell: Cell
    parameters: Sequence[Any]  # Tensor, or None for an absent bias
    kernel: Callable[..., Any] | None = None
    native: NativeCell | None = None
    dropout: DropoutRates | None = None
    training: bool = False
    engine: EngineRequest | None = None
    precision: ReducedPrecision | None = None

    def get_weights(self) -> tuple[Weights, ...]:
        """Return the parameters of each direction by their names."""
        given = self.parameters
        return tuple(Weights(*given[i : i + 4]) for i in range(0, len(given), 4))

    def get_weight_ih(self) -> Tensor:
        """Return the first direction's input weights (G*H, F)."""
        first: Tensor = self.parameters[0]
        return first

    def get_weight_hh(self) -> Tensor:
        """Return the first direction's recurrent weights (G*H, H)."""
        second: Tensor = self.parameters[1]
        return second

    def count_directions(self) -> int:
        """Return the number of directions."""
        return len(self.parameters) // 4

    def present_parameters(self) -> list[Tensor]:
        """Return the parameters without absent biases."""
        return [p for p in self.parameters if p is not None]

    def state_count(self) -> int:
        """Return the number of states of one direction: h, and an LSTM's c."""
        return CELL_KINDS[self.cell.kind].states

    def drops(self) -> bool:
        """Return whether this layer applies dropout now."""
        return self.training and self.dropout is not None and self.dropout.drop()
