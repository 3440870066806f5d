"""A recurrent layer and one call of it, as every engine gets them.

B batch, T time, F features, H units, G gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.activations import Activation, activation
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.engines import EngineRequest
from keras2torch_birnn.rnn.native.codes import FALLING, ReducedPrecision
from keras2torch_birnn.rnn.native.library import find_codes
from keras2torch_birnn.rnn.tensor_memory import outside_inference

# h (B, H), and an LSTM's c.
State: TypeAlias = tuple[Tensor, ...]
# Outputs (B, T, H) in the order of time, one per direction, or one if they were merged; final
# states, one per direction.
RnnResult: TypeAlias = tuple[tuple[Tensor, ...], tuple[State, ...]]

# ---- the layer ----------------------------------------------------------------------------------

# Functions of torch, by kind and activation; gates are sigmoids.
KERNELS: Mapping[tuple[str, Any], Callable[..., Any]] = {
    ("LSTM", "tanh"): torch.lstm,
    ("GRU", "tanh"): torch.gru,
    ("SimpleRNN", "tanh"): torch.rnn_tanh,
    ("SimpleRNN", "relu"): torch.rnn_relu,
}


@dataclass(frozen=True)
class Cell:
    """A cell as each engine knows it.

    kind: a key of ``CELL_KINDS``. kernel: the function of torch that computes it, None if there is
    none. codes: kind and both activations in the codes of the native kernel, empty if that lacks
    one; options: one for each activation.
    """

    kind: str
    activation: Activation
    recurrent_activation: Activation
    kernel: Callable[..., Any] | None
    codes: tuple[int, ...]
    options: tuple[float, ...]

    def has_native_gradient(self) -> bool:
        """Return whether the native kernel knows the derivatives of both activations."""
        functions = zip(self.codes[1:], self.options, strict=True)
        return not any(code in FALLING or option < 0 for code, option in functions)

    @staticmethod
    def of(kind: str, function: Any, gate: Any) -> Cell:
        """Return the cell of a kind with two explicit activations: names, or dicts with options."""
        usual = gate == ("linear" if kind == "SimpleRNN" else "sigmoid")
        has_kernel = usual and isinstance(function, str)
        kernel = KERNELS.get((kind, function)) if has_kernel else None
        return Cell(
            kind, activation(function), activation(gate), kernel, *find_codes(kind, function, gate)
        )


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

    parameters: four for each direction, in the order of ``Weights``. engine: as the caller chose,
    None for ``K2T_ENGINE``. precision: None for float32.
    """

    cell: Cell
    parameters: Sequence[Any]  # Tensor, or None for an absent bias
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

    def zero_states(self, x: Tensor) -> tuple[State, ...]:
        """Return states of zeros for each direction."""
        zero = x.new_zeros(x.shape[0], self.get_weight_hh().shape[1])
        return ((zero,) * self.state_count(),) * self.count_directions()


# ---- the call -----------------------------------------------------------------------------------


class DropoutMasks(NamedTuple):
    """One direction's factors of what the gates read in every step.

    inputs: of x, (B, F); state: of h, (B, H). One for all gates, or one for each, in torch's order;
    none where nothing is dropped.
    """

    inputs: tuple[Tensor, ...] = ()
    state: tuple[Tensor, ...] = ()


class RnnCall(NamedTuple):
    """Arguments of one run.

    x: (B, T, F). lengths: (B,), the number of valid steps at the start of each row, None for T;
    outputs after them are zero, and a row of length 0 keeps its initial state. initial_state: one
    for each direction, None for zeros. merge: a key of ``MERGE_MODES``, which an engine may apply
    as it computes, None if it must keep the two directions apart. return_state: if False, an engine
    may return no final states. masks: one for each direction if the layer drops, else none.
    """

    x: Tensor
    lengths: Tensor | None = None
    initial_state: tuple[State, ...] | None = None
    merge: str | None = None
    return_state: bool = True
    masks: tuple[DropoutMasks, ...] = ()

    def states(self) -> list[Tensor]:
        """Return the tensors of ``initial_state``, direction by direction."""
        return [s for state in self.initial_state for s in state] if self.initial_state else []

    def outside_inference(self) -> RnnCall:
        """Return the call with copies of tensors made in inference mode, for autograd."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self
        initial, lengths = self.initial_state, self.lengths
        given = [self.x, *self.states(), *(() if lengths is None else (lengths,))]
        if not any(map(Tensor.is_inference, given)):
            return self
        return self._replace(
            x=outside_inference(self.x),
            lengths=None if lengths is None else outside_inference(lengths),
            initial_state=initial and tuple(tuple(map(outside_inference, s)) for s in initial),
        )


def group_states(flat: Sequence[Tensor], each: int) -> tuple[State, ...]:
    """Group states that follow one another into those of each direction, ``each`` of them."""
    return tuple(tuple(flat[i : i + each]) for i in range(0, len(flat), each))


# ---- what may have gradients --------------------------------------------------------------------


def float_tensors(layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    """Return the tensors that may have gradients: x, the initial states, the parameters."""
    return [call.x, *call.states(), *layer.present_parameters()]


def with_float_tensors(
    layer: RnnLayer, call: RnnCall, tensors: Sequence[Tensor]
) -> tuple[RnnLayer, RnnCall]:
    """Return a layer and a call with other tensors, in the order of ``float_tensors``."""
    behind = len(tensors) - len(layer.present_parameters())
    rest = iter(tensors[behind:])
    parameters = [None if p is None else next(rest) for p in layer.parameters]
    initial = group_states(tensors[1:behind], layer.state_count()) or None
    return layer._replace(parameters=parameters), call._replace(x=tensors[0], initial_state=initial)


def needs_gradient(layer: RnnLayer, call: RnnCall) -> bool:
    """Return whether autograd has to record a call."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in float_tensors(layer, call))
