"""Models of any size as Keras 2.2.4 (and one as Keras 3) would write them, made without Keras.

    python tests/support/synthetic.py KIND SIZE... FILE

for measuring (a process of its own: the peak memory of a child counts from its parent's at the
start) and for tests of how conversion grows.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
# HDF5 keeps attributes under 64 KiB; Keras splits longer lists of names.
NAMES_PER_ATTRIBUTE = 500


def write(path: Path, model: Mapping[str, Any], weights: Shapes, **storage: Any) -> None:
    """A whole-model file: the JSON of ``model``, random weights of these shapes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.2.4"
        file.attrs["backend"] = "tensorflow"
        file.attrs["model_config"] = json.dumps(model)
        top = file.create_group("model_weights")
        _put_names(top, "layer_names", list(weights))
        for layer, arrays in weights.items():
            group = top.create_group(layer)
            _put_names(group, "weight_names", list(arrays))
            for name, shape in arrays.items():
                values = rng.standard_normal(shape, dtype="f4")
                values /= np.float32(np.sqrt(max(1, *shape[:-1], 1)))
                group.create_dataset(name, data=values, **storage)


def _put_names(group: h5py.Group, attribute: str, names: list[str]) -> None:
    pieces = range(0, len(names), NAMES_PER_ATTRIBUTE)
    for number, start in enumerate(pieces):
        part = [name.encode() for name in names[start : start + NAMES_PER_ATTRIBUTE]]
        group.attrs[attribute if len(pieces) == 1 else f"{attribute}{number}"] = part
    if not names:
        group.attrs[attribute] = []


# ---- pieces of a configuration ------------------------------------------------------------------


def _input(name: str) -> dict[str, Any]:
    config = {"name": name, "batch_input_shape": [None, 3], "dtype": "float32", "sparse": False}
    return {"class_name": "InputLayer", "name": name, "config": config, "inbound_nodes": []}


def _called(class_name: str, name: str, *calls: list[str], **config: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in sources] for sources in calls]
    entry = {"class_name": class_name, "config": {"name": name, **config}}
    return {**entry, "name": name, "inbound_nodes": nodes}


def _model(name: str, layers: list[dict[str, Any]], output: tuple[str, int]) -> dict[str, Any]:
    ends = {"input_layers": [[layers[0]["name"], 0, 0]], "output_layers": [[*output, 0]]}
    return {"name": name, "layers": layers, **ends}


def _dense(name: str, *calls: list[str]) -> dict[str, Any]:
    return _called("Dense", name, *calls, units=3, activation="tanh")


DENSE = {"kernel:0": (3, 3), "bias:0": (3,)}


