"""Count the fixtures that are compared with real Keras, by generation, kind of file and feature.

The features of a file are read from the file itself. ``tests/parity/test_fixtures.py`` compares
every file that is counted here.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from fixture_files import FIXTURES

from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import LAYERS
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Call, LayerSpec, leaves

ENTRIES: Mapping[str, Mapping[str, Any]] = {
    entry["file"]: entry
    for entry in json.loads((FIXTURES / "manifest.json").read_text("utf-8"))["files"]
}
KINDS: Mapping[str, str] = {
    "h5": "`.h5`",
    "weights_h5": "weights `.h5` + JSON",
    "keras": "`.keras`",
    "weights_v3": "`.weights.h5` + JSON",
    "folder": "folder",
}


@dataclass(frozen=True)
class File:
    """Fixture: its entry in the manifest, its architecture as text and parsed."""

    entry: Mapping[str, Any]
    text: str
    root: LayerSpec

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer, also nested ones."""
        return tuple(self.root.walk())

    @property
    def calls(self) -> Iterator[Call]:
        """Every call, also those in nested models."""
        return (call for one in self.layers if one.graph for call in one.graph.calls)


def architecture_text(file: str) -> str:
    """Return the JSON text of a fixture's architecture."""
    entry = ENTRIES[file]
    path: Path = FIXTURES / (file if entry["config"] is None else entry["config"])
    if path.suffix == ".json":
        return path.read_text("utf-8")
    if path.is_dir():
        return (path / "config.json").read_text("utf-8")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json").decode()
    with h5py.File(path) as store:
        text = store.attrs["model_config"]
    return text.decode() if isinstance(text, bytes) else str(text)


def read_file(file: str) -> File:
    """Parse the architecture of a fixture, without its weights."""
    text = architecture_text(file)
    parsing = Parsing(generation_of(ENTRIES[file]["keras_version"]))
    return File(ENTRIES[file], text, parse_architecture(json.loads(text), parsing))


# ---- features ------------------------------------------------------------------------------------


def has(*names: str) -> Callable[[File], bool]:
    """Make a test for layers of these classes."""
    return lambda file: any(one.class_name in names for one in file.layers)


def option(name: str, *values: Any, of: str = "") -> Callable[[File], bool]:
    """Make a test for layers whose option has one of these values."""
    return lambda file: any(
        one.config.get(name, file) in values
        for one in file.layers
        if not of or one.class_name == of
    )


def _family(pattern: str) -> tuple[str, ...]:
    return tuple(name for name in LAYERS if re.fullmatch(pattern, name))


def _merge(mode: str | None) -> Callable[[File], bool]:
    return option("merge_mode", mode, of="Bidirectional")


def _unequal(file: File) -> bool:
    def essence(one: LayerSpec) -> Any:
        varying = ("name", "go_backwards")
        return one.class_name, {k: v for k, v in one.settings.items() if k not in varying}

    pairs = [one.parts for one in file.layers if one.class_name == "Bidirectional"]
    return any(essence(p["forward_layer"]) != essence(p["backward_layer"]) for p in pairs)


def _masked(file: File) -> bool:
    return has("Masking")(file) or option("mask_zero", True)(file)


def _graph(file: File) -> bool:
    """Return whether the graph is not a chain: calls with several tensors, or several ends."""
    graph = file.root.graph
    return graph is not None and (_several(file) or _merging(file))


def _merging(file: File) -> bool:
    return has(*(name for name, schema in LAYERS.items() if schema.listed))(file)


def _several(file: File) -> bool:
    graph = file.root.graph
    return graph is not None and (
        len([*leaves(graph.inputs)]) > 1 or isinstance(graph.outputs, tuple | dict)
    )


def _nested(file: File) -> bool:
    return sum(one.graph is not None for one in file.layers) > 1


def _over_models(file: File) -> bool:
    wrapped = [one.parts["layer"] for one in file.layers if one.class_name == "TimeDistributed"]
    return any(one.graph is not None for one in wrapped)


def _said(key: str) -> Callable[[File], bool]:
    return lambda file: any(call.kwargs.get(key) is not None for call in file.calls)


FEATURES: Mapping[str, Callable[[File], bool]] = {
    "LSTM": has("LSTM"),
    "GRU, reset_after": option("reset_after", True, of="GRU"),
    "GRU, reset before": option("reset_after", False, of="GRU"),
    "SimpleRNN": has("SimpleRNN"),
    "CuDNNLSTM, CuDNNGRU": lambda file: "CuDNN" in file.text,
    "cells, ConvLSTM": has(*_family(r"RNN|StackedRNNCells|ConvLSTM.*|.*Cell")),
    **{f"Bidirectional {mode}": _merge(mode) for mode in MERGE_MODES},
    "Bidirectional without merge": _merge(None),
    "halves that differ": _unequal,
    "hard_sigmoid": lambda file: "hard_sigmoid" in str([one.config for one in file.layers]),
    "masks": _masked,
    "mask passed as argument": _said("mask"),
    "stateful": option("stateful", True),
    "return_state": option("return_state", True),
    "initial_state": _said("initial_state"),
    "several inputs or outputs": _several,
    "branches": _graph,
    "shared layers": lambda file: any(call.index for call in file.calls),
    "models inside": _nested,
    "TimeDistributed": has("TimeDistributed"),
    "TimeDistributed models": _over_models,
    "frozen layers": option("trainable", False),
    "merge layers": _merging,
    "attention": has(*_family(".*Attention")),
    "Conv1D and kin": has(*_family(".*Conv1D.*")),
    "Conv2D and kin": has(*_family("(?!ConvLSTM).*Conv2D.*")),
    "Conv3D and kin": has(*_family("(?!ConvLSTM).*Conv3D.*")),
    "pooling": has(*_family(".*Pooling.D")),
    "normalization": has(*_family(".*Normalization")),
    "Embedding": has("Embedding"),
    "reshaping, padding, cropping": has(
        *_family("Flatten|Reshape|Permute|RepeatVector|(Zero|Crop|UpS).*")
    ),
    "activation layers": has(*_family("Activation|.*ReLU|ELU|Softmax")),
    "dropout and noise": has(*_family(".*Dropout.*|Gaussian.*")),
    "operations (`tf.*`, `keras.ops`)": lambda file: any(
        one.class_name.startswith("ops.") for one in file.layers
    ),
    "whole architectures": lambda file: "architecture" in file.entry["tags"],
}


