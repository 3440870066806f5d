"""Source text of activations, and of the layers that are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.exporting.source.code import Expression, call, code, symbol
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper, Site, copied, refuse
from keras2torch_birnn.functional.activations import FUNCTIONS
from keras2torch_birnn.spec import LayerSpec

_FUNCTIONS = "keras2torch_birnn.functional.activations"
# Functions of torch, which need no helper
_OF_TORCH: Mapping[str, str] = {
    "relu": "torch.relu",
    "relu6": "functional.relu6",
    "elu": "functional.elu",
    "celu": "functional.celu",
    "selu": "torch.selu",
    "silu": "functional.silu",
    "hard_silu": "functional.hardswish",
    "mish": "functional.mish",
    "sigmoid": "torch.sigmoid",
    "log_sigmoid": "functional.logsigmoid",
    "tanh": "torch.tanh",
    "hard_tanh": "functional.hardtanh",
    "tanh_shrink": "functional.tanhshrink",
    "softsign": "functional.softsign",
    "exponential": "torch.exp",
    "gelu": "functional.gelu",
}
_TORCHS_SOFTMAX: Mapping[str, Expression] = {
    kind: symbol(f"torch.{kind}") for kind in ("softmax", "log_softmax")
}


def _split(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


def _helper(kind: str) -> tuple[Expression, Helper]:
    helper = Helper(_FUNCTIONS, FUNCTIONS[kind].__name__)
    return symbol(helper.name), helper


def function_of(value: Any) -> tuple[Expression, tuple[Helper, ...]]:
    """Return an activation as a function, and what it needs.

    value: a name of ``schema.ACTIVATIONS``, or a dict with options.
    """
    kind, options = _split(value)
    if kind in _OF_TORCH and not options:
        return symbol(_OF_TORCH[kind]), ()
    function, helper = _helper(kind)
    return call(symbol("partial"), function, **options) if options else function, (helper,)


def applied(value: Any, x: Expression) -> Expression:
    """Return the expression of an activation of ``x``."""
    kind, options = _split(value)
    if kind == "linear":
        return x
    if kind in _TORCHS_SOFTMAX:
        return call(_TORCHS_SOFTMAX[kind], x, dim=options.get("axis", -1))
    if options:
        return call(_helper(kind)[0], x, **options)
    return call(function_of(value)[0], x)


def helpers_of(value: Any) -> tuple[Helper, ...]:
    """Return what the expression of an activation needs."""
    kind, _ = _split(value)
    return () if kind == "linear" or kind in _TORCHS_SOFTMAX else function_of(value)[1]


def _of_function(value: Any) -> Emission:
    return Emission(
        lambda site: applied(value, site.x), helpers=helpers_of(value), same=value == "linear"
    )


def _activation(layer: LayerSpec, name: str) -> Emission:
    return _of_function(layer.config["activation"])


def _relu(layer: LayerSpec, name: str) -> Emission:
    options = {k: layer.config[k] for k in ("negative_slope", "max_value", "threshold")}
    if options == {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}:
        return _of_function("relu")
    return _of_function({"name": "relu", **options})


def _leaky_relu(layer: LayerSpec, name: str) -> Emission:
    slope = layer.config["negative_slope"]
    return Emission(lambda site: code("functional.leaky_relu({}, {})", site.x, slope))


def _elu(layer: LayerSpec, name: str) -> Emission:
    alpha = layer.config["alpha"]
    return Emission(lambda site: code("functional.elu({}, {})", site.x, alpha))


def _thresholded_relu(layer: LayerSpec, name: str) -> Emission:
    theta = layer.config["theta"]
    return Emission(lambda site: code("{} * ({} > {})", site.x, site.x, theta))


# The names of the parameters of a layer's module.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "PReLU": ("weight",),
    "ParametricSoftplus": ("alpha", "beta"),
    "SReLU": ("t_left", "a_left", "t_right", "a_right"),
}


def _with_parameters(layer: LayerSpec, name: str) -> Emission:
    keys = _PARAMETERS[layer.class_name]
    shape = next(iter(layer.weights.values())).shape
    empty = code("nn.Parameter(torch.empty({}))", tuple(shape))
    return copied(layer, name, layer.class_name, *[empty for _ in keys], keys=keys)


def _softmax(layer: LayerSpec, name: str) -> Emission:
    axes = tuple(layer.config["axis"])
    replaces = layer.semantics["masking"] == "replace"
    shape = layer.output_shape
    last = isinstance(shape, tuple) and axes == (len(shape) - 1,)
    shown = -1 if last else axes[0]

    def softmax(site: Site) -> Expression:
        x, mask = site.x, site.step_mask
        if mask is None and len(axes) == 1:
            return code("torch.softmax({}, dim={})", x, shown)
        if mask is None or len(axes) > 1:
            raise refuse(layer, "several axes")
        if replaces:
            filled = code("{}.masked_fill(~{}, -1e9)", x, mask)
            return code("torch.softmax({}, dim={}) * {}", filled, shown, mask)
        added = code("{} - 1e9 * (~{}).to({}.dtype)", x, mask, x)
        return code("torch.softmax({}, dim={})", added, shown)

    return Emission(softmax)


EMITTERS: Mapping[str, Emit] = {
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "ThresholdedReLU": _thresholded_relu,
    **dict.fromkeys(_PARAMETERS, _with_parameters),
    "Softmax": _softmax,
}
