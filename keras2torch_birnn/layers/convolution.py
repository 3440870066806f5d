"""Conv1D. Keras holds (B, T, C), torch (B, C, T)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.activations import activation
from keras2torch_birnn.layers.registry import NONE, converts
from keras2torch_birnn.rnn.choice import activation_label
from keras2torch_birnn.rnn.parameters import parameter
from keras2torch_birnn.spec import LayerSpec


def same_padding(length: int, extent: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, as TensorFlow's "same" puts them: the odd one goes after."""
    total = max((-(-length // stride) - 1) * stride + extent - length, 0)
    return total // 2, total - total // 2


class Conv1D(nn.Conv1d):
    """An ``nn.Conv1d`` with Keras' paddings, data format and activation."""

    def __init__(self, in_channels: int, config: Mapping[str, Any]) -> None:
        super().__init__(
            in_channels,
            config["filters"],
            config["kernel_size"],
            stride=config["strides"],
            dilation=config["dilation_rate"],
            groups=config["groups"],
            bias=config["use_bias"],
            device="meta",
        )
        self.keras_padding = config["padding"]
        self.channels_last = config["data_format"] == "channels_last"
        self.activation, self.shown = (
            activation(config["activation"]),
            activation_label(config["activation"]),
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, T, C) -> (B, T', filters), or (B, C, T) -> (B, filters, T') if channels_first."""
        x = input.transpose(1, 2) if self.channels_last else input
        extent = (self.kernel_size[0] - 1) * self.dilation[0] + 1
        if self.keras_padding == "causal":
            x = functional.pad(x, (extent - 1, 0))
        elif self.keras_padding == "same":
            x = functional.pad(x, same_padding(x.shape[2], extent, self.stride[0]))
        y = super().forward(x)
        return self.activation(y.transpose(1, 2) if self.channels_last else y)

    def extra_repr(self) -> str:
        """Torch's own, then Keras' padding and activation."""
        torchs: Any = super().extra_repr
        return f"{torchs()}, keras_padding={self.keras_padding}, activation={self.shown}"


@converts("Conv1D", mask=NONE)
def conv1d(layer: LayerSpec) -> nn.Module:
    """Build a Conv1D: ``kernel`` (k, in/groups, out) becomes ``weight`` (out, in/groups, k)."""
    config, kernel = layer.config, layer.weights["kernel"]
    module = Conv1D(kernel.shape[1] * config["groups"], config)
    module.weight = parameter(kernel.transpose(2, 1, 0))
    if config["use_bias"]:
        module.bias = parameter(layer.weights["bias"])
    return module
