"""Layers of ``model.quantize("int8")``: weights of 8 bits, mostly with inputs of 8 bits.

Source: Keras 3.15 ``layers/core/dense.py`` (``_int8_call``), ``einsum_dense.py``, ``embedding.py``
and ``quantizers/quantizers.py`` (``abs_max_quantize``). Every other layer and mode is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import LayerSpec

# How a layer computes: with inputs of 8 bits, or with weights of 8 bits alone.
Quantized = Literal["inputs and weights", "weights"]
_LAYERS = ("Dense", "EinsumDense", "Embedding")
_ROUNDED: Mapping[str, Any] = {"value_range": [-127, 127], "epsilon": 1e-07, "output_dtype": "int8"}


def source_policy(policy: Any) -> Any:
    """Return the dtype policy under a quantized one; any other as it is."""
    return _inner(policy).get("source_name") if _mode(policy) == "int8" else policy


def parse_quantization(class_name: str, config: Mapping[str, Any]) -> tuple[Quantized | None, str]:
    """Return how a layer is quantized (None: not at all), and why that is refused, if it is."""
    mode = _mode(config.get("dtype"))
    if mode is None:
        return None, ""
    if mode != "int8" or class_name not in _LAYERS:
        return None, f"quantized weights ({printable(mode)}) of {class_name} are not supported"
    if class_name == "Embedding":
        return "weights", ""
    given = config.get("quantization_config")
    if given is None:  # Keras before it had a configuration
        return "inputs and weights", ""
    rounding = _inner(given).get("activation_quantizer")
    if rounding is None:
        return "weights", ""
    known = isinstance(rounding, Mapping) and rounding.get("class_name") == "AbsMaxQuantizer"
    if not known or any(_inner(rounding).get(k, v) != v for k, v in _ROUNDED.items()):
        return None, (
            f"inputs quantized by {printable(repr(rounding))} are not supported: "
            "AbsMaxQuantizer of 8 bits is expected"
        )
    return "inputs and weights", ""


def _mode(policy: Any) -> Any:
    return _inner(policy).get("mode")


def _inner(value: Any) -> Mapping[str, Any]:
    config = value.get("config") if isinstance(value, Mapping) else None
    return config if isinstance(config, Mapping) else {}


def int8_weights(layer: LayerSpec) -> tuple[str, ...]:
    """Return the names of the weights that are stored with 8 bits."""
    return ("kernel", "embeddings") if layer.semantics.get("quantized") else ()
