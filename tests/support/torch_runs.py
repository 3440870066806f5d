"""Run converted models in torch."""

from __future__ import annotations

import torch
from torch import nn

from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.spec import Array


def outputs_of(model: nn.Module, *inputs: Array) -> list[Array]:
    """Compute the outputs of a converted model."""
    with torch.no_grad():
        return [y.numpy() for y in flat(model(*map(torch.from_numpy, inputs)))]
