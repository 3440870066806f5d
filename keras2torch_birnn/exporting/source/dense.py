"""Source text of Dense and its kin."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.activation import TORCH, applied, function_of
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Site,
    arguments,
    literal,
    refuse,
    same_names,
)
from keras2torch_birnn.schema.einsum import letters
from keras2torch_birnn.spec import Array, LayerSpec


def linear(kernel: Array, *, bias: bool) -> str:
    """Write the nn.Linear of a kernel (in, out)."""
    more = {} if bias else {"bias": False}
    return f"nn.Linear({arguments(*map(int, kernel.shape), **more)})"


def _keys(*, bias: bool) -> list[str]:
    return ["weight", "bias"] if bias else ["weight"]


def dense(layer: LayerSpec, name: str) -> Emission:
    """Write a Dense: an nn.Linear, and the activation where it is called."""
    if layer.semantics.get("quantized"):
        raise refuse(layer, "weights of int8")
    value, bias = layer.config["activation"], "bias" in layer.weights
    _, helpers = applied(value, "x")
    return Emission(
        lambda site: applied(value, f"self.{name}({site.x})")[0],
        {name: linear(layer.weights["kernel"], bias=bias)},
        same_names(name, _keys(bias=bias)),
        helpers,
    )


def _einsum_dense(layer: LayerSpec, name: str) -> Emission:
    if layer.semantics.get("quantized"):
        raise refuse(layer, "weights of int8")
    config, parts = layer.config, letters(layer.config["equation"])
    value, weights = config["activation"], layer.weights
    last_alone = (parts.input[-1] + parts.output[-1], parts.input[:-1])
    plain = last_alone == (parts.kernel, parts.output[:-1]) and parts.dots != "right"
    if plain and config["bias_axes"] in (None, parts.output[-1]):
        return dense(layer, name)
    members = {f"{name}_weight": _parameter(weights["kernel"])}
    state = {"weight": f"{name}_weight"}
    product = f"torch.einsum({literal(config['equation'])}, {{x}}, self.{name}_weight)"
    if "bias" in weights:
        members[f"{name}_bias"] = _parameter(weights["bias"])
        state["bias"] = f"{name}_bias"
        product += f" + self.{name}_bias"
    _, helpers = applied(value, "x")
    return Emission(
        lambda site: applied(value, product.format(x=site.x))[0],
        members,
        state,
        (TORCH, *helpers),
    )


def _parameter(array: Array) -> str:
    return f"nn.Parameter(torch.zeros({literal(tuple(map(int, array.shape)))}))"


def _highway(layer: LayerSpec, name: str) -> Emission:
    weights, bias = layer.weights, "b" in layer.weights
    function, helpers = function_of(layer.config["activation"])
    through, carry = (linear(weights[key], bias=bias) for key in ("W", "W_carry"))
    state = {
        f"{part}.{key}": f"{name}_{part}.{key}"
        for part in ("through", "carry")
        for key in _keys(bias=bias)
    }
    linear_itself = layer.config["activation"] == "linear"

    def call(site: Site) -> str:
        x = site.x
        inner = f"self.{name}_through({x})"
        inner = inner if linear_itself else f"{function}({inner})"
        return f"torch.lerp({x}, {inner}, torch.sigmoid(self.{name}_carry({x})))"

    return Emission(
        call,
        {f"{name}_through": through, f"{name}_carry": carry},
        state,
        (TORCH, *(() if linear_itself else helpers)),
    )


def _maxout(layer: LayerSpec, name: str) -> Emission:
    features, inner, units = map(int, layer.weights["W"].shape)
    bias = "b" in layer.weights
    more = {} if bias else {"bias": False}
    sizes = literal((features, units))
    return Emission(
        lambda site: f"torch.unflatten(self.{name}({site.x}), 1, {sizes}).amax(dim=1)",
        {name: f"nn.Linear({arguments(inner, features * units, **more)})"},
        same_names(name, _keys(bias=bias)),
    )


EMITTERS: Mapping[str, Emit] = {
    "Dense": dense,
    "EinsumDense": _einsum_dense,
    "Highway": _highway,
    "MaxoutDense": _maxout,
}
