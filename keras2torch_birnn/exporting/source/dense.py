"""Source text of Dense and its kin."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.activation import applied, function_of, helpers_of
from keras2torch_birnn.exporting.source.code import Expression, arguments, call, code, member
from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Site,
    copied,
    refuse,
    same_names,
)
from keras2torch_birnn.schema.einsum import letters
from keras2torch_birnn.spec import Array, LayerSpec


def linear(*sizes: int, bias: bool) -> Expression:
    """Write the nn.Linear of a kernel (in, out)."""
    more = {} if bias else {"bias": False}
    return code("nn.Linear({})", arguments(*map(int, sizes), **more))


def parameter(array: Array) -> Expression:
    """Write a parameter of the shape of an array."""
    return code("nn.Parameter(torch.zeros({}))", tuple(map(int, array.shape)) or (1,))


def kernel_keys(*, bias: bool) -> list[str]:
    """Return the names of the state of a module of torch with a kernel."""
    return ["weight", "bias"] if bias else ["weight"]


def dense(layer: LayerSpec, name: str) -> Emission:
    """Write a Dense: an nn.Linear, and the activation where it is called."""
    if layer.semantics.get("quantized"):
        raise refuse(layer, "weights of int8")
    value, bias = layer.config["activation"], "bias" in layer.weights
    return Emission(
        lambda site: applied(value, call(member(name), site.x)),
        {name: linear(*layer.weights["kernel"].shape, bias=bias)},
        same_names(name, kernel_keys(bias=bias)),
        helpers_of(value),
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
    arrays = {"weight": weights["kernel"]}
    if "bias" in weights:
        arrays["bias"] = weights["bias"]

    def einsum(site: Site) -> Expression:
        product = code(
            "torch.einsum({}, {}, {})", config["equation"], site.x, member(f"{name}_weight")
        )
        if "bias" in arrays:
            product = code("{} + {}", product, member(f"{name}_bias"))
        return applied(value, product)

    return Emission(
        einsum,
        {f"{name}_{key}": parameter(array) for key, array in arrays.items()},
        {key: f"{name}_{key}" for key in arrays},
        helpers_of(value),
    )


def _highway(layer: LayerSpec, name: str) -> Emission:
    weights, bias = layer.weights, "b" in layer.weights
    function, helpers = function_of(layer.config["activation"])
    through, carry = (linear(*weights[key].shape, bias=bias) for key in ("W", "W_carry"))
    state = {
        f"{part}.{key}": f"{name}_{part}.{key}"
        for part in ("through", "carry")
        for key in kernel_keys(bias=bias)
    }
    linear_itself = layer.config["activation"] == "linear"

    def highway(site: Site) -> Expression:
        x = site.x
        inner = call(member(f"{name}_through"), x)
        inner = inner if linear_itself else call(function, inner)
        carried = call(member(f"{name}_carry"), x)
        return code("torch.lerp({}, {}, torch.sigmoid({}))", x, inner, carried)

    return Emission(
        highway,
        {f"{name}_through": through, f"{name}_carry": carry},
        state,
        () if linear_itself else helpers,
    )


def _maxout(layer: LayerSpec, name: str) -> Emission:
    features, inner, units = map(int, layer.weights["W"].shape)
    bias = "b" in layer.weights
    sizes = (features, units)
    return Emission(
        lambda site: code(
            "torch.unflatten({}, 1, {}).amax(dim=1)", call(member(name), site.x), sizes
        ),
        {name: linear(inner, features * units, bias=bias)},
        same_names(name, kernel_keys(bias=bias)),
    )


def _random_fourier_features(layer: LayerSpec, name: str) -> Emission:
    inner, units = map(int, layer.weights["unscaled_kernel"].shape)
    shapes = [code("torch.empty({})", shape) for shape in ((units, inner), (units,))]
    scale = parameter(layer.weights["kernel_scale"])
    keys = ("weight", "bias", "scale")
    return copied(layer, name, layer.class_name, *shapes, scale, keys=keys)


EMITTERS: Mapping[str, Emit] = {
    "Dense": dense,
    "EinsumDense": _einsum_dense,
    "Highway": _highway,
    "MaxoutDense": _maxout,
    "RandomFourierFeatures": _random_fourier_features,
}
