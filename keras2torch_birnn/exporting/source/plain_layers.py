"""Source text of layers without a loop that is better to read than that of their module.

Keras holds (B, T, C), torch (B, C, T).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from keras2torch_birnn.exporting.source import helpers
from keras2torch_birnn.exporting.source.code import (
    MASK_REACHES,
    Called,
    Emission,
    Emit,
    Expression,
    Site,
    call,
    code,
    join,
    member,
    refuse,
    same_names,
    symbol,
)
from keras2torch_birnn.exporting.source.functions import find_activation
from keras2torch_birnn.layers.convolution import Convolution, extents
from keras2torch_birnn.layers.merging import MASKED
from keras2torch_birnn.schema.convolution import transposed_length
from keras2torch_birnn.schema.row import for_ranks
from keras2torch_birnn.spec import LayerSpec

# ---- convolution and pooling ----


def _short(sizes: Sequence[int]) -> Any:
    """Return one number for equal sizes of all axes."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def _channels_ahead(x: Expression, rank: int) -> Expression:
    """Write (B, ..., C) -> (B, C, ...)."""
    return code("{}.transpose(1, 2)", x) if rank == 1 else code("{}.movedim(-1, 1)", x)


def _channels_behind(x: Expression, rank: int) -> Expression:
    """Write (B, C, ...) -> (B, ..., C)."""
    return code("{}.transpose(1, 2)", x) if rank == 1 else code("{}.movedim(1, -1)", x)


def _write_convolution(name: str, built: Convolution, value: Any) -> Emission:
    """Write one ``nn.Conv`` as source, with its padding, axes and activation around it.

    value: the activation.
    """
    activate, needed = find_activation(value)
    filters, inner, *size = built.weight.shape
    rank, padding, stride, last = len(size), built.padding, built.stride, built.channels_last
    reach = extents(size, built.dilation)
    pads = padding == "same" and _short(stride) != 1  # torch does not, between steps
    unusual = _unusual(
        stride=_short(stride),
        padding="same" if padding == "same" and not pads else 0,
        dilation=_short(built.dilation),
        groups=built.groups,
        bias=built.bias is not None,
    )
    channels = (inner * built.groups, filters)

    def convolve(site: Site) -> Expression:
        x = _channels_ahead(site.x, rank) if last else site.x
        if padding == "causal" and reach[0] > 1:
            x = code("functional.pad({}, {})", x, (reach[0] - 1, 0))
        elif pads:
            x = code("pad_same({}, {}, {})", x, reach, stride)
        y = call(member(name), x)
        return activate(_channels_behind(y, rank) if last else y)

    return Emission(
        convolve,
        {name: call(symbol(f"nn.Conv{rank}d"), *channels, _short(size), **unusual)},
        same_names(name, [*built.state_dict()]),
        (*[helpers.pad_same] * pads, *needed),
    )


def _unusual(**options: Any) -> dict[str, Any]:
    """Leave out the options of a convolution that torch has by itself."""
    usual = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    return {key: value for key, value in options.items() if value != usual.get(key, True)}


def _convolution(layer: LayerSpec, name: str, built: Any) -> Emission:
    return _write_convolution(name, built, layer.config["activation"])


def _separable(layer: LayerSpec, name: str, built: Any) -> Emission:
    depth = _write_convolution(f"{name}_depthwise", built.depthwise, "linear")
    mix = _write_convolution(f"{name}_pointwise", built.pointwise, layer.config["activation"])

    def convolve(site: Site) -> Expression | Called:
        return mix.call(replace(site, args=(depth.call(site),)))

    state = {
        **{f"depthwise.{key}": there for key, there in depth.state.items()},
        **{f"pointwise.{key}": there for key, there in mix.state.items()},
    }
    return Emission(
        convolve, {**depth.members, **mix.members}, state, (*depth.helpers, *mix.helpers)
    )


