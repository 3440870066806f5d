"""Models as files of Keras hold them, and what they are parsed to, shapes included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import LayerSpec

Json = dict[str, Any]


def entry(class_name: str, name: str, nodes: list[Any], **config: Any) -> Json:
    return {
        "class_name": class_name,
        "name": name,
        "config": {"name": name, "trainable": True, **config},
        "inbound_nodes": nodes,
    }


def source(name: str, *shape: int | None, **config: Any) -> Json:
    return entry("InputLayer", name, [], batch_input_shape=[None, *shape], **config)


def listed(*names: str, **kwargs: Any) -> list[Any]:
    """A node of Keras 2 and tf.keras."""
    return [[name, 0, 0, kwargs] for name in names]


def keras3(*args: Any, **kwargs: Any) -> Json:
    """A node of Keras 3; a text is a tensor."""

    def tensor(value: Any) -> Any:
        if isinstance(value, list):
            return [tensor(part) for part in value]
        if not isinstance(value, str):
            return value
        config = {"shape": [None], "dtype": "float32", "keras_history": [value, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": config}

    return {
        "args": [tensor(a) for a in args],
        "kwargs": {key: tensor(value) for key, value in kwargs.items()},
    }


def functional_config(*layers: Json) -> Json:
    """A Functional model of all its inputs and of its last layer's output."""
    inputs = [one["name"] for one in layers if one["class_name"] == "InputLayer"]
    config = {
        "name": "model",
        "layers": list(layers),
        "input_layers": [[name, 0, 0] for name in inputs],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }
    return {"class_name": "Functional", "config": config}


def parse_config(model: Mapping[str, Any], version: str) -> tuple[LayerSpec, Parsing]:
    """Return the root and what was found."""
    parsing = Parsing(generation_of(version))
    root = parse_architecture(model, parsing)
    return (root if parsing.problems else infer_model(root, parsing.problems)), parsing


def parsed(version: str, *layers: Json) -> tuple[LayerSpec, Parsing]:
    return parse_config(functional_config(*layers), version)
