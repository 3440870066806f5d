"""Builders of specs, and the fixtures, for every test. Sizes are primes; every weight is random."""

from __future__ import annotations

import functools
import json
import pickle
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

import numpy as np
from fixture_files import FIXTURES
from parsing_here import parsing_here

from keras2torch_birnn.readers import read_model
from keras2torch_birnn.schema import CELL_GATES, REQUIRED, SCHEMA, BadOptionError
from keras2torch_birnn.schema import merge_modes as merge
from keras2torch_birnn.schema.custom_layers import LAMBDA
from keras2torch_birnn.spec import (
    Array,
    Call,
    Generation,
    Graph,
    Kept,
    LayerSpec,
    ModelSpec,
    Structure,
    TensorRef,
    change_weights,
)

B, T, F, H, H_BACK = 3, 7, 2, 5, 11
KERAS2 = Generation("keras2", "2.2.4")
TF_KERAS = Generation("tf.keras", "2.15.0")
KERAS3 = Generation("keras3", "3.15.1")
GENERATIONS = (KERAS2, TF_KERAS, KERAS3)
CELLS = ("LSTM", "GRU", "GRU before", "SimpleRNN")
RULES = ("zeros", "zeros_unreversed", "previous_output", "previous_state")
Made = TypeVar("Made")
MERGE_MODES = (*merge.MERGE_MODES, None)


# ---- layers ------------------------------------------------------------------------------------


def layer(
    class_name: str, name: str = "", weights: Mapping[str, Array] = {}, **config: Any
) -> LayerSpec:
    """A layer with the schema's defaults."""
    known = {**SCHEMA[class_name].options, **SCHEMA[class_name].semantics}
    options = {
        key: option.default for key, option in known.items() if option.default is not REQUIRED
    }
    parts = {key: config.pop(key) for key in SCHEMA[class_name].parts}
    config = {"trainable": True, **options, **config}
    for key, option in known.items():
        if config.get(key) is not None:
            config[key] = option.parse(config[key])
    return layer_of_settings(class_name, name or class_name, config, weights=weights, parts=parts)


def rnn(cell: str, units: int = H, features: int = F, seed: int = 0, **config: Any) -> LayerSpec:
    """A recurrent layer with random weights, biases included."""
    class_name, _, before = cell.partition(" ")
    rng = np.random.default_rng(seed)
    if class_name == "GRU":
        config = {"reset_after": not before, **config}
    if class_name != "SimpleRNN":
        config = {"recurrent_activation": "sigmoid", **config}
    width = CELL_GATES[class_name] * units
    weights = {
        "kernel": rng.normal(size=(features, width)),
        "recurrent_kernel": rng.normal(size=(units, width)) / 2,
        "bias": rng.normal(size=(2, width) if config.get("reset_after") else width),
    }
    if not config.get("use_bias", True):
        del weights["bias"]
    config = {"masked_output": "zeros", "name": f"{class_name.lower()}_{seed}", **config}
    return layer(class_name, weights=weights, units=units, **config)


def bi(forward: LayerSpec, backward: LayerSpec, merge_mode: str | None = "concat") -> LayerSpec:
    """A Bidirectional; the second half is made to read the other way."""
    turned = with_options(backward, go_backwards=not forward.config["go_backwards"])
    return layer(
        "Bidirectional", "bi", merge_mode=merge_mode, forward_layer=forward, backward_layer=turned
    )


def dense(units: int, features: int, seed: int = 0, **config: Any) -> LayerSpec:
    """A Dense with random weights."""
    rng = np.random.default_rng(seed)
    weights = {"kernel": rng.normal(size=(features, units)), "bias": rng.normal(size=units)}
    return layer("Dense", f"dense_{seed}", weights, units=units, **config)


def with_options(spec: LayerSpec, **options: Any) -> LayerSpec:
    found = layer_of_settings(spec.class_name, spec.name, {**spec.settings, **options})
    return replace(spec, config=found.config, semantics=found.semantics)


def layer_of_settings(
    class_name: str, name: str, settings: Mapping[str, Any], **fields: Any
) -> LayerSpec:
    """A layer whose options and semantics come in one mapping; ``fields``: its other fields."""
    semantics: Container[str] = {"makes_mask"} if class_name == LAMBDA else ()
    if class_name in SCHEMA:
        semantics = SCHEMA[class_name].semantics
    config = {key: value for key, value in settings.items() if key not in semantics}
    inferred = {key: value for key, value in settings.items() if key in semantics}
    return LayerSpec(class_name, name, config, semantics=inferred, **fields)


def describe(spec: ModelSpec) -> str:
    """Everything that a model is but the values of its weights, as text."""
    root = change_weights(spec.root, lambda array: (array.shape, array.dtype.str))
    return repr(replace(spec, root=root, kept=Kept()))


def assert_same_weights(one: ModelSpec, other: ModelSpec) -> None:
    """Assert that layer by layer both models have the same weights."""
    for ours, theirs in zip(one.root.walk(), other.root.walk(), strict=True):
        assert list(ours.weights) == list(theirs.weights)
        assert all(map(np.array_equal, ours.weights.values(), theirs.weights.values()))


def values(*shape: int, seed: int = 9) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


# ---- models ------------------------------------------------------------------------------------


