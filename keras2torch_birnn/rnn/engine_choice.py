"""Which engine runs a recurrent layer, and why. No torch: ``k2t inspect`` asks without it.

fused: torch's own module. folded: the same for all layers of a stack at once (``fold_layers``).
native: our kernel, float32 on CPU (``native``). loop: the equations step by step, for everything.
graph: the loop, recorded once and played on a GPU (``cuda_graph``).
``K2T_ENGINE`` chooses (``wish``). Where native cannot run a call (a GPU, float64, an exported
graph), the layer's torch engine does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.functional.activation_labels import activation_label
from keras2torch_birnn.rnn.native.library import missing, native_cell
from keras2torch_birnn.schema import CELL_GATES
from keras2torch_birnn.spec import LayerSpec

Engine = Literal["fused", "folded", "loop", "graph", "native"]
Wish = Literal["auto", "torch", "fused", "folded", "loop", "graph", "native"]
WISHES: tuple[Wish, ...] = get_args(Wish)

VARIABLE = "K2T_ENGINE"
TORCH_CLASSES = {"LSTM": "nn.LSTM", "GRU": "nn.GRU", "SimpleRNN": "nn.RNN"}


@dataclass(frozen=True)
class Choice:
    """An engine and the reason in words."""

    engine: Engine
    reason: str


def wish(chosen: str | None = None) -> Wish:
    """The engine that was chosen, else what ``K2T_ENGINE`` asks for, else auto.

    auto: native where it pays. torch: fused where torch has a kernel, else the loop, on a GPU as a
    graph. The others force one engine.

    Raises:
        UsageError: it names none of these.
    """
    name = chosen or os.environ.get(VARIABLE) or "auto"
    for known in WISHES:
        if name == known:
            return known
    said = "engine" if chosen else VARIABLE
    raise UsageError(f"{said}={name}: one of {', '.join(WISHES)} is expected")


def choose(layer: LayerSpec) -> Choice:
    """Say how one LSTM, GRU or SimpleRNN runs in float32 on CPU, or as ``K2T_ENGINE`` forces it.

    Raises:
        UsageError: the forced engine cannot run this layer.
    """
    within_torch, engine = torch_engine(layer), wish()
    if engine == "torch":
        return within_torch
    if engine in ("loop", "graph"):  # whether it is on a GPU is known when it runs
        return Choice(engine, f"{VARIABLE}={engine}")
    if engine == "folded":
        raise UsageError(
            f"{VARIABLE}=folded: a converted layer stands alone", "use fused", place=layer.place
        )
    if engine == "fused":
        if within_torch.engine != "fused":
            raise UsageError(
                f"{VARIABLE}=fused: {within_torch.reason}", "use auto", place=layer.place
            )
        return Choice("fused", f"{VARIABLE}=fused: {within_torch.reason}")
    lacking = not_native(layer)
    if engine == "native":
        if lacking:
            raise UsageError(f"{VARIABLE}=native: {lacking}", "use auto", place=layer.place)
        return Choice("native", f"{VARIABLE}=native")
    if lacking:
        return within_torch
    reason = f"float32 on CPU; else {within_torch.engine}: {within_torch.reason}"
    weights = CELL_GATES[layer.class_name] * layer.config["units"] ** 2
    if within_torch.engine == "fused" and not native_pays(layer.class_name, SEVERAL, weights):
        reason += f", also for {SEVERAL} rows and more without mask"
    return Choice("native", reason)


# From so many rows on, and above so many recurrent weights of a direction, torch's LSTM (oneDNN) is
# the faster one; its GRU never is.
SEVERAL, MANY_WEIGHTS = 4, 2**20


def native_pays(kind: str, rows: int, weights: int) -> bool:
    """Whether native is faster than torch's kernel for a kind of cell.

    It was in all other cases that were measured: benchmarks/engine.py.
    """
    return kind != "LSTM" or weights <= MANY_WEIGHTS or rows < SEVERAL


def not_native(layer: LayerSpec) -> str:
    """Why the native kernel cannot run this layer; empty if it can."""
    if native_cell(layer) is None:
        return "the native kernel lacks an activation of this layer"
    reason = missing()
    return f"there is no native kernel: {reason}" if reason else ""


def torch_engine(layer: LayerSpec) -> Choice:
    """Say how it runs within torch: by torch's own kernel wherever one computes it."""
    config, torch_class = layer.config, TORCH_CLASSES[layer.class_name]
    allowed = ("tanh", "relu") if layer.class_name == "SimpleRNN" else ("tanh",)
    if config["activation"] not in allowed:
        return Choice(
            "loop", f"{torch_class} has no activation {activation_label(config['activation'])}"
        )
    if layer.class_name != "SimpleRNN" and config["recurrent_activation"] != "sigmoid":
        return Choice(
            "loop",
            f"{torch_class} has no recurrent_activation "
            f"{activation_label(config['recurrent_activation'])}",
        )
    if layer.class_name == "GRU" and not config["reset_after"]:
        return Choice("loop", "nn.GRU resets after the product, this GRU before (reset_after)")
    return Choice("fused", torch_class)


# What may differ between the halves of a Bidirectional without needing two modules.
_FREE = ("go_backwards", "masked_output", "trainable")


def alike(forward: LayerSpec, backward: LayerSpec) -> bool:
    """Whether one bidirectional torch module can be both halves."""
    return forward.class_name == backward.class_name and all(
        forward.config[key] == backward.config.get(key)
        for key in forward.config
        if key not in _FREE
    )