def _transposed(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a transposed convolution; Keras crops one element more at one end than torch."""
    config = layer.config
    if config["output_size"] is not None:
        raise refuse(layer, "an output of a given size")
    channels, filters, *size = built.weight.shape
    rank, last = len(size), built.channels_last
    # One step becomes that many, of all that the window reaches.
    kept = [transposed_length(config, 1, axis) or 0 for axis in range(rank)]
    reach = extents(size, built.dilation)
    more = [extent - n for extent, n in zip(reach, kept, strict=True)]
    padding = [max(n, 0) // 2 for n in more]
    behind = [2 * p - n for p, n in zip(padding, more, strict=True)]
    unusual = _unusual(
        stride=_short(built.stride),
        padding=_short(padding),
        output_padding=_short([max(n, 0) for n in behind]),
        dilation=_short(built.dilation),
        bias=built.bias is not None,
    )
    made = call(symbol(f"nn.ConvTranspose{rank}d"), channels, filters, _short(size), **unusual)
    cut = join(", ", (code(":-1") if n < 0 else code(":") for n in behind))
    activate, needed = find_activation(config["activation"])

    def convolve(site: Site) -> Expression:
        y = call(member(name), _channels_ahead(site.x, rank) if last else site.x)
        if min(behind) < 0:
            y = code("{}[..., {}]", y, cut)
        return activate(_channels_behind(y, rank) if last else y)

    return Emission(convolve, {name: made}, same_names(name, [*built.state_dict()]), needed)


def _windows(layer: LayerSpec, name: str, built: Any) -> Emission | None:
    config, size = layer.config, layer.config["pool_size"]
    if config["padding"] == "same":
        return None
    last, rank = config["data_format"] == "channels_last", len(size)
    more = () if config["strides"] in (None, size) else (_short(config["strides"]),)
    pooling = symbol(f"nn.{'Max' if layer.class_name.startswith('Max') else 'Avg'}Pool{rank}d")

    def pool(site: Site) -> Expression:
        y = call(member(name), _channels_ahead(site.x, rank) if last else site.x)
        return _channels_behind(y, rank) if last else y

    return Emission(pool, {name: call(pooling, _short(size), *more)})


# ---- BatchNormalization ----


def _batch(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a BatchNormalization as torch's, or as a helper where frozen, masked or of many axes.

    Where its training differs from Keras', a note says so.

    Raises:
        UnsupportedLayerError: its input has an unknown number of axes.
    """
    axis, shape = built.axis, layer.input_shape
    if not isinstance(shape, tuple):
        raise refuse(layer, "an input of unknown rank")
    rank, masked = len(shape), bool(layer.semantics.get(MASK_REACHES))
    options = {"eps": built.eps, "momentum": round(built.momentum, 12)}
    absent = [key for key in ("weight", "bias") if getattr(built, key) is None]
    if len(absent) == 2:
        options["affine"], absent = False, []

    differs: tuple[str, ...] = ()
    if built.frozen:
        kind = "FrozenBatchNorm"
    elif masked and axis == rank - 1 and rank > 2:
        kind = "MaskedBatchNorm"
    else:
        kind = "AnyBatchNorm" if rank > 3 else "nn.BatchNorm1d"
        differs = (f"{name}: the moving variance follows torch's rule in training",)
        if masked:
            differs = (f"{name}: all steps count in training, masked ones too", *differs)

    def normalize(site: Site) -> Expression:
        module, x = member(name), site.x
        if kind == "MaskedBatchNorm":
            return call(module, x, *(() if site.mask is None else (site.mask,)))
        if rank == 2 or axis == 1:
            return call(module, x)
        if rank == 3:
            return code("{}({}.transpose(1, 2)).transpose(1, 2)", module, x)
        return code("{}({}.movedim({}, 1)).movedim(1, {})", module, x, axis, axis)

    unset = member(f"{name}.register_parameter")
    return Emission(
        normalize,
        {name: call(symbol(kind), built.num_features, **options)},
        same_names(name, [*built.state_dict()]),
        () if kind.startswith("nn.") else (getattr(helpers, kind),),
        differs,
        after=tuple(call(unset, key, None) for key in absent),
    )


# ---- merges ----

_MERGES: Mapping[str, Callable[[Sequence[Expression]], Expression]] = {
    "Add": lambda parts: join(" + ", parts),
    "Subtract": lambda parts: join(" - ", parts),
    "Multiply": lambda parts: join(" * ", parts),
    "Average": lambda parts: code("({}) / {}", join(" + ", parts), len(parts)),
    "Maximum": lambda parts: reduce(lambda a, b: code("torch.maximum({}, {})", a, b), parts),
    "Minimum": lambda parts: reduce(lambda a, b: code("torch.minimum({}, {})", a, b), parts),
}


def _merge(layer: LayerSpec, name: str, built: Any) -> Emission | None:
    if layer.class_name in MASKED and layer.semantics.get(MASK_REACHES):
        return None
    shapes = layer.input_shape if isinstance(layer.input_shape, tuple) else ()
    ranks = [len(shape) if isinstance(shape, tuple) else 0 for shape in shapes]
    most = max(ranks, default=0)

    def merge(site: Site) -> Expression:
        tensors = site.tensors
        if len(ranks) != len(tensors) or not all(ranks):
            raise refuse(layer, "inputs of unknown rank")
        axes = [(code(":"), *[None] * (most - rank)) for rank in ranks]  # new ones behind the batch
        parts = [
            code("{}[{}]", x, join(", ", new)) if new[1:] else x
            for x, new in zip(tensors, axes, strict=True)
        ]
        return _MERGES[layer.class_name](parts)

    return Emission(merge)


def _concatenate(layer: LayerSpec, name: str, built: Any) -> Emission:
    axis = layer.config["axis"]
    return Emission(lambda site: code("torch.cat({}, dim={})", site.tensors, axis))


# ---- activations ----

_RELU: Mapping[str, Any] = {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}


def _activation(layer: LayerSpec, name: str, built: Any) -> Emission:
    value = layer.config["activation"] if layer.class_name == "Activation" else _relu(layer)
    activate, needed = find_activation(value)
    return Emission(lambda site: activate(site.x), helpers=needed, same=value == "linear")


def _relu(layer: LayerSpec) -> Any:
    """Return a ReLU as an activation, which has options only where they are not the usual ones."""
    options = {key: layer.config[key] for key in _RELU}
    return "relu" if options == _RELU else {"name": "relu", **options}


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _convolution),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    **for_ranks("MaxPooling{}D", lambda _: _windows),
    **for_ranks("AveragePooling{}D", lambda _: _windows),
    "BatchNormalization": _batch,
    **dict.fromkeys(_MERGES, _merge),
    "Concatenate": _concatenate,
    **dict.fromkeys(("Activation", "ReLU"), _activation),
}
