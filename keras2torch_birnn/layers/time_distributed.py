"""TimeDistributed: the same layer at every step, time folded into the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.registry import SAME, MaskFlow, convert_layer, converts, mask_flow
from keras2torch_birnn.spec import LayerSpec


class TimeDistributed(nn.Module):
    """(B, T, ...) -> (B, T, ...) through ``layer`` on (B * T, ...)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """A mask (B, T, ...) is folded like the input."""
        folded = {} if mask is None else {"mask": mask.flatten(0, 1)}
        y: Tensor = self.layer(x.flatten(0, 1), **folded)
        return y.reshape(*x.shape[:2], *y.shape[1:])


def step_counts(x: Tensor, mask: Tensor) -> Tensor:
    """A mask (B, T, ...) reduced to (B, T): a step counts if anything in it does."""
    return mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask


def _mask(layer: LayerSpec) -> MaskFlow:
    inner, rule = mask_flow(layer.parts["layer"]), layer.config["masking"]
    fixed = layer.input_shape is not None and layer.input_shape[0] is not None
    if rule == "passes by" or (rule == "inner unless fixed" and fixed):
        return SAME
    if rule == "input":
        return MaskFlow(takes=inner.takes)
    if callable(inner.after):  # elementwise in all leading axes: folding changes nothing
        return inner
    after: Any = "same" if inner.after == "same" else step_counts
    return MaskFlow(takes=inner.takes, after=after)


@converts("TimeDistributed", mask=_mask)
def time_distributed(layer: LayerSpec) -> nn.Module:
    """Build a TimeDistributed; over a Dense it is that Dense, which takes any rank."""
    inner = layer.parts["layer"]
    if inner.class_name == "Dense":
        return convert_layer(inner)
    if any(part.config.get("stateful") for part in inner.walk()):
        raise UnsupportedOptionError(
            "TimeDistributed over a stateful layer: its state would run from step to step",
            place=layer.place,
        )
    if isinstance(inner.output_shape, tuple) and isinstance(inner.output_shape[0], tuple):
        raise UnsupportedOptionError(
            "TimeDistributed over a layer with several outputs", place=layer.place
        )
    return TimeDistributed(convert_layer(inner))
