"""``AttentionWeightedAverage`` of textgenrnn and DeepMoji: average of the steps by their scores.

    s_t = x_t . W                                       W (F, 1)
    a_t = exp(s_t - max s) m_t / (sum exp(s - max s) m + 1e-7)
    y = sum_t a_t x_t

m is the mask, or 1; the maximum is over all steps, masked ones too; 1e-7 is Keras' ``epsilon()``.
The class does not write ``return_attention`` into its config, so the module always returns both, y
and a (B, T); a model that was built without the second output ignores it.

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
    """(B, T, F) -> (B, F) and the attention weights (B, T)."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight[:, 0]))  # (F, 1) -> (F,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the average of the steps that the mask (B, T) includes."""
        scores = x @ self.weight
        exponentials = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        if mask is not None:
            exponentials = exponentials * mask
        attention = exponentials / (exponentials.sum(dim=1, keepdim=True) + EPSILON)
        return torch.einsum("btf,bt->bf", x, attention), attention


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
    """Compute the equation above."""
    scores = (x @ layer.weights["W"])[..., 0]
    counted = np.ones_like(scores) if mask is None else mask.astype(x.dtype)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True)) * counted
    attention = exponentials / (exponentials.sum(axis=1, keepdims=True) + x.dtype.type(EPSILON))
    return ((attention[..., None] * x).sum(axis=1), attention), None
