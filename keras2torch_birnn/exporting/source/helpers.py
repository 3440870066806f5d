"""Parts of generated source code: this module is copied from, definition by definition.

It imports torch and the standard library alone, and lines are short enough for any formatter.
B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# ---- recurrent layers that torch does not have, as loops over time ----


class Loop(nn.Module):
    """Base of recurrent layers; parameters and call are those of nn.LSTM and nn.GRU.

    ``gates``: blocks of rows in a weight; ``states``: what a step carries; ``biases``:
    those added to the product of the input, and to that of the state.
    """

    gates = 1
    states = 1
    biases: tuple[str, ...] = ("bias_ih",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        bidirectional: bool = False,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        recurrent_activation: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.activation = activation
        self.recurrent_activation = recurrent_activation
        self.suffixes = ("_l0", "_l0_reverse") if bidirectional else ("_l0",)
        bound, rows = 1 / math.sqrt(hidden_size), self.gates * hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, hidden_size),
            **{name: (rows,) for name in self.biases if bias},
        }
        for suffix in self.suffixes:
            for name, shape in shapes.items():
                weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(name + suffix, weight)

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute one step: x (B, gates * H) and the state (B, H) give the new state."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, state: Any = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Read x (B, T, F); a masked step, false in ``mask`` (B, T), keeps the state."""
        if mask is not None:  # a NaN at a masked step must reach no gradient
            x = torch.where(mask[..., None], x, torch.zeros_like(x))
        size = (len(self.suffixes), len(x), self.hidden_size)
        initial = state if self.states > 1 or state is None else (state,)
        initial = initial or (x.new_zeros(size),) * self.states
        outputs, finals = [], []
        for number, suffix in enumerate(self.suffixes):
            own = tuple(part[number] for part in initial)
            out, final = self.run(x, own, mask, suffix, backward=number == 1)
            outputs.append(out)
            finals.append(final)
        states = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        return torch.cat(outputs, dim=-1), states if self.states > 1 else states[0]

    def run(
        self,
        x: Tensor,
        state: tuple[Tensor, ...],
        mask: Tensor | None,
        suffix: str,
        *,
        backward: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one direction; its outputs (B, T, H) are in the order of time."""
        weights = dict(self.named_parameters())
        w, b = weights["weight_hh" + suffix], weights.get("bias_hh" + suffix)
        bias = weights.get("bias_ih" + suffix)
        products = functional.linear(x, weights["weight_ih" + suffix], bias).unbind(1)
        steps = range(len(products))
        outputs = []
        for t in reversed(steps) if backward else steps:
            new = self.step(products[t], state, w, b)
            if mask is not None:
                valid, pairs = mask[:, t, None], zip(new, state, strict=True)
                new = tuple(torch.where(valid, one, old) for one, old in pairs)
            state = new
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backward else outputs, dim=1), state


class LoopLSTM(Loop):
    """An LSTM with any activations. Gates: input, forget, cell, output."""

    gates = 4
    states = 2

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute c' = f c + i g; h' = o act(c')."""
        h, c = state
        i, f, g, o = (x + functional.linear(h, w)).chunk(4, dim=1)
        gate = self.recurrent_activation
        c = gate(f) * c + gate(i) * self.activation(g)
        return gate(o) * self.activation(c), c


class LoopGRU(Loop):
    """A GRU with any activations that resets after its product. Gates: r, z, n."""

    gates = 3
    biases = ("bias_ih", "bias_hh")

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute n = act(x_n + r (U_n h + b_n)); h' = z h + (1 - z) n."""
        (h,) = state
        x_r, x_z, x_n = x.chunk(3, dim=1)
        h_r, h_z, h_n = functional.linear(h, w, b).chunk(3, dim=1)
        r = self.recurrent_activation(x_r + h_r)
        z = self.recurrent_activation(x_z + h_z)
        n = self.activation(x_n + r * h_n)
        return (z * h + (1 - z) * n,)


class ResetBeforeGRU(Loop):
    """A GRU that resets the state before its product. Gates: r, z, n."""

    gates = 3

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute n = act(x_n + U_n (r h)); h' = z h + (1 - z) n."""
        (h,) = state
        w_r, w_z, w_n = w.chunk(3)
        x_r, x_z, x_n = x.chunk(3, dim=1)
        r = self.recurrent_activation(x_r + functional.linear(h, w_r))
        z = self.recurrent_activation(x_z + functional.linear(h, w_z))
        n = self.activation(x_n + functional.linear(r * h, w_n))
        return (z * h + (1 - z) * n,)


class LoopRNN(Loop):
    """A simple recurrent layer with any activation."""

    def step(
        self, x: Tensor, state: tuple[Tensor, ...], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute h' = act(x + U h)."""
        return (self.activation(x + functional.linear(state[0], w)),)


# ---- masked steps: a recurrent layer reads the valid steps alone ----


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


# ---- batch normalization as Keras trains it where torch's differs ----


class FrozenBatchNorm(nn.BatchNorm1d):
    """An nn.BatchNorm1d that uses its moving averages in training, too."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize the channels of (B, C, ...)."""
        return functional.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            eps=self.eps,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any rank."""


class AnyBatchNorm(nn.BatchNorm1d):
    """An nn.BatchNorm1d for inputs of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any rank."""


class MaskedBatchNorm(nn.BatchNorm1d):
    """An nn.BatchNorm1d for (B, ..., C) that trains by the valid steps alone."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize every channel; mask: the input's shape without C, true if valid."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            raise ValueError("the moving averages are part of this layer")
        if self.training:
            valid = torch.ones_like(input[..., 0]).bool() if mask is None else mask
            weight = valid[..., None].to(input.dtype).expand_as(input)
            axes = tuple(range(input.dim() - 1))
            count = weight.sum(axes) + 1e-7  # as in Keras, also where no step is valid
            batch_mean = (input * weight).sum(axes) / count
            batch_var = ((input - batch_mean).square() * weight).sum(axes) / count
            with torch.no_grad():
                share = 0.1 if self.momentum is None else self.momentum
                mean += (batch_mean - mean) * share
                var += (batch_var - var) * share
            mean, var = batch_mean, batch_var
        y = (input - mean) * torch.rsqrt(var + self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


# ---- padding "same" where torch has none: windows with a stride ----


def pad_same(
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    value: float = 0.0,
) -> Tensor:
    """Pad the last axes of x so that windows cover ceil(length / stride) places.

    The odd element is added behind. ``size``: how far a (dilated) window reaches.
    """
    around: list[int] = []
    lengths = x.shape[-len(size) :]
    for length, reach, step in zip(lengths, size, stride, strict=True):
        total = -length % step + reach - step
        if reach < step:
            total = max(total, 0)
        around = [total // 2, total - total // 2, *around]
    return functional.pad(x, around, value=value)
