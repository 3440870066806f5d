"""Masked steps: a recurrent layer reads the valid steps alone. B batch, T time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def select_rows(rows: Tensor, new: Any, old: Any) -> Any:
    """Take the new states where ``rows`` (B, 1) is true, else the old (None: zeros)."""
    if isinstance(new, tuple):
        olds = old or (None,) * len(new)
        pairs = zip(new, olds, strict=True)
        return tuple(select_rows(rows, one, other) for one, other in pairs)
    return torch.where(rows, new, torch.zeros_like(new) if old is None else old)


def run_valid_steps(
    rnn: nn.LSTM | nn.GRU | nn.RNN, x: Tensor, mask: Tensor, state: Any = None
) -> tuple[Tensor, Any]:
    """Run torch's layer over the valid steps of every row, whatever their order.

    x: (B, T, F); mask: (B, T), true at valid steps. Returns the outputs (B, T, ...),
    zero at masked steps, and the final state.
    """
    # A row with nothing valid runs one step, unused: a NaN there must reach no gradient.
    x = torch.where(mask[..., None], x, torch.zeros_like(x))
    order = (~mask).long().argsort(dim=1, stable=True)[..., None]  # valid ones first
    lengths = mask.sum(dim=1)
    packed = pack_padded_sequence(
        x.gather(1, order.expand_as(x)),
        lengths.clamp(min=1).cpu(),
        batch_first=True,
        enforce_sorted=False,
    )
    packed, final = rnn(packed, state)
    front, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
    out = torch.zeros_like(front).scatter(1, order.expand_as(front), front)
    out = torch.where(mask[..., None], out, torch.zeros_like(out))
    return out, select_rows((lengths > 0)[:, None], final, state)


def hold_last(out: Tensor, mask: Tensor, first: Tensor | None = None) -> Tensor:
    """Repeat the last valid output at masked steps.

    out: (B, T, H); mask: (B, T); first: (B, H), the output before any valid step, zeros
    if None.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, steps, -1).cummax(dim=1).values[..., None]
    held = out.gather(1, last.clamp(min=0).expand_as(out))
    before = torch.zeros_like(held) if first is None else first[:, None]
    return torch.where(last >= 0, held, before)
