"""Deliberate bugs in an OUT file, each a small change of its weights or of its spec.

What a wrong conversion would write: gates in another order, a matrix not transposed, the halves of
a Bidirectional exchanged, a row of a bias in another place, another merge mode or activation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.building import build
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.schema.stored import model_from_json

State = dict[str, Tensor]
# An activation -> another one that is as plausible
OTHERS = {
    "tanh": "sigmoid",
    "sigmoid": "hard_sigmoid_0.2",
    "hard_sigmoid_0.2": "sigmoid",
    "hard_sigmoid_1/6": "hard_sigmoid_0.2",
    "relu": "linear",
    "softmax": "sigmoid",
    "linear": "tanh",
}
_PLACES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "bias")


@dataclass(frozen=True)
class Mutation:
    """A changed OUT. ``kind`` is what was done, ``name`` says where.

    ``same``: why the function is the same nevertheless, by its equation; "" where it is not.
    """

    kind: str
    name: str
    content: Mapping[str, Any]
    same: str = ""


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out, weights_only=True)
    return content


def mutations(content: Mapping[str, Any]) -> Iterator[Mutation]:
    """Every mutation of an OUT that changes anything in it, one at a time."""
    state: State = content["state_dict"]
    for kind, name, changed in _of_weights(state):
        if any(not torch.equal(state[key], changed[key]) for key in state):
            yield Mutation(kind, name, {**content, "state_dict": changed}, _same(state, name))
    spec = json.loads(content["spec"])
    for kind, name, text in _of_spec(spec):
        fitted = _fitted(text, state)
        yield Mutation(kind, name, {**content, "spec": text, "state_dict": fitted})


# ---- weights -----------------------------------------------------------------------------------


def _of_weights(state: State) -> Iterator[tuple[str, str, State]]:
    for owner, ending in _directions(state):
        own = {p: f"{owner}{p}{ending}" for p in _PLACES if f"{owner}{p}{ending}" in state}
        gates = _gates(state[own["weight_hh"]])
        for a, b in combinations(range(gates), 2):
            order = list(range(gates))
            order[a], order[b] = b, a
            swapped = {
                name: torch.cat([state[name].chunk(gates)[i] for i in order])
                for name in own.values()
            }
            yield "gates swapped", f"{own['weight_hh']} {a} and {b}", state | swapped
        if state[own["weight_hh"]].dim() == 2 and gates > 1:
            blocks = [block.T for block in state[own["weight_hh"]].chunk(gates)]
            yield "transposed", own["weight_hh"], state | {own["weight_hh"]: torch.cat(blocks)}
        if {"bias_ih", "bias_hh"} <= own.keys():
            first, second = own["bias_ih"], own["bias_hh"]
            moved = {first: state[second], second: state[first]}
            yield "bias row moved", f"{first} and {second}", state | moved
    for name, tensor in state.items():
        if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            yield "transposed", name, state | {name: tensor.T.contiguous()}
        if tensor.dim() == 1 and "bias" in name.rpartition(".")[2] and len(tensor) > 1:
            yield "bias row moved", name, state | {name: tensor.roll(1)}
    yield from _halves(state)


def _same(state: State, name: str) -> str:
    """Tell why a change of a bias changes nothing."""
    if name.endswith("key.bias"):
        return "softmax: what is added to all scores of a query falls out"
    first, both, _ = name.partition(" and ")
    matrix = state.get(first.replace("bias_ih", "weight_hh"))
    if both and "bias_ih" in first and matrix is not None and _gates(matrix) != 3:
        return "the cell adds both biases up"
    return ""


def _directions(state: State) -> Iterator[tuple[str, str]]:
    """(owner, ending) of every direction's weights."""
    for name in state:
        owner, dot, last = name.rpartition(".")
        if last.startswith("weight_hh"):
            yield f"{owner}{dot}", last.removeprefix("weight_hh")


def _gates(weight_hh: Tensor) -> int:
    return weight_hh.shape[0] // weight_hh.shape[1]


def _halves(state: State) -> Iterator[tuple[str, str, State]]:
    """Both halves of every Bidirectional exchanged, where they have the same shapes."""
    pairs: dict[str, dict[str, str]] = {}
    for name in state:
        owner, _, last = name.rpartition(".")
        if last.endswith("_reverse"):
            pairs.setdefault(owner, {})[name] = name.removesuffix("_reverse")
        elif "backward_layer." in name:
            owner = name.partition("backward_layer.")[0]
            other = name.replace("backward_layer.", "forward_layer.")
            pairs.setdefault(owner, {})[name] = other
    for owner, names in pairs.items():
        if all(b in state and state[a].shape == state[b].shape for a, b in names.items()):
            changed = {a: state[b] for a, b in names.items()}
            changed |= {b: state[a] for a, b in names.items()}
            yield "halves exchanged", owner, state | changed


# ---- the spec ----------------------------------------------------------------------------------


def _of_spec(spec: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for layer in _layers(spec["root"]):
        name, config = layer["name"], layer["config"]
        if layer["class_name"] == "Bidirectional":
            now = config["merge_mode"]
            for mode in MERGE_MODES if now is not None else ():
                if mode != now and (mode == "concat") == (now == "concat"):
                    yield "merge mode changed", f"{name} to {mode}", _with(spec, config, mode)
            for mode in ("sum",) if now == "concat" else ():
                yield "merge mode changed", f"{name} to {mode}", _with(spec, config, mode)
            parts = list(layer["parts"].values())
        else:
            parts = [layer]
        for key in ("activation", "recurrent_activation"):
            changes = [(p["config"], p["config"].get(key)) for p in parts]
            if all(isinstance(now, str) and now in OTHERS for _, now in changes):
                for half, now in changes:
                    half[key] = OTHERS[now]
                yield "activation changed", f"{name} {key}", json.dumps(spec)
                for half, now in changes:
                    half[key] = now


def _with(spec: dict[str, Any], config: dict[str, Any], mode: str) -> str:
    now, config["merge_mode"] = config["merge_mode"], mode
    text = json.dumps(spec)
    config["merge_mode"] = now
    return text


def _layers(layer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every layer of a spec, but the halves of a Bidirectional."""
    yield layer
    inner = [] if layer["class_name"] == "Bidirectional" else list(layer.get("parts", {}).values())
    for part in (*inner, *layer.get("graph", {}).get("layers", ())):
        yield from _layers(part)


def _fitted(text: str, state: State) -> State:
    """The tensors that the changed spec's model has: torch's second bias comes or goes as zeros."""
    wanted = build(model_from_json(json.loads(text))).state_dict()
    found = {name: state[name] for name in wanted if name in state}
    lost = [name for name in state if name not in wanted and state[name].any()]
    assert not lost, lost
    return {name: found.get(name, torch.zeros_like(tensor)) for name, tensor in wanted.items()}
