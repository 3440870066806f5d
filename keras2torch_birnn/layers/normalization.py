"""Normalization by statistics of batch, layer, group or vector. Keras' epsilon is 1e-3 mostly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedOptionError, UsageError
from keras2torch_birnn.layers.registry import (
    ALONE,
    NONE,
    SAME,
    Around,
    Converter,
    Described,
    MaskFlow,
    Step,
    of_options,
)
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.schema.training_rules import FROZEN
from keras2torch_birnn.spec import Array, LayerSpec

# Half precision has too few bits for moments.
_HALF = (torch.float16, torch.bfloat16)
# Keras 3 ``backend.epsilon()``, which a masked count of steps is raised by.
_KERAS_EPSILON = 1e-7


class BatchNorm(nn.BatchNorm1d):
    """An ``nn.BatchNorm1d`` of (B, C, ...) that trains by the rule of Keras 3.

    It computes what torch's computes. In training the steps that are not masked count, and the
    moving variance follows the variance of the batch as it is. A batch of one row is a batch.
    ``axis``: of the channels in Keras' order, in which a mask comes. ``frozen``: it normalizes by
    the moving averages in training, too. Of several processes each takes its own rows' moments.
    """

    def __init__(
        self, features: int, *, axis: int, eps: float, momentum: float, frozen: bool = False
    ) -> None:
        super().__init__(features, eps=eps, momentum=momentum, device="meta")
        self.axis, self.frozen = axis, frozen

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise every channel: y = (x - mean) / sqrt(var + eps) * weight + bias.

        mask: true where something counts, of the shape in Keras' order without the last axis.
        """
        if self.training and not self.frozen:
            return self._by_batch(input, mask)
        if _is_for_torch(input):
            return self._by_averages(input)
        channels_last = input.movedim(1, -1).contiguous()
        rows = channels_last.view(-1, self.num_features)
        return self._by_averages(rows).view(channels_last.shape).movedim(-1, 1)

    def _by_averages(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ...) by the moving averages."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _by_batch(self, input: Tensor, mask: Tensor | None) -> Tensor:
        x = input.float() if input.dtype in _HALF else input
        axes = (0, *range(2, x.dim()))
        mean, var = self._moments(x, axes, mask)
        with torch.no_grad():
            self._follow(mean.reshape(-1), var.reshape(-1))
        shape = [1 if axis in axes else -1 for axis in range(x.dim())]
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight.reshape(shape)
        y = (x - mean) * scale
        if self.bias is not None:
            y = y + self.bias.reshape(shape)
        return y.to(input.dtype)

    def _moments(
        self, x: Tensor, axes: tuple[int, ...], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute mean and variance of each channel; axes are kept."""
        if mask is None:
            var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
            return mean, var
        if mask.dim() != x.dim() - 1:
            raise UsageError(
                f"BatchNormalization in training: a mask of {mask.dim()} axes for an input of "
                f"{x.dim()}, which no Keras trains",
                "call the model in eval mode, or take the mask away before this layer",
            )
        counts = mask.bool()[..., None].movedim(self.axis, 1)
        weights = counts.to(x.dtype).expand_as(x)
        count = weights.sum(axes, keepdim=True) + _KERAS_EPSILON
        mean = torch.where(counts, x, 0.0).sum(axes, keepdim=True) / count
        squares = torch.where(counts, x - mean, 0.0).square().sum(axes, keepdim=True)
        return mean, squares / count

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        """Update the moving averages with the moments of a batch."""
        average_mean, average_var, batches = (
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
        )
        if average_mean is None or average_var is None or batches is None:
            return
        batches += 1
        # As in torch: without one, the plain average of all batches.
        share = 1.0 / batches.to(mean.dtype) if self.momentum is None else self.momentum
        average_mean += (mean - average_mean) * share
        average_var += (var - average_var) * share

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any rank."""


def _channels(layer: LayerSpec) -> int:
    """Return the axis of the channels."""
    axes = layer.config["axis"]
    if layer.input_shape is not None:
        axes = normalized_axes(layer.config, len(layer.input_shape))
    return int(axes[0])


def _moved(layer: LayerSpec) -> Around:
    """Move the channels to torch's place, axis 1, and back."""
    axis, shape = _channels(layer), layer.input_shape
    if axis == 1 or (shape is not None and len(shape) == 2):
        return ALONE
    return Around(Step(torch.movedim, (axis, 1)), Step(torch.movedim, (1, axis)))


def _is_for_torch(channels_first: Tensor) -> bool:
    """Return whether torch normalises (B, C, ...) best as it is, and not in rows (-1, C).

    It takes many times as long if the values of a channel are apart in memory, and its compiler
    expects other strides of the result than come. An exported graph works for any strides.
    """
    if torch.compiler.is_dynamo_compiling():
        return False
    return is_exporting_by_torch() or channels_first.is_contiguous()


def _is_frozen(layer: LayerSpec) -> bool:
    return bool(layer.semantics.get(FROZEN, not layer.config["trainable"]))


def _batch_mask(layer: LayerSpec) -> MaskFlow:
    return MaskFlow(takes=not _is_frozen(layer))


def _scales(weights: Mapping[str, Array]) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """Return torch's weight and bias, which Keras calls gamma and beta; each may be absent."""
    gamma, beta = (weights.get(name) for name in ("gamma", "beta"))
    return (
        None if gamma is None else to_parameter(gamma),
        None if beta is None else to_parameter(beta),
    )


def batch_normalization(layer: LayerSpec) -> nn.Module:
    """Build a BatchNormalization: gamma, beta, moving mean and variance as torch calls them.

    Keras' momentum is the share of the old statistics, torch's that of the new.
    """
    config, weights = layer.config, layer.weights
    if len(config["axis"]) != 1:
        raise UnsupportedOptionError(
            f"BatchNormalization option axis={list(config['axis'])} is not supported: one axis "
            "is expected",
            "replace it by a layer of your own, given with --plugin",
            place=layer.place,
        )
    module = BatchNorm(
        len(weights["moving_mean"]),
        axis=_channels(layer),
        eps=config["epsilon"],
        momentum=1.0 - config["momentum"],
        frozen=_is_frozen(layer),
    )
    module.weight, module.bias = cast(Any, _scales(weights))
    module.running_mean = to_parameter(weights["moving_mean"]).data
    module.running_var = to_parameter(weights["moving_variance"]).data
    module.num_batches_tracked = torch.tensor(0)
    return module


class LayerNorm(Described):
    """Layer normalisation over any axes, with or without weight and bias.

    For axes at the end it is an ``nn.LayerNorm`` in all but the option to drop either parameter.
    """

    def __init__(
        self,
        axes: tuple[int, ...],
        weight: nn.Parameter | None,
        bias: nn.Parameter | None,
        eps: float,
        *,
        centers: bool,
    ) -> None:
        super().__init__()
        self.axes, self.eps, self.centers = axes, eps, centers
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute y = (x - mean) / sqrt(var + eps) * weight + bias, statistics over the axes."""
        tail = tuple(range(-len(self.axes), 0))
        moved = x.movedim(self.axes, tail)
        if self.centers:
            sizes = moved.shape[-len(tail) :]
            y = functional.layer_norm(moved, sizes, self.weight, self.bias, self.eps)
        else:  # Keras 3's rms_scaling divides by the deviation and leaves the mean
            y = moved / torch.sqrt(moved.var(dim=tail, correction=0, keepdim=True) + self.eps)
            y = y if self.weight is None else y * self.weight
        return y.movedim(tail, self.axes)


def layer_normalization(layer: LayerSpec) -> nn.Module:
    """Build a LayerNormalization: an nn.LayerNorm where it has both parameters on the last axes."""
    config, weights = layer.config, layer.weights
    axes = config["axis"]
    if layer.input_shape is not None:
        rank = len(layer.input_shape)
        axes = tuple(a - rank for a in normalized_axes(config, rank))
    gamma, beta = _scales(weights)
    centers = not config["rms_scaling"]
    if gamma is not None and beta is not None and axes == tuple(range(-len(axes), 0)):
        module = nn.LayerNorm(gamma.shape, eps=config["epsilon"], device="meta")
        module.weight, module.bias = gamma, beta
        return module
    return LayerNorm(axes, gamma, beta, config["epsilon"], centers=centers)


class GroupNorm(Described):
    """Group normalisation with channels on any one axis."""

    def __init__(
        self,
        groups: int,
        weight: nn.Parameter | None,
        bias: nn.Parameter | None,
        *,
        axis: int,
        eps: float,
    ) -> None:
        super().__init__()
        self.groups, self.axis, self.eps = groups, axis, eps
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """Compute y = (x - mean) / sqrt(var + eps) * weight + bias, statistics of each group."""
        moved = x.movedim(self.axis, 1)
        groups = moved.shape[1] if self.groups == -1 else self.groups
        y = functional.group_norm(moved, groups, self.weight, self.bias, self.eps)
        return y.movedim(1, self.axis)


def _group_mask(layer: LayerSpec) -> MaskFlow:
    """Return its mask flow: tf.keras weighs the statistics by a mask broadcast with the input."""
    if layer.semantics["masking"] == "ignore":
        return SAME
    return MaskFlow(
        refused="a mask into a GroupNormalization is not supported: tf.keras takes a mask of steps "
        "for one of channels"
    )


def group_normalization(layer: LayerSpec) -> nn.Module:
    """Build a GroupNormalization."""
    config, scales = layer.config, _scales(layer.weights)
    return GroupNorm(config["groups"], *scales, axis=config["axis"], eps=config["epsilon"])


class UnitNorm(Described):
    """Division of each vector along the axes by its norm, or by ``smallest`` if that is larger."""

    def __init__(self, axes: tuple[int, ...], smallest: float) -> None:
        super().__init__()
        self.axes, self.smallest = axes, smallest

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x of any shape."""
        length = x.square().sum(dim=self.axes, keepdim=True).sqrt()
        return x / length.clamp(min=self.smallest)


class RMSNorm(Described):
    """x / sqrt(mean(x^2) + eps) * weight over the last axes, as many as the weight has.

    Unlike the other normalizations of Keras 3 it drops a mask.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, ..., *weight's shape)."""
        axes = tuple(range(-self.weight.dim(), 0))
        return x * torch.rsqrt(x.square().mean(dim=axes, keepdim=True) + self.eps) * self.weight


CONVERTERS: Mapping[str, Converter] = {
    "BatchNormalization": Converter(batch_normalization, _batch_mask, _moved),
    "LayerNormalization": Converter(layer_normalization, SAME),
    "GroupNormalization": Converter(group_normalization, _group_mask),
    "UnitNormalization": Converter(of_options(UnitNorm, "axis", "smallest_norm"), SAME),
    "RMSNormalization": Converter(of_options(RMSNorm, "scale", "epsilon"), NONE),
}