def chain(
    *specs: LayerSpec, name: str = "chain", shape: tuple[int | None, ...] | None = None
) -> LayerSpec:
    """A Sequential of these layers."""
    first = layer("InputLayer", f"{name}_input", shape=shape)
    refs = [first, *specs]
    calls = (
        Call(first.name, 0, ()),
        *(
            Call(after.name, 0, (TensorRef(before.name),))
            for before, after in zip(refs, specs, strict=False)
        ),
    )
    graph = Graph(tuple(refs), calls, (TensorRef(first.name),), TensorRef(refs[-1].name))
    return LayerSpec("Sequential", name, {}, graph=graph)


def functional(
    specs: Sequence[LayerSpec], calls: Sequence[Call], inputs: Structure, outputs: Structure
) -> LayerSpec:
    """A Functional model; the InputLayers call themselves."""
    first = [Call(spec.name, 0, ()) for spec in specs if spec.class_name == "InputLayer"]
    graph = Graph(tuple(specs), (*first, *calls), inputs, outputs)
    return LayerSpec("Functional", "model", {}, graph=graph)


def recurrent_call(spec: LayerSpec, states: int = 0, *, masked: bool = True) -> LayerSpec:
    """A model around one recurrent layer: inputs x, mask and the initial states."""
    names = ["x", "m", *(f"s{i}" for i in range(states))]
    inputs = [layer("InputLayer", n, dtype="bool" if n == "m" else "float32") for n in names]
    kwargs: dict[str, Any] = {"mask": TensorRef("m")} if masked else {}
    if states:
        kwargs["initial_state"] = tuple(TensorRef(name) for name in names[2:])
    half = spec.parts.get("forward_layer", spec)
    cell_states = {"LSTM": 2}.get(half.class_name, 1) if half.config["return_state"] else 0
    if "backward_layer" in spec.parts:
        back = spec.parts["backward_layer"]
        other = {"LSTM": 2}.get(back.class_name, 1) if half.config["return_state"] else 0
        count = (2 if spec.config["merge_mode"] is None else 1) + cell_states + other
    else:
        count = 1 + cell_states
    return functional(
        [*inputs, spec],
        [Call(spec.name, 0, (TensorRef("x"),), kwargs)],
        tuple(TensorRef(name) for name in names),
        tuple(TensorRef(spec.name, 0, i) for i in range(count)),
    )


# ---- fixtures ----------------------------------------------------------------------------------

MANIFEST: Mapping[str, Any] = json.loads((FIXTURES / "manifest.json").read_text("utf-8"))


@dataclass(frozen=True)
class Fixture:
    """A file of real Keras: its spec, and what that Keras gave call after call."""

    spec: ModelSpec
    inputs: tuple[tuple[Array, ...], ...]  # one tuple per call
    outputs: tuple[tuple[Array, ...], ...]

    def calls(self) -> Iterator[tuple[tuple[Array, ...], tuple[Array, ...]]]:
        """Inputs and outputs of the calls that follow each other."""
        yield from zip(self.inputs, self.outputs, strict=True)


ENTRIES: Mapping[str, Mapping[str, Any]] = {entry["file"]: entry for entry in MANIFEST["files"]}
# What each file shows, for the choice of ``make test``: its case, and each tag by its writer.
FEATURES: Mapping[str, list[tuple[str, ...]]] = {
    file: [(entry["case"],), *((entry["label"], tag) for tag in entry["tags"])]
    for file, entry in ENTRIES.items()
}


def hand_out_copies(make: Callable[[str], Made]) -> Callable[[str], Made]:
    """Keep what a function makes, and return a copy at every call.

    A model shares the memory of the arrays that it is converted from; trained, it changes them.
    """

    @functools.cache
    def kept(name: str) -> bytes:
        return pickle.dumps(make(name), pickle.HIGHEST_PROTOCOL)

    @functools.wraps(make)
    def copy(name: str) -> Made:
        found: Made = pickle.loads(kept(name))
        return found

    return copy


@hand_out_copies
def fixture(file: str) -> Fixture:
    """The fixture of a path below ``fixtures/``, read once; the arrays are the caller's own."""
    entry = ENTRIES[file]
    with np.load(FIXTURES / entry["npz"]) as data:
        count = {kind: sum(n.startswith(kind) for n in data.files) for kind in ("in_", "out_")}
        inputs = tuple(data[f"in_{i}"] for i in range(count["in_"]))
        outputs = tuple(data[f"out_{i}"] for i in range(count["out_"]))
    if "stateful" not in entry["tags"]:
        return Fixture(read_entry(file), (inputs,), (outputs,))
    each = entry["outputs_per_call"]
    in_turn = tuple(outputs[i : i + each] for i in range(0, len(outputs), each))
    return Fixture(read_entry(file), tuple((x,) for x in inputs), in_turn)


def read_entry(file: str) -> ModelSpec:
    """Read the model of a fixture."""
    config = ENTRIES[file]["config"]
    with parsing_here():
        return read_model(FIXTURES / file, config=None if config is None else FIXTURES / config)


# Values of rules that depend on the version; each rule accepts some of them.
_VALUES = (True, False, "all", "any", "none", "ignore", "add", "replace")


def variants(class_name: str) -> Iterator[LayerSpec]:
    """Yield the layer under all rules of all versions."""
    rules: dict[str, list[Any]] = {}
    for name, option in SCHEMA[class_name].semantics.items():
        for value in _VALUES:
            try:
                rules.setdefault(name, []).append(option.parse(value))
            except BadOptionError:
                continue
    known = {name: values for name, values in rules.items() if values}
    for chosen in product(*known.values()):
        yield layer(class_name, **dict(zip(known, chosen, strict=True)))
