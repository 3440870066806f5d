"""Run a recurrent layer under a mask, by any engine. B batch, T time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.masks import gather_steps, scatter_steps
from keras2torch_birnn.rnn.native.op import lengths_of_padded
from keras2torch_birnn.rnn.tensor_memory import outside_inference

# Rules that leave zeros at masked steps, which merge to zeros.
ZEROS = {("zeros",), ("zeros", "zeros")}


def run_masked(
    run_sequence: Callable[[RnnCall], RnnResult],
    call: RnnCall,
    mask: Tensor,
    rules: tuple[str, ...],
) -> RnnResult:
    """Run the valid steps alone: gather them, run, scatter the outputs back.

    mask: (B, T), not zero at valid steps. rules: the output at masked steps of each direction
    (``masks.scatter_steps``).

    Raises:
        ArgumentValueError: the mask has another shape than x has steps.
    """
    x, initial, merge = call.x, call.initial_state, call.merge
    given, mask = mask, to_bool_mask(x, mask)
    if mask is given and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        mask = outside_inference(mask)
    zeros = rules in ZEROS  # which merge to zeros
    counted = lengths_of_padded(mask)
    gathered, lengths = gather_steps(x, mask) if counted is None else (x, counted)
    outputs, states = run_sequence(
        RnnCall(gathered, lengths, initial, merge if zeros else None, call.return_state)
    )
    if counted is not None and zeros:
        return outputs, states
    outputs = tuple(
        scatter_steps(out, mask, initial[d][0] if initial else None, backward=d == 1, rule=rules[d])
        for d, out in enumerate(outputs)
    )
    return outputs if zeros else merge_outputs(outputs, merge), states


def to_bool_mask(x: Tensor, mask: Tensor) -> Tensor:
    """Return a mask (B, T) of any dtype for the steps of x (B, T, ...) as flags.

    Raises:
        ArgumentValueError: it has another shape than x has steps.
    """
    if mask.shape != x.shape[:2]:
        raise ArgumentValueError(
            f"a mask {list(x.shape[:2])} is expected, found {list(mask.shape)}"
        )
    return as_flags(mask)


def as_flags(mask: Tensor) -> Tensor:
    """Return a mask of any dtype as flags."""
    return mask if mask.dtype is torch.bool else mask.bool()
