"""Batch normalization as Keras trains it where torch's differs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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

    count_raised_by = 0.0  # Keras 3 adds a little to the number of valid steps

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize every channel; mask: the input's shape without C, true if valid."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            raise ValueError("the moving averages are part of this layer")
        if self.training:
            valid = torch.ones_like(input[..., 0]).bool() if mask is None else mask
            weight = valid[..., None].to(input.dtype).expand_as(input)
            axes = tuple(range(input.dim() - 1))
            count = weight.sum(axes) + self.count_raised_by
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
