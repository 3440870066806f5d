"""Any mask is a packing problem.

A masked step carries the state unchanged, so running the valid steps alone, compacted to the
front, is exact in both directions and for every shape of mask: right, left, gappy, empty rows.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compact(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the valid steps of every row to the front, in their order.

    x: (B, T, ...), mask: (B, T) bool. Returns x's shape, whose tail is garbage, and lengths (B,).
    """
    order = torch.argsort(~mask, dim=1, stable=True)
    return _take(x, order), mask.sum(dim=1)


def zero_past(out: Tensor, lengths: Tensor | None) -> Tensor:
    """Outputs (B, T, ...) with zeros at the steps that do not count."""
    if lengths is None:
        return out
    counts = torch.arange(out.shape[1], device=out.device) < lengths[:, None]
    return torch.where(like(counts, out), out, torch.zeros_like(out[:1, :1]))


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn round the time of the valid steps: all of them, or the first ``lengths`` of each row."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    turned = lengths[:, None] - 1 - steps
    return _take(x, torch.where(turned >= 0, turned, steps))


def spread(
    compacted: Tensor, mask: Tensor, start: Tensor | None, *, backward: bool, rule: str
) -> Tensor:
    """Put a direction's outputs back to their steps and fill the masked ones.

    compacted: (B, T, ...) with the valid steps in front, in the order of time, zeros behind. What
    stands at a masked step is the ``rule``'s (``spec.MaskedOutput``); "previous" counts in the
    direction of reading. ``start``: (B, ...) state before the first step, None for zeros. With the
    rule "previous_first_state" the last axis of compacted holds the output, then the first state.
    """
    if rule == "previous_first_state":
        outputs, states = compacted.chunk(2, dim=-1)
        shown = spread(states, mask, start, backward=backward, rule="previous_state")
        filled = spread(outputs, mask, None, backward=backward, rule="zeros")
        return torch.where(like(mask, filled), filled, shown)
    seen = mask.cumsum(dim=1)
    # Step t shows the last valid step read so far: at or before t, at or after it if backward.
    index = seen - mask.long() if backward else seen - 1
    nothing_yet = (index < 0) | (index >= seen[:, -1:])
    filled = _take(compacted, index.clamp(0, mask.shape[1] - 1))
    if rule == "previous_state" and start is not None:
        return torch.where(like(nothing_yet, filled), start[:, None], filled)
    keep = ~nothing_yet
    if rule == "zeros":
        keep = keep & mask
    elif rule == "zeros_unreversed":
        # Keras with unroll=True: the mask in the order of time, the outputs in that of reading.
        keep = keep & mask.flip(1)
    return torch.where(like(keep, filled), filled, torch.zeros_like(filled))


def like(flags: Tensor, x: Tensor) -> Tensor:
    """Flags (B,) or (B, T) with axes of size 1 for all that x has more."""
    return flags.reshape(*flags.shape, *[1] * (x.dim() - flags.dim()))


def _take(x: Tensor, index: Tensor) -> Tensor:
    return torch.gather(x, 1, like(index, x).expand(-1, -1, *x.shape[2:]))
