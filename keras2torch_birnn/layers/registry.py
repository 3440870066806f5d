"""Registry of converters: the builder and the mask flow of each Keras layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from keras2torch_birnn.errors import (
    PluginError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.rnn.parameters import to_parameter
from keras2torch_birnn.schema import PAGES, WITH_GRAPH
from keras2torch_birnn.schema.custom_layers import (
    LAMBDA,
    CustomLayer,
    custom_layer_of,
    naming_plugin,
    shown,
)
from keras2torch_birnn.schema.row import Pages
from keras2torch_birnn.spec import LayerSpec

Build: TypeAlias = Callable[[LayerSpec], nn.Module]


@dataclass(frozen=True)
class Step:
    """A function of a tensor, with the other arguments that it is called with."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Call it."""
        return self.function(x, *self.args, **self.options)


@dataclass(frozen=True)
class Around:
    """Steps before and after a layer's module, so that the module can be torch's own class.

    Tools that wrap or replace ``nn.Linear``, ``nn.Embedding`` or ``nn.BatchNorm1d`` rely on it.
    """

    before: Step | None = None
    after: Step | None = None


ALONE = Around()


@dataclass(frozen=True)
class MaskFlow:
    """Rule of a layer for the mask of its input.

    Of several outputs the first gets the mask.

    Attributes:
        takes: Whether the module is called with ``mask=``.
        after: The mask of the output is the input's ("same"), that of the first of several
            ("first"), none ("none"), or ``after(x, mask, **constants)`` of the layer's input,
            called when there is a mask.
        makes: Whether ``after`` is called when there is no mask, too.
        every: Whether the output has no mask if any input has none.
        constants: More arguments of ``after``.
        refused: Why the layer cannot be converted where a mask reaches it.
        declared: False if a plugin leaves it open.
    """

    takes: bool = False
    after: Literal["same", "first", "none"] | Callable[..., Tensor] = "same"
    makes: bool = False
    every: bool = False
    constants: Mapping[str, Any] = field(default_factory=dict)
    refused: str | None = None
    declared: bool = True


SAME = MaskFlow()
NONE = MaskFlow(after="none")
USES = MaskFlow(takes=True, after="none")
# The words of plugins.
MASKS: Mapping[str, MaskFlow] = {
    "uses": USES,
    "uses and passes": MaskFlow(takes=True),
    "passes": SAME,
    "drops": NONE,
}


@dataclass(frozen=True)
class Converter:
    """Converter of a class: its builder and its mask flow.

    ``build`` takes a LayerSpec and returns a module whose ``forward`` takes the layer's input (a
    tensor, or a tuple where Keras passes a list), and ``mask=`` if ``mask`` says so. ``around``:
    what else the layer is, around that module.
    """

    build: Build
    mask: MaskFlow | Callable[[LayerSpec], MaskFlow]
    around: Callable[[LayerSpec], Around] = lambda _: ALONE

    def mask_flow(self, layer: LayerSpec) -> MaskFlow:
        """Return the mask flow of this layer."""
        return self.mask(layer) if callable(self.mask) else self.mask


Table: TypeAlias = Mapping[str, Converter]
# A model is a graph, its inputs are arguments of that.
_PAGES = {**PAGES, **dict.fromkeys(WITH_GRAPH, "graph")}
_PAGES.pop("InputLayer")
CONVERTERS: Mapping[str, Converter] = Pages("keras2torch_birnn.layers", "CONVERTERS", _PAGES)


def of_options(module: Callable[..., nn.Module], *names: str, **fixed: Any) -> Build:
    """Return the builder of a module that takes these options of its layer, in this order.

    names: weights become parameters. fixed: other arguments. A module that takes ``channels_last``
    gets it as well.
    """
    places_channels = "channels_last" in inspect.signature(module).parameters

    def build(layer: LayerSpec) -> nn.Module:
        known = {**layer.settings, **{n: to_parameter(w) for n, w in layer.weights.items()}}
        last = {"channels_last": known["data_format"] == "channels_last"} if places_channels else {}
        return module(*(known[name] for name in names), **fixed, **last)

    return build


def by_axes(names: str, converter: Converter, axes: Iterable[int] = (1, 2, 3)) -> Table:
    """Return the rows of a layer for one axis, two or three, as ``{}`` in its name says."""
    return dict.fromkeys(map(names.format, axes), converter)


def leave_alone(layer: LayerSpec) -> nn.Module:
    """Build the identity, for a layer that does nothing but in training."""
    return nn.Identity()


def passes_mask(layer: LayerSpec) -> MaskFlow:
    """Return the mask flow of a layer that passes its mask on in some versions of Keras alone."""
    return SAME if layer.semantics["passes_mask"] else NONE


