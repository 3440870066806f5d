"""Random graphs as specs, without any Keras: written as a version would write them, then parsed.

So every generation's rules of masks and defaults are asked, those too whose Keras runs nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume

from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.weights.load_weights import resolve_masked_steps
from keras2torch_birnn.schema.shape_inference import expected_weights, infer_model
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

Json = dict[str, Any]
Graph = dict[str, Any]
# A tensor in the file's form: layer, number of the call, number of the output.
Ref = tuple[str, int, int]
_SCALE = 0.4
_VALID = np.array(
    [[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0, 1]],
    dtype=bool,
)


def model_json(graph: Graph, version: str, name: str = "model") -> Json:
    """The architecture as Keras ``version`` would write it."""
    keras3 = version.startswith("3")
    layers: dict[str, Json] = {}
    tensors: dict[str, Ref] = {}
    for tensor, kind, shape in graph["inputs"]:
        whole = "bool" if kind == "bool" else "int32" if kind.startswith("ids") else "float32"
        key = "batch_shape" if keras3 else "batch_input_shape"
        config = {"name": tensor, key: [None, *shape], "dtype": whole}
        layers[tensor] = _entry("InputLayer", tensor, config)
        tensors[tensor] = (tensor, 0, 0)
    for number, step in enumerate(graph["steps"]):
        made, layer, given, *rest = step
        own = layer if isinstance(layer, str) else f"layer_{number}"
        if own not in layers:
            spec = graph["shared"][layer] if isinstance(layer, str) else layer
            layers[own] = layer_json(spec, own, version)
        nodes = layers[own]["inbound_nodes"]
        form = _dict_node if keras3 else _list_node
        nodes.append(form(given, rest[0] if rest else {}, tensors))
        for output, tensor in enumerate([made] if isinstance(made, str) else made):
            tensors[tensor] = (own, len(nodes) - 1, output)
    outputs = graph["outputs"]
    ends = [list(tensors[t]) for t in ([outputs] if isinstance(outputs, str) else outputs)]
    for end in ends:
        # The call on its own input is number 0 of a model inside; Keras 3 counts it here alone.
        end[1] += keras3 and layers[end[0]]["class_name"] == "Functional"
    config = {
        "name": name,
        "trainable": True,
        "layers": list(layers.values()),
        "input_layers": [[tensor, 0, 0] for tensor, _, _ in graph["inputs"]],
        "output_layers": ends,
    }
    return {"class_name": "Functional", "config": config}


def _entry(class_name: str, name: str, config: Json) -> Json:
    return {"class_name": class_name, "name": name, "config": config, "inbound_nodes": []}


def layer_json(layer: tuple[str, Mapping[str, Any]], name: str, version: str) -> Json:
    """Describe one layer, with the layers inside it."""
    class_name, keywords = layer
    if class_name == "Functional":
        return {**model_json(dict(keywords), version, name), "name": name, "inbound_nodes": []}
    if class_name == "Sequential":
        shape = [None, *keywords["input_shape"]]
        key = "batch_shape" if version.startswith("3") else "batch_input_shape"
        first = _entry("InputLayer", f"{name}_input", {"name": f"{name}_input", key: shape})
        inside = [
            layer_json(inner, f"{name}_{i}", version) for i, inner in enumerate(keywords["layers"])
        ]
        return _entry(
            class_name, name, {"name": name, "trainable": True, "layers": [first, *inside]}
        )
    config: Json = {"name": name}
    if not class_name.startswith("ops."):
        config["trainable"] = True
    for key, value in keywords.items():
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
            config[key] = layer_json(value, f"{name}_{key}", version)
        elif key == "alpha" and class_name == "LeakyReLU" and version.startswith("3"):
            config["negative_slope"] = value
        else:
            config[key] = list(value) if isinstance(value, tuple) else value
    if class_name == "Bidirectional":
        config.setdefault("merge_mode", "concat")
    return _entry(class_name.removeprefix("ops."), name, config)


def _dict_node(given: Any, keywords: Mapping[str, Any], tensors: Mapping[str, Ref]) -> Json:
    def tensor(name: str) -> Json:
        history = list(tensors[name])
        config = {"shape": [None], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": config}

    several = given if isinstance(given, tuple) else (given,)
    args = [_map(tensor, one) if isinstance(one, str | list) else dict(one) for one in several]
    return {"args": args, "kwargs": _said(keywords, tensor)}


def _list_node(given: Any, keywords: Mapping[str, Any], tensors: Mapping[str, Ref]) -> list[Any]:
    """States follow the sequence; of several arguments the later ones are keywords."""
    said = _said(keywords, lambda name: list(tensors[name]))
    states = said.pop("initial_state", [])
    if isinstance(given, tuple):
        given, *others = given
        said |= {
            key: list(tensors[name]) for key, name in zip(("value", "key"), others, strict=False)
        }
    names = [given] if isinstance(given, str) else given
    first = [[*tensors[name], said] for name in names]
    return [*first, *([*state, {}] for state in states)]


def _said(keywords: Mapping[str, Any], tensor: Callable[[str], Any]) -> Json:
    return {
        key: _map(lambda name: tensor(name[1:]), value) if isinstance(value, str | list) else value
        for key, value in keywords.items()
    }


def _map(tensor: Callable[[str], Any], names: Any) -> Any:
    return [tensor(name) for name in names] if isinstance(names, list) else tensor(names)


def spec_of(graph: Graph, version: str = "3.15.1", seed: int = 0) -> ModelSpec:
    """The parsed model with random weights.

    Raises:
        K2TError: the first problem; there should be none but a mask that Keras takes off.
    """
    parsing = Parsing(generation_of(version))
    root = parse_architecture(model_json(graph, version), parsing)
    if not parsing.problems:
        root = infer_model(root, parsing.problems)
    if parsing.problems:
        assume("takes it off its input" not in parsing.problems[0].message)
        raise parsing.problems[0]
    root, _ = resolve_masked_steps(root, {}, parsing.generation, parsing.of_tensorflow_1)
    root = infer_model(_filled(root, np.random.default_rng(seed)), parsing.problems)
    return ModelSpec(root, parsing.generation)


def _filled(layer: LayerSpec, rng: np.random.Generator) -> LayerSpec:
    weights: dict[str, Array] = {}
    for name, shape in expected_weights(layer).items():
        sizes = tuple(size or 1 for size in shape)
        weights[name] = _SCALE * rng.normal(size=sizes)
        if "variance" in name:
            weights[name] = rng.uniform(0.5, 1.5, sizes)
    graph = layer.graph
    return replace(
        layer,
        weights=weights,
        parts={key: _filled(part, rng) for key, part in layer.parts.items()},
        graph=graph and replace(graph, layers=tuple(_filled(one, rng) for one in graph.layers)),
    )


def inputs_of(graph: Graph, seed: int = 0) -> tuple[Array, ...]:
    """Four rows: nothing padded, right-padded, left-padded, and with gaps."""
    rng = np.random.default_rng(seed)
    values = []
    for _, kind, sizes in graph["inputs"]:
        shape = (len(_VALID), *(size or _VALID.shape[1] for size in sizes))
        steps = np.resize(np.arange(_VALID.shape[1]), shape[1])
        kept = _VALID[:, steps]
        value: Array = rng.normal(size=shape)
        if kind == "bool":
            value = kept
        elif kind.startswith("ids"):
            value = rng.integers(1, 17, size=shape)
        if kind.endswith("padded"):
            value[~kept] = 0
        values.append(value)
    return tuple(values)
