"""Operations of Keras 3 (``keras.ops``) that stand in a model beside its layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import NONE, converts
from keras2torch_birnn.spec import LayerSpec


class Operation(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *arguments: Any) -> Tensor:
        """Call the function."""
        return self.function(*arguments, **self.options)

    def extra_repr(self) -> str:
        """Its options."""
        return ", ".join(f"{key}={value}" for key, value in self.options.items())


@converts("ops.NotEqual", mask=NONE)
def not_equal(layer: LayerSpec) -> nn.Module:
    """Build a NotEqual of a tensor and a tensor or number."""
    return Operation(torch.ne)


def any_true(x: Tensor, axis: tuple[int, ...] | None, keepdims: bool) -> Tensor:
    """Whether anything along the axes is not zero."""
    axes = tuple(range(x.dim())) if axis is None else axis
    return x.bool().any(dim=axes, keepdim=keepdims)


@converts("ops.LogicalOr", mask=NONE)
def logical_or(layer: LayerSpec) -> nn.Module:
    """Build a LogicalOr of two tensors."""
    return Operation(torch.logical_or)


@converts("ops.ConvertToTensor", mask=NONE)
def convert_to_tensor(layer: LayerSpec) -> nn.Module:
    """Build a ConvertToTensor of a tensor."""
    return nn.Identity()


@converts("ops.ExpandDims", mask=NONE)
def expand_dims(layer: LayerSpec) -> nn.Module:
    """Build an ExpandDims."""
    return Operation(torch.unsqueeze, dim=layer.config["axis"])


def _dtype(layer: LayerSpec) -> torch.dtype | None:
    return torch.bool if layer.config["dtype"] == "bool" else None


@converts("ops.ZerosLike", mask=NONE)
def zeros_like(layer: LayerSpec) -> nn.Module:
    """Build a ZerosLike."""
    return Operation(torch.zeros_like, dtype=_dtype(layer))


@converts("ops.OnesLike", mask=NONE)
def ones_like(layer: LayerSpec) -> nn.Module:
    """Build a OnesLike."""
    return Operation(torch.ones_like, dtype=_dtype(layer))


@converts("ops.Concatenate", mask=NONE)
def concatenate(layer: LayerSpec) -> nn.Module:
    """Build a Concatenate of a list of tensors."""
    return Operation(torch.cat, dim=layer.config["axis"])


@converts("ops.Any", mask=NONE)
def any_(layer: LayerSpec) -> nn.Module:
    """Build an Any."""
    return Operation(any_true, axis=layer.config["axis"], keepdims=layer.config["keepdims"])
