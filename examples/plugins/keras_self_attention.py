"""``SeqSelfAttention`` and ``SeqWeightedAttention`` of keras-self-attention, in three editions.

A file does not say which version of the package wrote it, and these versions compute different
numbers: set ``EDITION`` below to that of yours.

For every pair of steps t (query) and u (key):

    additive        e(t, u) = tanh(x_t . Wt + x_u . Wx + bh) . Wa + ba
    multiplicative  e(t, u) = (x_t . Wa) . x_u + ba
    e <- attention_activation(e)
    y_t = sum_u a(t, u) x_u

The window of step t is lower <= u < lower + attention_width, with lower = t - attention_width + 1
if ``history_only``, else t - attention_width // 2; w(t, u) is 1 in it. m is the mask. The package
changed how these enter:

    0.28 to 0.45  a = r / (sum_u r + 1e-7),  r = exp(e - max_u e) w(t, u) m_t m_u
    0.46          a = softmax_u(e - 10000 (1 - m_t)(1 - m_u)): the window has no effect there, and a
                  masked step is hidden from masked ones only
    0.47 to 0.51  a = softmax_u(e - 10000 (1 - w(t, u)) - 10000 (1 - m_t)(1 - m_u))

``SeqWeightedAttention``: s_t = x_t . W + b, one output y = sum_t a_t x_t with

    0.28 to 0.45  a = r / (sum r + 1e-7),  r = exp(s - max s) m
    0.46 to 0.51  the same with s - 10000 (1 - m) and without the last m

``SeqSelfAttention`` passes the mask on, ``SeqWeightedAttention`` does not.
``attention_regularizer_weight`` adds to the loss in training only.

Source: keras-self-attention 0.28 to 0.51, ``seq_self_attention.py`` and
``seq_weighted_attention.py``, read for their equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.rnn.activations import activation
from keras2torch_birnn.schema import options
from keras2torch_birnn.spec import Array

# "0.45" for 0.28 to 0.45, "0.46", or "0.51" for 0.47 to 0.51.
EDITION = "0.51"
EPSILON, FAR = 1e-7, 10000.0
ADDITIVE = "additive"

OPTIONS: Mapping[str, Any] = {
    "units": options.size(32),
    "attention_width": options.optional(options.size()),
    "attention_type": options.choice(ADDITIVE, ADDITIVE, "multiplicative"),
    "return_attention": options.flag(False),
    "history_only": options.flag(False),
    "use_additive_bias": options.flag(True),
    "use_attention_bias": options.flag(True),
    "attention_activation": options.activation(),
    "attention_regularizer_weight": options.number(0.0),
}
WEIGHTED_OPTIONS: Mapping[str, Any] = {
    "use_bias": options.flag(True),
    "return_attention": options.flag(False),
}


# ---- SeqSelfAttention --------------------------------------------------------------------------


class SeqSelfAttention(nn.Module):
    """(B, T, F) -> (B, T, F), and with ``return_attention`` the attention weights (B, T, T)."""

    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        self.config = dict(layer.config)
        self.activation = activation(layer.config["attention_activation"])
        for name, value in layer.weights.items():
            short = name.partition("_")[2]  # Add_Wt -> Wt
            self.register_parameter(short, nn.Parameter(torch.tensor(value)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the layer; ``mask``: (B, T)."""
        scores = self.activation(self._scores(x))
        attention = self._attend(scores, None if mask is None else mask.to(x.dtype))
        out = attention @ x
        return (out, attention) if self.config["return_attention"] else out

    def _scores(self, x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = dict(self.named_parameters())
        attention_bias = weights.get("ba", x.new_zeros(1))
        if self.config["attention_type"] != ADDITIVE:
            return (x @ weights["Wa"]) @ x.transpose(1, 2) + attention_bias
        query, key = (x @ weights["Wt"]).unsqueeze(2), (x @ weights["Wx"]).unsqueeze(1)
        hidden = torch.tanh(query + key + weights.get("bh", x.new_zeros(1)))
        return (hidden @ weights["Wa"]).squeeze(-1) + attention_bias

    def _attend(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        window = self._window(scores)
        if EDITION == "0.45":
            exponentials = torch.exp(scores - scores.amax(dim=-1, keepdim=True)) * window
            if mask is not None:
                exponentials = exponentials * mask.unsqueeze(1) * mask.unsqueeze(2)
            return exponentials / (exponentials.sum(dim=-1, keepdim=True) + EPSILON)
        if EDITION == "0.51":
            scores = scores - FAR * (1 - window)
        if mask is not None:
            scores = scores - FAR * (1 - mask).unsqueeze(1) * (1 - mask).unsqueeze(2)
        return torch.softmax(scores, dim=-1)

    def _window(self, scores: Tensor) -> Tensor:
        """Return a (T, T) matrix with 1 where the row's step attends to the column's."""
        steps, width = scores.shape[-1], self.config["attention_width"]
        if width is None:
            return scores.new_ones(steps, steps)
        t = torch.arange(steps, device=scores.device)
        lower = (t - (width - 1 if self.config["history_only"] else width // 2)).unsqueeze(1)
        inside: Tensor = (lower <= t) & (t < lower + width)
        return inside.to(scores.dtype)

    def extra_repr(self) -> str:
        """Return edition and attention type."""
        return f"keras-self-attention {EDITION}, {self.config['attention_type']}"


def weight_shapes(config: Mapping[str, Any], shape: Any) -> dict[str, tuple[int | None, ...]]:
    """Return the weights' shapes, in the package's order."""
    size, units = shape[-1] if shape else None, config["units"]
    if config["attention_type"] == ADDITIVE:
        every: dict[str, tuple[tuple[int | None, ...], bool]] = {
            "Add_Wt": ((size, units), True),
            "Add_Wx": ((size, units), True),
            "Add_bh": ((units,), config["use_additive_bias"]),
            "Add_Wa": ((units, 1), True),
            "Add_ba": ((1,), config["use_attention_bias"]),
        }
    else:
        every = {"Mul_Wa": ((size, size), True), "Mul_ba": ((1,), config["use_attention_bias"])}
    return {name: shape for name, (shape, there) in every.items() if there}


def output_shape(config: Mapping[str, Any], shape: Any) -> Any:
    """Return the input's shape, and that of the attention weights if they are returned."""
    return (shape, (*shape[:2], shape[1])) if config["return_attention"] else shape


@k2t.converts(
    "SeqSelfAttention",
    mask="uses and passes",
    weights=weight_shapes,
    options=OPTIONS,
    outputs=lambda layer: 2 if layer.config["return_attention"] else 1,
    output=output_shape,
)
def seq_self_attention(layer: k2t.LayerSpec) -> nn.Module:
    """Build the layer."""
    return SeqSelfAttention(layer)


@k2t.equation("SeqSelfAttention")
def self_attention_equation(
    layer: k2t.LayerSpec, x: Array, mask: Array | None
) -> tuple[Any, Array | None]:
    """Compute the equation, one query step after the other."""
    config, weights = layer.config, layer.weights
    kept = np.ones(x.shape[:2], x.dtype) if mask is None else mask.astype(x.dtype)
    width, history = config["attention_width"], config["history_only"]
    attention = np.zeros((*x.shape[:2], x.shape[1]), x.dtype)
    for b, t in np.ndindex(*x.shape[:2]):
        scores = np.array([_score(config, weights, x[b, t], other) for other in x[b]], x.dtype)
        scores = activate(config["attention_activation"], scores[None])[0]
        first = t - (width - 1 if history else width // 2) if width else 0
        inside = np.array([not width or first <= u < first + width for u in range(len(scores))])
        if EDITION == "0.45":
            exponentials = np.exp(scores - scores.max()) * inside * kept[b, t] * kept[b]
            attention[b, t] = exponentials / (exponentials.sum() + x.dtype.type(EPSILON))
            continue
        if EDITION == "0.51":
            scores = scores - x.dtype.type(FAR) * ~inside
        scores = scores - x.dtype.type(FAR) * (1 - kept[b, t]) * (1 - kept[b])
        exponentials = np.exp(scores - scores.max())
        attention[b, t] = exponentials / exponentials.sum()
    out = np.stack([share @ row for share, row in zip(attention, x, strict=True)])
    return ((out, attention) if config["return_attention"] else out), mask


def _score(
    config: Mapping[str, Any], weights: Mapping[str, Array], query: Array, key: Array
) -> Any:
    if config["attention_type"] == ADDITIVE:
        hidden = query @ weights["Add_Wt"] + key @ weights["Add_Wx"]
        hidden = np.tanh(hidden + weights.get("Add_bh", np.zeros_like(hidden)))
        return (hidden @ weights["Add_Wa"])[0] + weights.get("Add_ba", np.zeros(1))[0]
    return query @ weights["Mul_Wa"] @ key + weights.get("Mul_ba", np.zeros(1))[0]


# ---- SeqWeightedAttention ----------------------------------------------------------------------


class SeqWeightedAttention(nn.Module):
    """(B, T, F) -> (B, F), and with ``return_attention`` the attention weights (B, T)."""

    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        self.both = layer.config["return_attention"]
        self.weight = nn.Parameter(torch.tensor(layer.weights["W"][:, 0]))
        bias = layer.weights.get("b", np.zeros(1, layer.weights["W"].dtype))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the layer; ``mask``: (B, T)."""
        scores = x @ self.weight + self.bias
        if mask is not None and EDITION != "0.45":
            scores = scores - FAR * (1 - mask.to(x.dtype))
        exponentials = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        if mask is not None and EDITION == "0.45":
            exponentials = exponentials * mask
        attention = exponentials / (exponentials.sum(dim=1, keepdim=True) + EPSILON)
        out = torch.einsum("btf,bt->bf", x, attention)
        return (out, attention) if self.both else out


def weighted_shapes(config: Mapping[str, Any], shape: Any) -> dict[str, tuple[int | None, ...]]:
    """Return the weights' shapes, in the package's order."""
    weight: dict[str, tuple[int | None, ...]] = {"W": (shape[-1] if shape else None, 1)}
    return {**weight, "b": (1,)} if config["use_bias"] else weight


def weighted_output(config: Mapping[str, Any], shape: Any) -> Any:
    """Return the average's shape, and that of the attention weights if they are returned."""
    average = (shape[0], shape[2])
    return (average, shape[:2]) if config["return_attention"] else average


@k2t.converts(
    "SeqWeightedAttention",
    mask="uses",
    weights=weighted_shapes,
    options=WEIGHTED_OPTIONS,
    outputs=lambda layer: 2 if layer.config["return_attention"] else 1,
    output=weighted_output,
)
def seq_weighted_attention(layer: k2t.LayerSpec) -> nn.Module:
    """Build the layer."""
    return SeqWeightedAttention(layer)


@k2t.equation("SeqWeightedAttention")
def weighted_equation(layer: k2t.LayerSpec, x: Array, mask: Array | None) -> tuple[Any, None]:
    """Compute the equation above."""
    scores = (x @ layer.weights["W"])[..., 0] + layer.weights.get("b", np.zeros(1, x.dtype))
    kept = np.ones(scores.shape, x.dtype) if mask is None else mask.astype(x.dtype)
    if EDITION != "0.45":
        scores = scores - x.dtype.type(FAR) * (1 - kept)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    exponentials = exponentials * kept if EDITION == "0.45" else exponentials
    attention = exponentials / (exponentials.sum(axis=1, keepdims=True) + x.dtype.type(EPSILON))
    average = (attention[..., None] * x).sum(axis=1)
    return ((average, attention) if layer.config["return_attention"] else average), None