# ---- tables --------------------------------------------------------------------------------------


def counted() -> dict[str, File]:
    """List the files compared to 1e-5 + 1e-4 |y|: all but those of half precision."""
    return {name: read_file(name) for name, e in ENTRIES.items() if "tolerance" not in e}


def _order(label: str) -> tuple[int, list[int]]:
    package, _, version = label.rpartition("-")
    rank = ("keras", "tf", "tf.keras", "tf_keras").index(package)
    numbers = [int(part) for part in version.split(".")]
    return (4 if package == "keras" and numbers[0] > 2 else rank), numbers


def _shown(label: str) -> str:
    package, _, version = label.rpartition("-")
    return {"keras": "Keras", "tf": "tf.keras of TensorFlow"}.get(package, package) + f" {version}"


def _rows(head: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for name, numbers in rows:
        cells = (f"{number:,}" if number else "" for number in numbers)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_kind(files: Mapping[str, File]) -> str:
    """Make the table of generations and kinds of file."""
    seen = Counter((file.entry["label"], file.entry["kind"]) for file in files.values())
    labels = sorted({label for label, _ in seen}, key=_order)
    rows = [
        (_shown(label), [seen[label, k] for k in KINDS] + [sum(seen[label, k] for k in KINDS)])
        for label in labels
    ]
    sums = [sum(seen[label, kind] for label in labels) for kind in KINDS]
    rows.append(("all", [*sums, sum(sums)]))
    return _rows(["written by", *KINDS.values(), "all"], rows)


# Beginning of the kind of a container of TensorFlow -> its column; the first that fits counts.
CONTAINERS: Mapping[str, str] = {
    "savedmodel": "SavedModel",
    "untraced": "SavedModel without traces",
    "weights": "`save_weights` + JSON",
    "checkpoint": "`tf.train.Checkpoint` + JSON",
    "tfjs_uint": "TF.js, quantized",
    "tfjs_float16": "TF.js, quantized",
    "tfjs": "TF.js",
}
_WRITERS = {
    "tf-": "tf.keras of TensorFlow ",
    "tfjs-": "TF.js ",
    "tensorflowjs-": "tensorflowjs_converter ",
}


def by_container() -> str:
    """Writer x container, of the models in TensorFlow's containers that are compared."""
    path = FIXTURES / "tensorflow" / "manifest.json"
    compared = [
        entry
        for entry in json.loads(path.read_text("utf-8"))["files"]
        if entry["npz"] and (entry["expect"] == "converts" or entry["kind"] == "tfjs_keras")
        if "tolerance" not in entry
    ]
    columns = list(dict.fromkeys(CONTAINERS.values()))
    seen = Counter((entry["writer"], _container(entry["kind"])) for entry in compared)
    rows = []
    for writer in sorted({entry["writer"] for entry in compared}):
        start = next((one for one in _WRITERS if writer.startswith(one)), "")
        shown = _WRITERS.get(start, "") + writer.removeprefix(start)
        numbers = [seen[writer, column] for column in columns]
        rows.append((shown if start else shown.replace("-", " "), [*numbers, sum(numbers)]))
    sums = [sum(numbers[i] for _, numbers in rows) for i in range(len(columns) + 1)]
    return _rows(["written by", *columns, "all"], [*rows, ("all", sums)])


def _container(kind: str) -> str:
    return next(column for start, column in CONTAINERS.items() if kind.startswith(start))


FAMILIES: Mapping[str, Callable[[str], bool]] = {
    "Keras 1": lambda label: label.startswith("keras-1"),
    "Keras 2": lambda label: label.startswith("keras-2"),
    "tf.keras 2": lambda label: label.startswith(("tf-", "tf.keras")),
    "tf_keras": lambda label: label.startswith("tf_keras"),
    "Keras 3": lambda label: label.startswith("keras-3"),
}


def by_family(files: Mapping[str, File]) -> str:
    """Make the table of features and families of generations."""
    rows = []
    for feature, test in FEATURES.items():
        labels = [file.entry["label"] for file in files.values() if test(file)]
        numbers = [sum(map(belongs, labels)) for belongs in FAMILIES.values()]
        rows.append((feature, [*numbers, len(labels)]))
    return _rows(["feature", *FAMILIES, "all"], rows)


def make_tables(files: Mapping[str, File]) -> Mapping[str, Callable[[], str]]:
    """Return what makes each table of ``docs/compared.md``."""
    return {
        "kinds": lambda: by_kind(files),
        "features": lambda: by_family(files),
        "containers": by_container,
    }
