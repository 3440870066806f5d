"""Reasons that depend on a layer's options alone. No torch: ``k2t inspect`` asks without it."""

from __future__ import annotations

from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, GRU_BEFORE, kind_of
from keras2torch_birnn.rnn.native.library import to_native_cell, why_missing
from keras2torch_birnn.schema.activation import activation_label
from keras2torch_birnn.spec import LayerSpec

# From this many rows on, and above this many recurrent weights of one direction, torch's LSTM
# (oneDNN) is faster than the native kernel; its GRU never is.
SEVERAL, MANY_WEIGHTS = 4, 2**20


def native_pays(kind: str, rows: int, weights: int) -> bool:
    """Return whether native is faster than torch's kernel for a kind of cell.

    Measured by `python -m benchmarks layers`. weights: recurrent ones of a direction.
    """
    return kind != "LSTM" or weights <= MANY_WEIGHTS or rows < SEVERAL


def why_not_native(layer: LayerSpec) -> str:
    """Return why the native kernel cannot run a layer; empty if it can."""
    if to_native_cell(layer) is None:
        return "the native kernel lacks an activation of this layer"
    reason = why_missing()
    return f"there is no native kernel: {reason}" if reason else ""


def native_reason(layer: LayerSpec, otherwise: str) -> str:
    """Return where the native kernel runs, and the engine and reason elsewhere."""
    reason = f"float32 on CPU; else {otherwise}"
    weights = CELL_KINDS[kind_of(layer)].gates * layer.config["units"] ** 2
    if not (why_not_torch_kernel(layer) or native_pays(layer.class_name, SEVERAL, weights)):
        reason += f", also for {SEVERAL} rows and more without mask"
    return reason


def torch_class(layer: LayerSpec) -> str:
    """Return the name of torch's layer of the same cell."""
    return f"nn.{CELL_KINDS[kind_of(layer)].torch_name}"


def why_not_torch_kernel(layer: LayerSpec) -> str:
    """Return why torch's layer does not compute a layer; empty if it does."""
    config, kind = layer.config, kind_of(layer)
    standard = {"activation": CELL_KINDS[kind].torch_activations or ("tanh",)}
    if "recurrent_activation" in config:
        standard["recurrent_activation"] = ("sigmoid",)
    for option, allowed in standard.items():
        if config[option] not in allowed:
            return f"{torch_class(layer)} has no {option} {activation_label(config[option])}"
    if kind == GRU_BEFORE:
        return "nn.GRU resets after the product, this GRU before (reset_after)"
    return ""