class Described(nn.Module):
    """A module that is printed with the arguments of its class, tensors as their shapes."""

    def extra_repr(self) -> str:
        """Show the arguments, which are attributes of the same names; other modules are below."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        shown = {
            name: (tuple(value.shape) or value.item()) if isinstance(value, Tensor) else value
            for name, value in values.items()
            if not isinstance(value, nn.Module)
        }
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def convert_layer(layer: LayerSpec) -> nn.Module:
    """Build the torch module of one layer; steps of ``around`` it are not part of it.

    Layers frozen in Keras get frozen parameters.

    Raises:
        PluginError: the user's own converter fails, or returns no module.
    """
    module = _converter(layer).build(layer)
    if not layer.config.get("trainable", True):
        module.requires_grad_(False)
    return module


def around(layer: LayerSpec) -> Around:
    """Return the steps around the module of a layer."""
    return _converter(layer).around(layer)


def mask_flow(layer: LayerSpec) -> MaskFlow:
    """Return the mask flow of a layer."""
    flow = _converter(layer).mask_flow(layer)
    inner = layer.parts.get("layer")
    if inner is not None and custom_layer_of(inner) is not None and not mask_flow(inner).declared:
        return replace(flow, declared=False)
    return flow


def check_said(layer: LayerSpec, flow: MaskFlow) -> None:
    """Refuse a mask into a layer whose plugin does not say what it does with one."""
    if flow.declared:
        return
    known = ", ".join(f'"{word}"' for word in MASKS)
    raise UnsupportedOptionError(
        f"a mask reaches this layer, and the {shown(layer.parts.get('layer', layer))} does not say "
        "what it does with one",
        f"say mask= there: {known}",
        place=layer.place,
    )


def _converter(layer: LayerSpec) -> Converter:
    own = custom_layer_of(layer)
    if own is not None:
        return _own_converter(own)
    if layer.class_name not in CONVERTERS:
        raise UnsupportedLayerError(
            f"layer class {printable(layer.class_name)} has no converter here",
            "load the plugin that supplies it (--plugin, or plugins=)",
            place=layer.place,
        )
    return CONVERTERS[layer.class_name]


# ---- layers of plugins -------------------------------------------------------------------------


class SuppliedFunction(nn.Module):
    """A Lambda: the user's function of its input, or the user's module."""

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        super().__init__()
        # (a module given as the function becomes a child)
        self.function, self.arguments = function, dict(arguments)

    def forward(self, x: Any, **mask: Any) -> Any:
        """Call it with the input, a tensor or a tuple; ``mask`` if the function takes one."""
        return self.function(x, **self.arguments, **mask)

    def extra_repr(self) -> str:
        """Show function and arguments."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return ", ".join([name, *(f"{key}={value}" for key, value in self.arguments.items())])


def _own_converter(own: CustomLayer) -> Converter:
    def build(layer: LayerSpec) -> nn.Module:
        with naming_plugin(layer, "its converter"):
            made = own.build(layer)
            if layer.class_name == LAMBDA:
                return SuppliedFunction(deepcopy(made), layer.config.get("arguments") or {})
        if not isinstance(made, nn.Module):
            raise PluginError(
                f"{shown(layer)}: its converter returns {type(made).__name__}",
                "a torch.nn.Module is expected",
                place=layer.place,
            )
        return made

    return Converter(build, lambda layer: _own_mask(own, layer))


def _own_mask(own: CustomLayer, layer: LayerSpec) -> MaskFlow:
    rule = own.mask
    if callable(rule):
        with naming_plugin(layer, "its mask= function"):
            rule = rule(layer)
    if layer.class_name == LAMBDA:
        return _lambda_mask(own, layer, rule)
    if rule is None:
        return MaskFlow(declared=False)
    return _worded(layer, rule)


def _worded(layer: LayerSpec, rule: Any) -> MaskFlow:
    flow = MASKS.get(rule) if isinstance(rule, str) else rule
    if not isinstance(flow, MaskFlow):
        raise PluginError(
            f"{shown(layer)}: mask={printable(repr(rule))}",
            f"one of {', '.join(MASKS)}, or a MaskFlow is expected",
            place=layer.place,
        )
    return flow


def _lambda_mask(own: CustomLayer, layer: LayerSpec, rule: Any) -> MaskFlow:
    """Return a Lambda's mask flow: it takes a mask if it has a parameter for it, and passes none.

    ``Lambda.call`` and ``Lambda.compute_mask``, Keras 2.2.4 to 3.15.
    """
    function = own.source.forward if isinstance(own.source, nn.Module) else own.source
    with naming_plugin(layer, "what it supplies"):
        takes = "mask" in inspect.signature(function).parameters
    if rule is None:
        return MaskFlow(takes, "none", declared=not layer.semantics.get("makes_mask"))
    return replace(_worded(layer, rule), takes=takes)
