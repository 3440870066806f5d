"""Arguments and results of one run of a recurrent layer, the same for every engine.

B batch, T time, F features, H units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.tensor_memory import outside_inference

# h (B, H), and an LSTM's c.
State: TypeAlias = tuple[Tensor, ...]
# Outputs (B, T, H) in the order of time, one per direction, or one if they were merged; final
# states, one per direction.
RnnResult: TypeAlias = tuple[tuple[Tensor, ...], tuple[State, ...]]


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

    def inputs(self) -> list[Tensor]:
        """Return x, the initial states and the lengths."""
        return [self.x, *self.states(), *(() if self.lengths is None else (self.lengths,))]

    def with_inputs(self, inputs: Iterable[Tensor]) -> RnnCall:
        """Return the call with other ``inputs``; the lengths may be new, or missing."""
        x, *rest = inputs
        each, initial = iter(rest), self.initial_state
        initial = initial and tuple(tuple(next(each) for _ in state) for state in initial)
        return self._replace(x=x, initial_state=initial, lengths=next(each, None))

    def outside_inference(self) -> RnnCall:
        """Return the call with copies of tensors made in inference mode, for autograd."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return self
        given = self.inputs()
        if not any(map(Tensor.is_inference, given)):
            return self
        return self.with_inputs(map(outside_inference, given))


def group_states(flat: Sequence[Tensor], each: int) -> tuple[State, ...]:
    """Group states that follow one another into those of each direction, ``each`` of them."""
    return tuple(tuple(flat[i : i + each]) for i in range(0, len(flat), each))


def flatten_result(result: RnnResult) -> tuple[Tensor, ...]:
    """Return the outputs and then the states, direction by direction."""
    return *result[0], *(s for state in result[1] for s in state)