def _dense_weights(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/{weight}": shape for weight, shape in DENSE.items()}


# ---- models -------------------------------------------------------------------------------------


def chain(path: Path, layers: int) -> None:
    """A Sequential of so many Dense layers."""
    entries = [_dense(f"dense_{i}") for i in range(layers)]
    entries[0]["config"]["batch_input_shape"] = [None, 3]
    weights = {f"dense_{i}": _dense_weights(f"dense_{i}") for i in range(layers)}
    write(path, {"class_name": "Sequential", "config": entries}, weights)


def functional(path: Path, layers: int) -> None:
    """Dense and Add in turn: every second layer reads the two before it."""
    entries, last = [_input("given")], "given"
    for i in range(layers // 2):
        entries.append(_dense(f"dense_{i}", [last]))
        entries.append(_called("Add", f"add_{i}", [f"dense_{i}", last]))
        last = f"add_{i}"
    weights = {f"dense_{i}": _dense_weights(f"dense_{i}") for i in range(layers // 2)}
    config = _model("model_1", entries, (last, 0))
    write(path, {"class_name": "Model", "config": config}, weights)


def recurrent(path: Path, layers: int) -> None:
    """A Sequential of Bidirectional LSTMs."""
    bidirectional(path, 2, *[2] * layers)


def inner(path: Path, layers: int) -> None:
    """A chain inside a model: the file keeps all its weights in one group."""
    inside, last = [_input("inside")], "inside"
    for i in range(layers):
        inside.append(_dense(f"dense_{i}", [last]))
        last = f"dense_{i}"
    config = _model("model_1", inside, (last, 0))
    entries = [_input("given"), _called("Model", "model_1", ["given"])]
    entries[1]["config"] = config
    weights = {
        "model_1": {n: s for i in range(layers) for n, s in _dense_weights(f"dense_{i}").items()}
    }
    write(
        path, {"class_name": "Model", "config": _model("model_2", entries, ("model_1", 1))}, weights
    )


def nested(path: Path, depth: int, calls: int = 1) -> None:
    """A Dense in a model in a model, ``depth`` times; each is called so often and summed."""
    config = _model("model_0", [_input("given_0"), _dense("dense", ["given_0"])], ("dense", 0))
    for k in range(1, depth + 1):
        within = _called("Model", f"model_{k - 1}", *[[f"given_{k}"]] * calls)
        within["config"] = config
        layers, output = [_input(f"given_{k}"), within], (f"model_{k - 1}", 1)
        if calls > 1:
            add = _called("Add", f"add_{k}", [])
            add["inbound_nodes"] = [[[f"model_{k - 1}", 1 + i, 0, {}] for i in range(calls)]]
            layers, output = [*layers, add], (f"add_{k}", 0)
        config = _model(f"model_{k}", layers, output)
    weights = {f"model_{depth - 1}": _dense_weights("dense")}
    write(path, {"class_name": "Model", "config": config}, weights)


def embedding(path: Path, words: int, width: int, units: int) -> None:
    """An Embedding and a Bidirectional LSTM."""
    first = {
        "name": "embedding_1",
        "input_dim": words,
        "output_dim": width,
        "mask_zero": True,
        "batch_input_shape": [None, None],
    }
    entries, weights = _lstms([width, units])
    table = {"embedding_1": {"embedding_1/embeddings:0": (words, width)}}
    entries[0]["config"].pop("batch_input_shape")
    entries = [{"class_name": "Embedding", "config": first}, *entries]
    write(path, {"class_name": "Sequential", "config": entries}, {**table, **weights})


def archive(path: Path, words: int, width: int, units: int) -> None:
    """Write a ``.keras`` file as of Keras 3.15: an archive around an HDF5 file, uncompressed."""
    cell = {"units": units, "activation": "tanh", "return_sequences": True}
    lstm = {"module": "keras.layers", "class_name": "LSTM", "registered_name": None}
    halves = {
        key: {**lstm, "config": {"name": f"{way}_lstm", **cell, "go_backwards": way == "backward"}}
        for key, way in (("layer", "forward"), ("backward_layer", "backward"))
    }
    layers = [
        ("InputLayer", {"name": "input_layer", "batch_shape": [None, None]}),
        (
            "Embedding",
            {"name": "embedding", "input_dim": words, "output_dim": width, "mask_zero": True},
        ),
        ("Bidirectional", {"name": "bidirectional", "merge_mode": "sum", **halves}),
    ]
    entries = [{"module": "keras.layers", "class_name": c, "config": k} for c, k in layers]
    config = {"name": "sequential", "trainable": True, "layers": entries}
    model = {"module": "keras", "class_name": "Sequential", "config": config}
    rng = np.random.default_rng(0)
    store = path.with_suffix(".weights.h5")
    with h5py.File(store, "w") as file:
        shapes = {"layers/embedding/vars/0": (words, width)}
        for way in ("forward", "backward"):
            for i, shape in enumerate(((width, 4 * units), (units, 4 * units), (4 * units,))):
                shapes[f"layers/bidirectional/{way}_layer/cell/vars/{i}"] = shape
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, dtype="f4") / np.float32(np.sqrt(width))
            file.create_dataset(name, data=values)
        for empty in ("bidirectional/vars", "input_layer/vars"):
            file.create_group(f"layers/{empty}")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        made.writestr("config.json", json.dumps(model))
        made.write(store, "model.weights.h5")
    store.unlink()


def bidirectional(path: Path, width: int, *units: int) -> None:
    """Bidirectional LSTMs of these sizes, their halves summed."""
    entries, weights = _lstms([width, *units])
    write(path, {"class_name": "Sequential", "config": entries}, weights)


def _lstms(sizes: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    weights: dict[str, Any] = {}
    for i, (width, units) in enumerate(pairwise(sizes), 1):
        cell = {
            "name": f"lstm_{i}",
            "units": units,
            "activation": "tanh",
            "recurrent_activation": "sigmoid",
            "return_sequences": True,
        }
        config = {
            "name": f"bidirectional_{i}",
            "merge_mode": "sum",
            "layer": {"class_name": "LSTM", "config": cell},
        }
        entries.append({"class_name": "Bidirectional", "config": config})
        shapes = {
            "kernel": (width, 4 * units),
            "recurrent_kernel": (units, 4 * units),
            "bias": (4 * units,),
        }
        weights[config["name"]] = {
            f"{config['name']}/{way}_lstm_{i}/{name}:0": shape
            for way in ("forward", "backward")
            for name, shape in shapes.items()
        }
    entries[0]["config"]["batch_input_shape"] = [None, None, sizes[0]]
    return entries, weights


KINDS: Mapping[str, Callable[..., None]] = {
    "chain": chain,
    "functional": functional,
    "recurrent": recurrent,
    "inner": inner,
    "nested": nested,
    "embedding": embedding,
    "archive": archive,
    "bidirectional": bidirectional,
}


if __name__ == "__main__":
    kind, *sizes, target = sys.argv[1:]
    KINDS[kind](Path(target), *map(int, sizes))
