"""Dense: contracts the last axis, whatever the rank."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.activations import activation
from keras2torch_birnn.layers.registry import converts
from keras2torch_birnn.rnn.choice import activation_label
from keras2torch_birnn.rnn.parameters import parameter
from keras2torch_birnn.spec import LayerSpec


class Dense(nn.Linear):
    """An ``nn.Linear`` followed by an activation."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, value: Any) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        self.activation = activation(value)
        self.shown = activation_label(value)

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        return self.activation(super().forward(input))

    def extra_repr(self) -> str:
        """Torch's own, then the activation."""
        return f"{super().extra_repr()}, activation={self.shown}"


@converts("Dense")
def dense(layer: LayerSpec) -> nn.Module:
    """Build a Dense: an nn.Linear, with ``kernel`` (in, units) transposed to ``weight``."""
    kernel, value = layer.weights["kernel"], layer.config["activation"]
    bias, (in_features, out_features) = layer.config["use_bias"], kernel.shape
    module: nn.Linear
    if value == "linear":
        module = nn.Linear(in_features, out_features, bias, device="meta")
    else:
        module = Dense(in_features, out_features, bias=bias, value=value)
    module.weight = parameter(kernel.T)
    if bias:
        module.bias = parameter(layer.weights["bias"])
    return module
