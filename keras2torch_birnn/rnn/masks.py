"""Reduce any mask to packing: move the valid steps to the front, and back afterwards.

A masked step carries the state unchanged, so running the valid steps alone, compacted to the
front, is exact in both directions and for every shape of mask: right, left, gappy, empty rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.rnn.layer import RnnCall, RnnResult
from keras2torch_birnn.rnn.native.op import lengths_of_padded
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch, outside_inference


def gather_steps(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid steps of every row to the front, in their order.

    x: (B, T, ...), mask: (B, T) bool. Returns x's shape, undefined after the valid steps, and
    lengths (B,).
    """
    return _take(x, valid_first(mask)), count_valid(mask)


def zero_past(out: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero the outputs (B, T, ...) at and after each row's length."""
    if lengths is None:
        return out
    valid = torch.arange(out.shape[1], device=out.device) < lengths[:, None]
    return torch.where(expand_dims_like(valid, out), out, torch.zeros_like(out[:1, :1]))


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse the valid steps in time: all of them, or the first ``lengths`` of each row."""
    if lengths is None:
        return x.flip(1)
    return _take(x, reversed_first(lengths, x.shape[1]))


def reversed_first(lengths: Tensor, time: int) -> Tensor:
    """Return the steps (B, T) of each row, the first ``lengths`` of them in reverse order."""
    steps = torch.arange(time, device=lengths.device)
    reversed_steps = lengths[:, None] - 1 - steps
    return torch.where(reversed_steps >= 0, reversed_steps, steps)


def scatter_steps(
    gathered: Tensor, mask: Tensor, initial_state: Tensor | None, *, backward: bool, rule: str
) -> Tensor:
    """Move a direction's outputs back to their steps and fill the masked ones.

    gathered: (B, T, ...), the valid steps first, in the order of time, then zeros. rule: the output
    at masked steps (``spec.MaskedOutput``); "previous" is meant in the direction of reading.
    initial_state: (B, ...), None for zeros. With the rule "previous_first_state" the last axis of
    gathered holds the output, then the first state.
    """
    if rule == "previous_first_state":
        outputs, states = gathered.chunk(2, dim=-1)
        shown = scatter_steps(states, mask, initial_state, backward=backward, rule="previous_state")
        filled = scatter_steps(outputs, mask, None, backward=backward, rule="zeros")
        return torch.where(expand_dims_like(mask, filled), filled, shown)
    index, nothing_yet, keep = shown_steps(mask, backward=backward, rule=rule)
    filled = _take(gathered, index.clamp(0, mask.shape[1] - 1))
    if rule == "previous_state" and initial_state is not None:
        return torch.where(expand_dims_like(nothing_yet, filled), initial_state[:, None], filled)
    return torch.where(expand_dims_like(keep, filled), filled, torch.zeros_like(filled))


def shown_steps(mask: Tensor, *, backward: bool, rule: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return which output of a direction each step (B, T) shows, by the rule of ``scatter_steps``.

    The index of a valid step in the order of time, out of range where none was read yet; that none
    was; and where the output is not zero.
    """
    seen = mask.long().cumsum(dim=1)  # ONNX adds up no bools
    # Step t shows the last valid step read so far: at or before t, at or after it if backward.
    index = seen - mask.long() if backward else seen - 1
    nothing_yet = (index < 0) | (index >= seen[:, -1:])
    keep = ~nothing_yet
    if rule == "zeros":
        keep = keep & mask
    elif rule == "zeros_unreversed":
        # Keras with unroll=True: the mask in the order of time, the outputs in that of reading.
        keep = keep & mask.flip(1)
    return index, nothing_yet, keep


def expand_dims_like(flags: Tensor, x: Tensor) -> Tensor:
    """Append axes of size 1 to flags (B,) or (B, T) until it has as many as x."""
    return flags.reshape(*flags.shape, *[1] * (x.dim() - flags.dim()))


def count_valid(mask: Tensor) -> Tensor:
    """Return the number of valid steps of each row (B,)."""
    return mask.sum(dim=1)


def valid_first(mask: Tensor) -> Tensor:
    """Return the steps (B, T) of each row, the valid ones first, both kinds in their order."""
    if not torch.compiler.is_compiling():
        return torch.argsort(~mask, dim=1, stable=True)
    # Exporters know no stable sort. Keys that all differ need none, and take twice the time.
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, steps, steps + mask.shape[1]).argsort(dim=1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the steps (B, T) of each row of x (B, T, ...)."""
    if is_exporting_by_torch():  # runtimes copy a step at once, but gather value by value
        first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
        return x.flatten(0, 1).index_select(0, (first + index).flatten()).reshape(x.shape)
    return torch.gather(x, 1, expand_dims_like(index, x).expand(-1, -1, *x.shape[2:]))


# ---- A layer under a mask, by any engine --------------------------------------------------------

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
    x, initial = call.x, call.initial_state
    given, mask = mask, to_bool_mask(x, mask)
    if mask is given and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        mask = outside_inference(mask)
    zeros = rules in ZEROS  # which merge to zeros
    counted = lengths_of_padded(mask)
    gathered, lengths = gather_steps(x, mask) if counted is None else (x, counted)
    outputs, states = run_sequence(
        RnnCall(gathered, lengths, initial, call.merge if zeros else None, call.return_state)
    )
    if counted is not None and zeros:
        return outputs, states
    outputs = tuple(
        scatter_steps(out, mask, initial[d][0] if initial else None, backward=d == 1, rule=rules[d])
        for d, out in enumerate(outputs)
    )
    return outputs, states


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
