"""Source text of convolutions. Keras holds (B, T, C), torch (B, C, T)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.exporting.source.activation import FUNCTIONAL, applied
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Helper,
    arguments,
    literal,
    refuse,
    same_names,
)
from keras2torch_birnn.schema.convolution import transposed_length
from keras2torch_birnn.spec import LayerSpec

PAD = Helper("keras2torch_birnn.exporting.source.helpers.padding", "pad_same")


def short(sizes: Sequence[int]) -> Any:
    """Return one number for equal sizes of all axes."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def channels_ahead(x: str, rank: int) -> str:
    """Write (B, ..., C) -> (B, C, ...)."""
    return f"{x}.transpose(1, 2)" if rank == 1 else f"{x}.movedim(-1, 1)"


def channels_behind(x: str, rank: int) -> str:
    """Write (B, C, ...) -> (B, ..., C)."""
    return f"{x}.transpose(1, 2)" if rank == 1 else f"{x}.movedim(1, -1)"


def _one(
    name: str,
    config: Mapping[str, Any],
    channels: tuple[int, int],
    groups: int,
    *,
    bias: bool,
    value: Any,
) -> Emission:
    size, stride, dilation = config["kernel_size"], config["strides"], config["dilation_rate"]
    rank, padding = len(size), config["padding"]
    options: dict[str, Any] = {}
    if short(stride) != 1:
        options["stride"] = short(stride)
    around = "{x}"
    helpers: tuple[Helper, ...] = ()
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if padding == "causal" and reach[0] > 1:
        around, helpers = f"functional.pad({{x}}, ({reach[0] - 1}, 0))", (FUNCTIONAL,)
    elif padding == "same" and short(stride) == 1:
        options["padding"] = "same"
    elif padding == "same":
        around = f"pad_same({{x}}, {literal(tuple(reach))}, {literal(tuple(stride))})"
        helpers = (PAD,)
    if short(dilation) != 1:
        options["dilation"] = short(dilation)
    if groups != 1:
        options["groups"] = groups
    if not bias:
        options["bias"] = False
    text = f"nn.Conv{rank}d({arguments(*channels, short(size), **options)})"
    last = config["data_format"] == "channels_last"

    def call(site: Any) -> str:
        x = channels_ahead(site.x, rank) if last else site.x
        y = f"self.{name}({around.format(x=x)})"
        return applied(value, channels_behind(y, rank) if last else y)[0]

    _, more = applied(value, "x")
    return Emission(
        call,
        {name: text},
        same_names(name, ["weight", "bias"] if bias else ["weight"]),
        (*helpers, *more),
    )


def _convolution(layer: LayerSpec, name: str) -> Emission:
    config, kernel = layer.config, layer.weights["kernel"]
    channels = int(kernel.shape[-2]) * config["groups"], int(kernel.shape[-1])
    bias, value = config["use_bias"], config["activation"]
    return _one(name, config, channels, config["groups"], bias=bias, value=value)


def _depthwise(layer: LayerSpec, name: str) -> Emission:
    channels, multiplier = map(int, layer.weights["depthwise_kernel"].shape[-2:])
    bias, value = layer.config["use_bias"], layer.config["activation"]
    sizes = (channels, channels * multiplier)
    return _one(name, layer.config, sizes, channels, bias=bias, value=value)


def _separable(layer: LayerSpec, name: str) -> Emission:
    config = layer.config
    channels, multiplier = map(int, layer.weights["depthwise_kernel"].shape[-2:])
    inner, filters = map(int, layer.weights["pointwise_kernel"].shape[-2:])
    ones = (1,) * len(config["kernel_size"])
    point = {**config, "kernel_size": ones, "strides": ones, "dilation_rate": ones}
    point["padding"] = "valid"
    sizes = (channels, channels * multiplier)
    depth = _one(f"{name}_depthwise", config, sizes, channels, bias=False, value="linear")
    bias, value = config["use_bias"], config["activation"]
    mix = _one(f"{name}_pointwise", point, (inner, filters), 1, bias=bias, value=value)

    def call(site: Any) -> str:
        first = str(depth.call(site))
        return str(mix.call(type(site)(name, (first,), None, {}, site.out, site.fresh)))

    state = {
        **{f"depthwise.{key}": there for key, there in depth.state.items()},
        **{f"pointwise.{key}": there for key, there in mix.state.items()},
    }
    return Emission(call, {**depth.members, **mix.members}, state, (*depth.helpers, *mix.helpers))


def _transposed(layer: LayerSpec, name: str) -> Emission:
    """Write a transposed convolution, of whose ends torch cuts the same number, Keras one more."""
    config, kernel = layer.config, layer.weights["kernel"]
    if config["output_size"] is not None:
        raise refuse(layer, "an output of a given size")
    size, stride, dilation = config["kernel_size"], config["strides"], config["dilation_rate"]
    rank, bias = len(size), config["use_bias"]
    # One step becomes that many, of all that the window reaches.
    kept = [transposed_length(config, 1, axis) or 0 for axis in range(rank)]
    more = [(k - 1) * d + 1 - n for k, d, n in zip(size, dilation, kept, strict=True)]
    padding = [max(n, 0) // 2 for n in more]
    behind = [2 * p - n for p, n in zip(padding, more, strict=True)]
    options = {
        "stride": short(stride),
        "padding": short(padding),
        "output_padding": short([max(n, 0) for n in behind]),
        "dilation": short(dilation),
        "bias": bias,
    }
    usual = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "bias": True}
    unusual = {key: value for key, value in options.items() if value != usual[key]}
    filters, channels = map(int, kernel.shape[-2:])
    text = f"nn.ConvTranspose{rank}d({arguments(channels, filters, short(size), **unusual)})"
    cut = ", ".join(":-1" if n < 0 else ":" for n in behind)
    cut = f"[..., {cut}]" if "-1" in cut else ""
    last, value = config["data_format"] == "channels_last", config["activation"]

    def call(site: Any) -> str:
        x = channels_ahead(site.x, rank) if last else site.x
        y = f"self.{name}({x}){cut}"
        return applied(value, channels_behind(y, rank) if last else y)[0]

    return Emission(
        call,
        {name: text},
        same_names(name, ["weight", "bias"] if bias else ["weight"]),
        applied(value, "x")[1],
    )


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
}
