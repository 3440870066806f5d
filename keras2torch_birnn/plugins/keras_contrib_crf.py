"""``CRF`` of keras-contrib: the best path of tags (Viterbi), or the probability of each tag.

    e_t(j) = activation(x_t . kernel + bias)(j)           energies: the best path has the smallest
    e_first += left_boundary, e_last += right_boundary    with ``use_boundary``
    C(i, j) = chain_kernel                                from tag i to tag j

Recursion, from prev = 0, over every step t and pair of tags (i at t, j at t + 1):

    best:  prev(j) <- min_i  C(i, j) + e_t(i) + prev(i)           T_t(j) = the first minimal i
    sum:   prev(j) <- log sum_i exp(-(C(i, j) + e_t(i) - prev(i)))

With a mask m, e_t is multiplied by m_t and C by m_t m_{t+1} (0 after the last step). Boundaries are
added where the mask begins and ends: ``start = m_t > m_{t-1}``, but ``end = m_{t+1} > m_t``, a slip
of keras-contrib, which is the step before a beginning; that step is masked, so that with a mask
there is no right boundary.

viterbi: y_T = T_T(T_T(0)), y_t = T_t(y_{t+1}), as one-hot vectors. Without a mask T_T still has C
in it, towards a step after the last: keras-contrib relies on equal columns.
marginal: softmax(-(a_{t-1} + e_t + b_{t+1})), a from the left, b from the right by the same C, not
its transpose, and with these signs: again as keras-contrib computes it.

The mask that is passed on: the input's with ``learn_mode="marginal"``, else one value per row (any
step).
``learn_mode``, ``sparse_target`` and ``unroll`` change nothing else at inference.

Source: keras-contrib (commit 3fc5ef7) ``layers/crf.py``, read for its equations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import keras2torch_birnn as k2t
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.rnn.activations import activation
from keras2torch_birnn.schema.options import Option, choice, flag, size
from keras2torch_birnn.schema.options import activation as activation_option
from keras2torch_birnn.spec import Array

NAME = "CRF"


class CRF(nn.Module):
    """(B, T, F) -> (B, T, units): one-hot tags, or probabilities."""

    kernel: nn.Parameter
    chain_kernel: nn.Parameter
    bias: nn.Parameter
    left_boundary: nn.Parameter
    right_boundary: nn.Parameter

    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        config, units = layer.config, layer.config["units"]
        self.viterbi = _mode(config) == "viterbi"
        self.activation = activation(config["activation"])
        for name in ("kernel", "chain_kernel"):
            self.register_parameter(name, nn.Parameter(torch.tensor(layer.weights[name])))
        for name in ("bias", "left_boundary", "right_boundary"):  # absent ones add nothing
            value = layer.weights.get(name, np.zeros(units, layer.weights["kernel"].dtype))
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the layer; ``mask``: (B, T), may have gaps and begin anywhere."""
        energy = self.activation(x @ self.kernel + self.bias)
        chain = self.chain_kernel.expand(x.shape[1], 1, -1, -1)  # (T, 1, i, j)
        backwards = chain
        if mask is None:
            ends = torch.zeros_like(energy[:, :, :1])
            ends[:, 0] = 1
            energy = energy + ends * self.left_boundary + ends.flip(1) * self.right_boundary
        else:
            kept = mask.to(x.dtype)  # (B, T)
            begins = (functional.pad(kept, (1, 0))[:, :-1] < kept).unsqueeze(-1)
            energy = (energy + begins * self.left_boundary) * kept.unsqueeze(-1)
            chain, backwards = (
                self.chain_kernel * (m * functional.pad(m, (0, 1))[:, 1:]).T[..., None, None]
                for m in (kept, kept.flip(1))
            )
        if self.viterbi:
            return self._best(energy, chain)
        left, right = self._sums(energy, chain), self._sums(energy.flip(1), backwards).flip(1)
        before = functional.pad(left, (0, 0, 1, 0))[:, :-1]
        after = functional.pad(right, (0, 0, 0, 1))[:, 1:]
        return torch.softmax(-(before + energy + after), dim=-1)

    def _best(self, energy: Tensor, chain: Tensor) -> Tensor:
        previous, tables = torch.zeros_like(energy[:, 0]), []
        for t in range(energy.shape[1]):
            total = chain[t] + (energy[:, t] + previous).unsqueeze(-1)  # (B, i, j)
            previous = total.amin(dim=1)
            tables.append(total.argmin(dim=1))
        tag, path = tables[-1][:, :1], []
        for table in reversed(tables):
            tag = table.gather(1, tag)
            path.append(tag)
        tags = torch.cat(path[::-1], dim=1)
        return functional.one_hot(tags, energy.shape[2]).to(energy.dtype)

    def _sums(self, energy: Tensor, chain: Tensor) -> Tensor:
        previous, sums = torch.zeros_like(energy[:, 0]), []
        for t in range(energy.shape[1]):
            total = chain[t] + (energy[:, t] - previous).unsqueeze(-1)
            previous = torch.logsumexp(-total, dim=1)
            sums.append(previous)
        return torch.stack(sums, dim=1)

    def extra_repr(self) -> str:
        """Return the decoding mode."""
        return "viterbi" if self.viterbi else "marginal"


