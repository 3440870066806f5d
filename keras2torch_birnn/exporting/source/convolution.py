"""Source text of convolutions. Keras holds (B, T, C), torch (B, C, T)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from keras2torch_birnn.exporting.source.activation import find_activation
from keras2torch_birnn.exporting.source.code import Expression, call, code, join, member, symbol
from keras2torch_birnn.exporting.source.emission import (
    Called,
    Emission,
    Emit,
    Helper,
    Site,
    refuse,
    same_names,
)
from keras2torch_birnn.layers.convolution import Convolution, extents
from keras2torch_birnn.schema.convolution import transposed_length
from keras2torch_birnn.spec import LayerSpec

PAD = Helper("keras2torch_birnn.exporting.source.helpers.padding", "pad_same")


def short(sizes: Sequence[int]) -> Any:
    """Return one number for equal sizes of all axes."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def _keys(*, bias: bool) -> list[str]:
    return ["weight", "bias"] if bias else ["weight"]


def channels_ahead(x: Expression, rank: int) -> Expression:
    """Write (B, ..., C) -> (B, C, ...)."""
    return code("{}.transpose(1, 2)", x) if rank == 1 else code("{}.movedim(-1, 1)", x)


def channels_behind(x: Expression, rank: int) -> Expression:
    """Write (B, C, ...) -> (B, ..., C)."""
    return code("{}.transpose(1, 2)", x) if rank == 1 else code("{}.movedim(1, -1)", x)


def _write_convolution(name: str, built: Convolution, value: Any) -> Emission:
    """Write one ``nn.Conv`` as source, with its padding, axes and activation around it.

    value: the activation.
    """
    activate, helpers = find_activation(value)
    filters, inner, *size = built.weight.shape
    rank, padding, stride, last = len(size), built.padding, built.stride, built.channels_last
    reach, bias = extents(size, built.dilation), built.bias is not None
    pads = padding == "same" and short(stride) != 1  # torch does not, between steps
    unusual = _unusual(
        stride=short(stride),
        padding="same" if padding == "same" and not pads else 0,
        dilation=short(built.dilation),
        groups=built.groups,
        bias=bias,
    )
    channels = (inner * built.groups, filters)

    def convolve(site: Site) -> Expression:
        x = channels_ahead(site.x, rank) if last else site.x
        if padding == "causal" and reach[0] > 1:
            x = code("functional.pad({}, {})", x, (reach[0] - 1, 0))
        elif pads:
            x = code("pad_same({}, {}, {})", x, reach, stride)
        y = call(member(name), x)
        return activate(channels_behind(y, rank) if last else y)

    return Emission(
        convolve,
        {name: call(symbol(f"nn.Conv{rank}d"), *channels, short(size), **unusual)},
        same_names(name, _keys(bias=bias)),
        (*[PAD] * pads, *helpers),
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
    rank, bias, last = len(size), built.bias is not None, built.channels_last
    # One step becomes that many, of all that the window reaches.
    kept = [transposed_length(config, 1, axis) or 0 for axis in range(rank)]
    reach = extents(size, built.dilation)
    more = [extent - n for extent, n in zip(reach, kept, strict=True)]
    padding = [max(n, 0) // 2 for n in more]
    behind = [2 * p - n for p, n in zip(padding, more, strict=True)]
    unusual = _unusual(
        stride=short(built.stride),
        padding=short(padding),
        output_padding=short([max(n, 0) for n in behind]),
        dilation=short(built.dilation),
        bias=bias,
    )
    made = call(symbol(f"nn.ConvTranspose{rank}d"), channels, filters, short(size), **unusual)
    cut = join(", ", (code(":-1") if n < 0 else code(":") for n in behind))
    activate, helpers = find_activation(config["activation"])

    def convolve(site: Site) -> Expression:
        y = call(member(name), channels_ahead(site.x, rank) if last else site.x)
        if min(behind) < 0:
            y = code("{}[..., {}]", y, cut)
        return activate(channels_behind(y, rank) if last else y)

    return Emission(convolve, {name: made}, same_names(name, _keys(bias=bias)), helpers)


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _convolution),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
}
