"""Parts that several engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import DropoutMasks, RnnCall, RnnResult, State, group_states
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.tensor_memory import (
    have_memory,
    is_exporting_by_torch,
)


def can_pack(*tensors: Tensor) -> bool:
    """Return whether masked sequences may be packed: not in a graph, since it depends on values."""
    if is_exporting_by_torch() or torch.compiler.is_compiling():
        return False
    if any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing():
        return False
    return have_memory(tensors)


def float_tensors(layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    """Return the tensors that may have gradients: x, the initial states, the parameters."""
    return [call.x, *call.states(), *layer.present_parameters()]


def replace_float_tensors(
    layer: RnnLayer, tensors: Sequence[Tensor], states: int
) -> tuple[RnnLayer, Tensor, tuple[State, ...] | None]:
    """Return the layer, x and the initial states with other tensors, in ``float_tensors``' order.

    states: how many of them are initial states.
    """
    rest = iter(tensors[1 + states :])
    parameters = [None if p is None else next(rest) for p in layer.parameters]
    initial = group_states(tensors[1 : 1 + states], layer.state_count())
    return layer._replace(parameters=parameters), tensors[0], initial or None


@dataclass(frozen=True)
class FixedCall:
    """A call without the tensors of ``float_tensors``; ``states``: the number of initial states."""

    layer: RnnLayer
    lengths: Tensor | None
    merge: str | None
    masks: tuple[DropoutMasks, ...]
    states: int

    @staticmethod
    def of(layer: RnnLayer, call: RnnCall) -> FixedCall:
        """Return what is left of a layer and a call."""
        return FixedCall(layer, call.lengths, call.merge, call.masks, len(call.states()))

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[RnnLayer, RnnCall]:
        """Return layer and call with the results of ``float_tensors``, or others like them."""
        layer, x, initial = replace_float_tensors(self.layer, tensors, self.states)
        return layer, RnnCall(x, self.lengths, initial, self.merge, masks=self.masks)


def needs_gradient(layer: RnnLayer, call: RnnCall) -> bool:
    """Return whether autograd has to record a call."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in float_tensors(layer, call))


def zero_states(layer: RnnLayer, x: Tensor) -> tuple[State, ...]:
    """Return states of zeros for each direction."""
    zero = x.new_zeros(x.shape[0], layer.get_weight_hh().shape[1])
    return ((zero,) * layer.state_count(),) * layer.count_directions()


def run_no_steps(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Return the outputs of no steps, and the initial states.

    The outputs (B, 0, H) depend on x and a weight, which so have gradients of zero.
    """
    x = call.x
    outputs = tuple(x.sum(dim=2, keepdim=True) * w.hh[0] for w in layer.get_weights())
    return outputs, call.initial_state or zero_states(layer, x)