def _mode(config: Any) -> str:
    default = "viterbi" if config["learn_mode"] == "join" else "marginal"
    return str(config["test_mode"] or default)


def any_step(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mask of rows that keras-contrib passes on in ``join`` mode."""
    return mask.any(dim=1)


def _mask(layer: k2t.LayerSpec) -> k2t.MaskFlow:
    join = layer.config["learn_mode"] == "join"
    return k2t.MaskFlow(takes=True, after=any_step if join else "same")


def _weights(config: Any, shape: Any) -> dict[str, tuple[int | None, ...]]:
    units = config["units"]
    weights: dict[str, tuple[int | None, ...]] = {
        "kernel": (shape[-1] if shape else None, units),
        "chain_kernel": (units, units),
    }
    if config["use_bias"]:
        weights["bias"] = (units,)
    if config["use_boundary"]:
        weights |= {"left_boundary": (units,), "right_boundary": (units,)}
    return weights


@k2t.converts(
    NAME,
    mask=_mask,
    weights=_weights,
    options={
        "units": size(),
        "learn_mode": choice("join", "join", "marginal"),
        "test_mode": choice(None, None, "viterbi", "marginal"),
        "sparse_target": flag(False),
        "use_boundary": flag(True),
        "use_bias": flag(True),
        "activation": activation_option(),
        "input_dim": Option(None, lambda value: value),
        "unroll": flag(False),
    },
    output=lambda config, shape: (*shape[:2], config["units"]),
)
def crf(layer: k2t.LayerSpec) -> nn.Module:
    """Build the layer."""
    return CRF(layer)


@k2t.equation(NAME)
def equation(layer: k2t.LayerSpec, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
    """Compute the layer row by row, step by step."""
    config = layer.config
    decode = _best_path if _mode(config) == "viterbi" else _probabilities
    energies = activate(config["activation"], x @ layer.weights["kernel"] + _bias(layer))
    rows = []
    for row, energy in enumerate(energies):
        energy, kept = energy.copy(), np.ones(len(energy)) if mask is None else mask[row]
        kept = kept.astype(x.dtype)
        if config["use_boundary"]:
            for t in range(len(energy)):
                if kept[t] > (kept[t - 1] if t else 0):
                    energy[t] += layer.weights["left_boundary"]
            if mask is None:
                energy[-1] += layer.weights["right_boundary"]
        rows.append(decode(energy * kept[:, None], layer.weights["chain_kernel"], kept, mask))
    if mask is not None and config["learn_mode"] == "join":
        return np.stack(rows), np.asarray(mask.astype(bool).any(axis=1))
    return np.stack(rows), mask


def _bias(layer: k2t.LayerSpec) -> Any:
    return layer.weights["bias"] if layer.config["use_bias"] else 0


def _joins(kept: Array, mask: Array | None) -> Array:
    """Return 1 where the chain applies between a step and the next, else 0."""
    after = np.append(kept[1:], 0 if mask is not None else 1)
    return np.asarray(kept * after)


def _best_path(energy: Array, chain: Array, kept: Array, mask: Array | None) -> Array:
    units, previous, tables = energy.shape[1], np.zeros_like(energy[0]), []
    for step, joins in zip(energy, _joins(kept, mask), strict=True):
        total = chain * joins + (step + previous)[:, None]
        previous = total.min(axis=0)
        tables.append(total.argmin(axis=0))
    tag, path = tables[-1][0], []
    for table in tables[::-1]:
        tag = table[tag]
        path.append(tag)
    return np.eye(units, dtype=energy.dtype)[path[::-1]]


def _probabilities(energy: Array, chain: Array, kept: Array, mask: Array | None) -> Array:
    left = _sums(energy, chain, _joins(kept, mask))
    right = _sums(energy[::-1], chain, _joins(kept[::-1], mask))[::-1]
    out = np.empty_like(energy)
    for t in range(len(energy)):
        score = energy[t].copy()
        score += left[t - 1] if t else 0
        score += right[t + 1] if t + 1 < len(energy) else 0
        raised = np.exp(score.min() - score)
        out[t] = raised / raised.sum()
    return out


def _sums(energy: Array, chain: Array, joins: Array) -> Array:
    previous, sums = np.zeros_like(energy[0]), []
    for step, joined in zip(energy, joins, strict=True):
        total = -(chain * joined + (step - previous)[:, None])
        top = total.max(axis=0)
        previous = top + np.log(np.exp(total - top).sum(axis=0))
        sums.append(previous)
    return np.stack(sums)
