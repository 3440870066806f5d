"""Source text of activations, and of the layers that are one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras2torch_birnn.exporting.source.code import Expression, call, symbol
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper
from keras2torch_birnn.exporting.source.operations import name_function
from keras2torch_birnn.functional.activations import FUNCTIONS
from keras2torch_birnn.spec import LayerSpec

# Functions of torch, where there are no options
_PLAIN: Mapping[str, Expression] = {
    "relu": symbol("torch.relu"),
    "gelu": symbol("functional.gelu"),
    "hard_silu": symbol("functional.hardswish"),
}
_TORCHS_SOFTMAX: Mapping[str, Expression] = {
    kind: symbol(f"torch.{kind}") for kind in ("softmax", "log_softmax")
}


def _split(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


def function_of(value: Any) -> tuple[Expression, tuple[Helper, ...]]:
    """Return an activation as a function, and what it needs.

    value: a name of ``schema.ACTIVATIONS``, or a dict with options.
    """
    kind, options = _split(value)
    if kind in _PLAIN and not options:
        return _PLAIN[kind], ()
    function, helpers = name_function(FUNCTIONS[kind])
    return call(symbol("partial"), function, **options) if options else function, helpers


def find_activation(value: Any) -> tuple[Callable[[Expression], Expression], tuple[Helper, ...]]:
    """Return what writes an activation of an expression, and what that needs."""
    kind, options = _split(value)
    if kind == "linear":
        return lambda x: x, ()
    if kind in _TORCHS_SOFTMAX:
        return lambda x: call(_TORCHS_SOFTMAX[kind], x, dim=options.get("axis", -1)), ()
    function, helpers = name_function(FUNCTIONS[kind]) if options else function_of(value)
    return lambda x: call(function, x, **options), helpers


def _of_function(value: Any) -> Emission:
    activate, helpers = find_activation(value)
    return Emission(lambda site: activate(site.x), helpers=helpers, same=value == "linear")


def _activation(layer: LayerSpec, name: str, built: Any) -> Emission:
    return _of_function(layer.config["activation"])


def _relu(layer: LayerSpec, name: str, built: Any) -> Emission:
    options = {k: layer.config[k] for k in ("negative_slope", "max_value", "threshold")}
    if options == {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}:
        return _of_function("relu")
    return _of_function({"name": "relu", **options})


EMITTERS: Mapping[str, Emit] = {
    "Activation": _activation,
    "ReLU": _relu,
}
