"""Source text of activations, and of the layers that are one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.exporting.source.emission import (
    Emission,
    Emit,
    Helper,
    Site,
    literal,
    refuse,
    same_names,
)
from keras2torch_birnn.functional.activations import FUNCTIONS
from keras2torch_birnn.spec import LayerSpec

_FUNCTIONS = "keras2torch_birnn.functional.activations"
_LAYERS = "keras2torch_birnn.layers.activation"
TORCH = Helper(_FUNCTIONS, "torch")
FUNCTIONAL = Helper(_FUNCTIONS, "functional")
# Functions of torch that need no helper: name -> (function as text, whether of nn.functional)
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


def _split(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


def function_of(value: Any) -> tuple[str, tuple[Helper, ...]]:
    """Return an activation as a function, in text, and what it needs.

    value: a name of ``schema.ACTIVATIONS``, or a dict with options.
    """
    name, options = _split(value)
    if name in _OF_TORCH and not options:
        text = _OF_TORCH[name]
        return text, (TORCH if text.startswith("torch") else FUNCTIONAL,)
    helper = Helper(_FUNCTIONS, FUNCTIONS[name].__name__)
    if not options:
        return helper.name, (helper,)
    named = ", ".join(f"{key}={literal(option)}" for key, option in options.items())
    return f"partial({helper.name}, {named})", (helper, Helper(_FUNCTIONS, "partial"))


def applied(value: Any, x: str) -> tuple[str, tuple[Helper, ...]]:
    """Return the expression of an activation of ``x``, and what it needs."""
    name, options = _split(value)
    if name == "linear":
        return x, ()
    if name in ("softmax", "log_softmax"):
        axis = literal(options.get("axis", -1))
        return f"torch.{name}({x}, dim={axis})", (TORCH,)
    if options:
        helper = Helper(_FUNCTIONS, FUNCTIONS[name].__name__)
        named = ", ".join(f"{key}={literal(option)}" for key, option in options.items())
        return f"{helper.name}({x}, {named})", (helper,)
    function, helpers = function_of(value)
    return f"{function}({x})", helpers


def _of_function(value: Any) -> Emission:
    _, helpers = applied(value, "x")
    return Emission(lambda site: applied(value, site.x)[0], helpers=helpers, same=value == "linear")


def _activation(layer: LayerSpec, name: str) -> Emission:
    return _of_function(layer.config["activation"])


def _relu(layer: LayerSpec, name: str) -> Emission:
    options = {k: layer.config[k] for k in ("negative_slope", "max_value", "threshold")}
    if options == {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}:
        return _of_function("relu")
    return _of_function({"name": "relu", **options})


def _leaky_relu(layer: LayerSpec, name: str) -> Emission:
    slope = literal(layer.config["negative_slope"])
    return Emission(lambda site: f"functional.leaky_relu({site.x}, {slope})", helpers=(FUNCTIONAL,))


def _elu(layer: LayerSpec, name: str) -> Emission:
    alpha = literal(layer.config["alpha"])
    return Emission(lambda site: f"functional.elu({site.x}, {alpha})", helpers=(FUNCTIONAL,))


def _thresholded_relu(layer: LayerSpec, name: str) -> Emission:
    theta = literal(layer.config["theta"])
    return Emission(lambda site: f"{site.x} * ({site.x} > {theta})")


def _prelu(layer: LayerSpec, name: str) -> Emission:
    shape = literal(tuple(layer.weights["alpha"].shape))
    return Emission(
        lambda site: f"self.{name}({site.x})",
        {name: f"PReLU(nn.Parameter(torch.empty({shape})))"},
        same_names(name, ["weight"]),
        (Helper(_LAYERS, "PReLU"), TORCH),
    )


def _softmax(layer: LayerSpec, name: str) -> Emission:
    axes = tuple(layer.config["axis"])
    replaces = layer.semantics["masking"] == "replace"
    shape = layer.output_shape
    last = isinstance(shape, tuple) and axes == (len(shape) - 1,)
    shown = -1 if last else axes[0]

    def call(site: Site) -> str:
        if site.mask is None and len(axes) == 1:
            return f"torch.softmax({site.x}, dim={shown})"
        if site.mask is None or len(axes) > 1:
            raise refuse(layer, "several axes")
        if replaces:
            filled = f"{site.x}.masked_fill(~{site.mask}, -1e9)"
            return f"torch.softmax({filled}, dim={shown}) * {site.mask}"
        added = f"{site.x} - 1e9 * (~{site.mask}).to({site.x}.dtype)"
        return f"torch.softmax({added}, dim={shown})"

    return Emission(call, helpers=(TORCH,))


EMITTERS: Mapping[str, Emit] = {
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "ThresholdedReLU": _thresholded_relu,
    "PReLU": _prelu,
    "Softmax": _softmax,
}
