"""A user's plugin for the layers of ``fixtures/layers_of_users.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import keras2torch_birnn as k2t

Array = npt.NDArray[Any]


class CenterSteps(nn.Module):
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(layer.weights["scale"] * layer.config["power"]))
        self.shift = nn.Parameter(torch.tensor(layer.weights["shift"]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            mean = x.mean(dim=1, keepdim=True)
        else:
            kept = mask.unsqueeze(-1).to(x.dtype)
            mean = (x * kept).sum(dim=1, keepdim=True) / (kept.sum(dim=1, keepdim=True) + 1)
        return (x - mean) * self.scale + self.shift


@k2t.converts("CenterSteps", mask="uses and passes", weights=("scale", "shift"))
def center_steps(layer: k2t.LayerSpec) -> nn.Module:
    return CenterSteps(layer)


@k2t.equation("CenterSteps")
def center_steps_equation(
    layer: k2t.LayerSpec, x: Array, mask: Array | None
) -> tuple[Array, Array | None]:
    out = np.empty_like(x)
    for row in range(len(x)):
        valid = np.ones(x.shape[1], bool) if mask is None else mask[row].astype(bool)
        count = valid.sum() + (mask is not None)
        out[row] = x[row] - x[row, valid].sum(axis=0) / count
    return out * layer.weights["scale"] * layer.config["power"] + layer.weights["shift"], mask


class GatedSteps(nn.Module):
    def __init__(self, layer: k2t.LayerSpec) -> None:
        super().__init__()
        level, kernel, bias = (layer.weights[n] for n in ("level", "gate/kernel", "gate/bias"))
        self.level = nn.Parameter(torch.tensor(level))
        self.gate = nn.Linear(*kernel.shape)
        self.gate.load_state_dict({"weight": torch.tensor(kernel.T), "bias": torch.tensor(bias)})

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(self.gate(x)) * self.level


@k2t.converts("GatedSteps", mask="drops", weights=("level", "gate/kernel", "gate/bias"))
def gated_steps(layer: k2t.LayerSpec) -> nn.Module:
    return GatedSteps(layer)


class SumAndDifference(nn.Module):
    def __init__(self, weight: Array) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = tensors
        return a * self.weight + b, a - b


@k2t.converts("SumAndDifference", mask="drops", weights=("weight",), outputs=2)
def sum_and_difference(layer: k2t.LayerSpec) -> nn.Module:
    return SumAndDifference(layer.weights["weight"])


def unlike(x: Tensor, mask: Tensor | None, value: float) -> Tensor:
    return (x != value).any(dim=-1)


def skip_mask(layer: k2t.LayerSpec) -> k2t.MaskFlow:
    return k2t.MaskFlow(after=unlike, makes=True, constants={"value": layer.config["value"]})


@k2t.converts("SkipSteps", mask=skip_mask, options={"value": 0.0})
def skip_steps(layer: k2t.LayerSpec) -> nn.Module:
    return nn.Identity()


@k2t.supplies("kept")
def kept(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return x if mask is None else x * mask.unsqueeze(-1) + 0.25


@k2t.supplies("stretch")
def stretch(x: Tensor, by: float = 1.0, plus: float = 0.0) -> Tensor:
    return x * by + plus


@k2t.supplies("last")
def last(x: Tensor) -> Tensor:
    return x[:, -1]


@k2t.equation("last")
def last_equation(layer: k2t.LayerSpec, x: Array, mask: Array | None) -> tuple[Array, None]:
    return x[:, x.shape[1] - 1], None
