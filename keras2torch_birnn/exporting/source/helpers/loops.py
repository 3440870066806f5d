"""Recurrent layers that torch does not have, as loops over time. B batch, T time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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
