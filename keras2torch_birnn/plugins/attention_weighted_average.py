"""``AttentionWeightedAverage`` of textgenrnn and DeepMoji: one score per step, the average by it.

    s_t = x_t . W                                       W (F, 1)
    a_t = exp(s_t - max s) m_t / (sum exp(s - max s) m + 1e-7)
    y = sum_t a_t x_t

m is the mask, or 1; the maximum is over all steps, masked ones too; 1e-7 is Keras' ``epsilon()``.
The class does not write ``return_attention`` into its config, so the module always gives both, y
and a (B, T); a model that was built without the second does not use it.

Source: textgenrnn 2.0 ``AttentionWeightedAverage.py``, read for its equation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.spec import Array

NAME, EPSILON = "AttentionWeightedAverage", 1e-7


class AttentionWeightedAverage(nn.Module):
    """(B, T, F) -> (B, F) and the shares (B, T)."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight[:, 0]))  # (F, 1) -> (F,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A mask (B, T) takes steps out of the average."""
        scores = x @ self.weight
        raised = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        if mask is not None:
            raised = raised * mask
        shares = raised / (raised.sum(dim=1, keepdim=True) + EPSILON)
        return torch.einsum("btf,bt->bf", x, shares), shares


@k2t.converts(
    NAME,
    mask="uses",
    options={"return_attention": False},
    weights=lambda config, shape: {"W": (shape[-1] if shape else None, 1)},
    outputs=2,
    output=lambda config, shape: ((shape[0], shape[2]), (shape[0], shape[1])),
)
def attention_weighted_average(layer: k2t.LayerSpec) -> nn.Module:
    """Build the layer."""
    return AttentionWeightedAverage(layer.weights["W"])


@k2t.equation(NAME)
def equation(
    layer: k2t.LayerSpec, x: Array, mask: Array | None
) -> tuple[tuple[Array, Array], None]:
    """The equation above, step by step."""
    scores = (x @ layer.weights["W"])[..., 0]
    counted = np.ones_like(scores) if mask is None else mask.astype(x.dtype)
    raised = np.exp(scores - scores.max(axis=1, keepdims=True)) * counted
    shares = raised / (raised.sum(axis=1, keepdims=True) + x.dtype.type(EPSILON))
    return ((shares[..., None] * x).sum(axis=1), shares), None
