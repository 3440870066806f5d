"""Which engine runs a recurrent layer, and why. No torch: ``k2t inspect`` asks without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from keras2torch_birnn.spec import LayerSpec

Engine = Literal["fused", "loop"]

TORCH_CLASSES = {"LSTM": "nn.LSTM", "GRU": "nn.GRU", "SimpleRNN": "nn.RNN"}


def activation_label(value: Any) -> str:
    """How an activation of a spec is shown to a person."""
    if isinstance(value, str):
        return value
    options = ", ".join(f"{k}={v}" for k, v in value.items() if k != "name")
    return f"{value['name']}({options})"


@dataclass(frozen=True)
class Choice:
    """An engine and the reason in words."""

    engine: Engine
    reason: str


def choose(layer: LayerSpec) -> Choice:
    """Say how one LSTM, GRU or SimpleRNN runs: by torch's own kernel wherever one computes it."""
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
