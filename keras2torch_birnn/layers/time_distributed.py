"""TimeDistributed: the same layer at every step, time folded into the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.registry import (
    ALONE,
    Around,
    Converter,
    MaskFlow,
    around,
    convert_layer,
    mask_flow,
)
from keras2torch_birnn.spec import LayerSpec, map_structure


def fold_steps(x: Tensor) -> Tensor:
    """Fold (B, T, ...) -> (B * T, ...)."""
    return x.flatten(0, 1)


def unfold_steps(y: Tensor, like: Tensor) -> Tensor:
    """Unfold (B * T, ...) -> (B, T, ...), B and T those of ``like``."""
    return y.reshape(*like.shape[:2], *y.shape[1:])


class TimeDistributed(nn.Module):
    """``layer`` and the steps around it at every step: (B, T, ...) folded to (B * T, ...)."""

    def __init__(self, layer: nn.Module, steps: Around = ALONE) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, steps.before, steps.after

    def forward(self, x: Tensor | tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        """Apply it; a mask (B, T, ...) is folded like the input, a list of tensors like one."""
        folded = {} if mask is None else {"mask": fold_steps(mask)}
        inner = map_structure(fold_steps, x)
        y: Tensor = self.layer(inner if self.before is None else self.before(inner), **folded)
        y = y if self.after is None else self.after(y)
        return unfold_steps(y, x if isinstance(x, Tensor) else x[0])


def step_counts(x: Tensor, mask: Tensor) -> Tensor:
    """Reduce a mask (B, T, ...) to (B, T): a step is valid if any part of it is."""
    return mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask


def mask_enters(layer: LayerSpec) -> bool:
    """Tell whether the inner layer sees the mask."""
    rule = layer.semantics["masking"]
    return rule != "passes by" and not (rule == "inner unless fixed" and _fixed(layer))


def inner_mask_leaves(layer: LayerSpec) -> bool:
    """Tell whether the output's mask is the inner layer's; else it is the one that came in."""
    rule = layer.semantics["masking"]
    return rule == "inner" or (rule.startswith("inner") and not _fixed(layer))


def _fixed(layer: LayerSpec) -> bool:
    """Tell whether the model fixes its batch size."""
    return isinstance(layer.input_shape, tuple) and isinstance(layer.input_shape[0], int)


def unknown_mask(layer: LayerSpec) -> bool:
    """Tell whether the file leaves open what mask comes out."""
    return layer.semantics["masking"] == "inner, unknown if fixed" and _fixed(layer)


_UNKNOWN = (
    "a mask into TimeDistributed with a fixed batch size is not supported: TensorFlow 2.1 and 2.2 "
    "hand on different masks and both call their Keras 2.3.0-tf"
)


def holds_model(layer: LayerSpec) -> bool:
    """Tell whether this TimeDistributed, or one inside it, holds a whole model."""
    if layer.class_name != "TimeDistributed":
        return False
    inner = layer.parts["layer"]
    return inner.graph is not None or holds_model(inner)


def _mask(layer: LayerSpec) -> MaskFlow:
    if holds_model(layer):  # the builder of graphs follows the mask through the model
        return MaskFlow(refused=_UNKNOWN if unknown_mask(layer) else None)
    inner = mask_flow(layer.parts["layer"])
    if unknown_mask(layer) and inner.after != "same":
        return MaskFlow(refused=_UNKNOWN)
    takes = inner.takes and mask_enters(layer)
    if not inner_mask_leaves(layer):
        return MaskFlow(takes=takes)
    if callable(inner.after):  # elementwise in all leading axes: folding changes nothing
        return inner
    after: Any = "same" if inner.after == "same" else step_counts
    return MaskFlow(takes=takes, after=after)


def check_steps(layer: LayerSpec) -> None:
    """Refuse what no step of time can have.

    Raises:
        UnsupportedOptionError: the inner layer carries states, or gives several tensors.
    """
    inner = layer.parts["layer"]
    if any(part.config.get("stateful") for part in inner.walk()):
        raise UnsupportedOptionError(
            "TimeDistributed over a stateful layer: its state would run from step to step",
            "make it stateful=False and save again",
            place=layer.place,
        )
    shape = inner.output_shape
    if isinstance(shape, tuple) and any(isinstance(part, tuple) for part in shape):
        raise UnsupportedOptionError(
            "TimeDistributed over a layer with several outputs, which no Keras computes",
            "save the model with one TimeDistributed for each output",
            place=layer.place,
        )


def time_distributed(layer: LayerSpec) -> nn.Module:
    """Build a TimeDistributed; over a Dense it is that Dense, which takes any rank.

    Over a whole model it is built by ``layers.graph``, which writes the model's calls out.
    """
    inner = layer.parts["layer"]
    if inner.class_name == "Dense":
        return convert_layer(inner)
    check_steps(layer)
    return TimeDistributed(convert_layer(inner), around(inner))


def _around(layer: LayerSpec) -> Around:
    inner = layer.parts["layer"]
    return around(inner) if inner.class_name == "Dense" else ALONE


CONVERTERS: Mapping[str, Converter] = {
    "TimeDistributed": Converter(time_distributed, _mask, _around),
}
