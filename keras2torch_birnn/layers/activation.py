"""Activation layers. Each works elementwise unless it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import (
    SAME,
    Converter,
    Described,
    MaskFlow,
    Step,
    of_options,
    passes_mask,
)
from keras2torch_birnn.rnn.activations import FUNCTIONS, activation
from keras2torch_birnn.schema.activation import activation_label
from keras2torch_birnn.spec import LayerSpec


class Activation(nn.Module):
    """An activation of Keras as a module."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.function = activation(value)
        self.shown = activation_label(value)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)

    def extra_repr(self) -> str:
        """Show its name and options."""
        return self.shown


def applied(value: Any) -> Step | None:
    """Return an activation as a step after a layer's module, none if it is linear."""
    if value == "linear":
        return None
    options = {"name": value} if isinstance(value, str) else dict(value)
    return Step(FUNCTIONS[options.pop("name")], options=options)


def activation_layer(layer: LayerSpec) -> nn.Module:
    """Build an Activation."""
    value = layer.config["activation"]
    return nn.Identity() if value == "linear" else Activation(value)


def relu(layer: LayerSpec) -> nn.Module:
    """Build a ReLU, an nn.ReLU where it has no options."""
    options = {k: layer.config[k] for k in ("negative_slope", "max_value", "threshold")}
    if options == {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}:
        return nn.ReLU()
    return Activation({"name": "relu", **options})


class ThresholdedReLU(Described):
    """Let x pass where x > theta, else zero (Keras 2.2.4 ``layers/advanced_activations.py``)."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * (x > self.theta)


class PReLU(Described):
    """relu(x) - weight * relu(-x); weight has the input's shape without B, 1 on shared axes."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return torch.relu(x) - self.weight * torch.relu(-x)


class Softmax(Described):
    """Softmax over one axis or several, together.

    A mask takes -1e9 off the masked entries (tf.keras), or puts -1e9 in their place and zeroes the
    result (Keras 3, ``replaces``).
    """

    def __init__(self, axes: tuple[int, ...], *, replaces: bool) -> None:
        super().__init__()
        self.axes, self.replaces = axes, replaces

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute it of x, with a mask of its shape."""
        if mask is None:
            return self._softmax(x)
        if self.replaces:
            return self._softmax(torch.where(mask, x, -1e9)) * mask
        return self._softmax(x + torch.where(mask, 0.0, -1e9).to(x.dtype))

    def _softmax(self, x: Tensor) -> Tensor:
        if len(self.axes) == 1:
            return torch.softmax(x, dim=self.axes[0])
        return torch.exp(x - torch.logsumexp(x, dim=self.axes, keepdim=True))


def _softmax_mask(layer: LayerSpec) -> MaskFlow:
    """Return its mask flow: a mask must broadcast with the input, one of steps with (B, T)."""
    if layer.semantics["masking"] == "ignore":
        return SAME
    refused = None
    if layer.input_shape is not None and len(layer.input_shape) != 2:
        refused = "a mask into a Softmax of more than two dimensions does not fit in Keras either"
    return MaskFlow(takes=True, refused=refused)


def softmax(layer: LayerSpec) -> nn.Module:
    """Build a Softmax."""
    return Softmax(layer.config["axis"], replaces=layer.semantics["masking"] == "replace")


CONVERTERS: Mapping[str, Converter] = {
    "Activation": Converter(activation_layer, SAME),
    "ReLU": Converter(relu, passes_mask),
    "LeakyReLU": Converter(of_options(nn.LeakyReLU, "negative_slope"), SAME),
    "ELU": Converter(of_options(nn.ELU, "alpha"), SAME),
    "ThresholdedReLU": Converter(of_options(ThresholdedReLU, "theta"), SAME),
    "PReLU": Converter(of_options(PReLU, "alpha"), SAME),
    "Softmax": Converter(softmax, _softmax_mask),
}
