"""Which function builds which Keras layer, and what the layer does with a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.spec import LayerSpec

Build: TypeAlias = Callable[[LayerSpec], nn.Module]


@dataclass(frozen=True)
class MaskFlow:
    """What a layer does with the mask of its input.

    ``takes``: the module is called with ``mask=``. ``after``: the mask of the output is the
    input's ("same"), that of the first of several ("first"), none ("none"), or
    ``after(x, mask, **constants)`` of the layer's input; that is asked when there is a mask, and if
    ``makes`` also when there is none. ``every``: no mask comes out if any input has none.
    """

    takes: bool = False
    after: Literal["same", "first", "none"] | Callable[..., Tensor] = "same"
    makes: bool = False
    every: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)


SAME = MaskFlow()
NONE = MaskFlow(after="none")
USES = MaskFlow(takes=True, after="none")


@dataclass(frozen=True)
class Converter:
    """How a class is built and what it does with masks."""

    build: Build
    mask: Callable[[LayerSpec], MaskFlow]


CONVERTERS: dict[str, Converter] = {}


def converts(
    *class_names: str, mask: MaskFlow | Callable[[LayerSpec], MaskFlow] = SAME
) -> Callable[[Build], Build]:
    """Register the decorated function as the converter of Keras layer classes.

    The function takes a LayerSpec and returns a module whose ``forward`` takes the layer's input
    (a tensor, or a tuple where Keras passes a list), and ``mask=`` if ``mask`` says so.

    Raises:
        ValueError: a class has a converter already.
    """

    def register(build: Build) -> Build:
        for name in class_names:
            if name in CONVERTERS:
                raise ValueError(f"a converter of {name} is registered already")
            CONVERTERS[name] = Converter(build, mask if callable(mask) else lambda _: mask)
        return build

    return register


def convert_layer(layer: LayerSpec) -> nn.Module:
    """Build the torch module of one layer. Layers frozen in Keras get frozen parameters."""
    module = _converter(layer).build(layer)
    if not layer.config.get("trainable", True):
        module.requires_grad_(False)
    return module


def mask_flow(layer: LayerSpec) -> MaskFlow:
    """What this layer does with a mask."""
    return _converter(layer).mask(layer)


def _converter(layer: LayerSpec) -> Converter:
    if layer.class_name not in CONVERTERS:
        raise UnsupportedLayerError(
            f"layer class {printable(layer.class_name)} has no converter here",
            "register it with k2t.converts before",
            place=layer.place,
        )
    return CONVERTERS[layer.class_name]
