"""``k2t.weights``: the arrays of any container by name, without an architecture."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import STACK_KERAS, WEIGHTS
from hdf5_files import datasets
from specs import FIXTURES
from tensorflow_files import (
    Node,
    bundle_files,
    model_tree,
    variables_of,
    write_checkpoint,
    write_files,
    write_saved_model,
    write_tfjs,
)
from tensorflow_fixtures import ENTRIES, TENSORFLOW, names_of_arrays, unpack

import keras2torch_birnn as k2t
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError

STACK = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"


def test_every_container_gives_the_same_names_and_numbers(tmp_path: Path) -> None:
    root, _ = model_tree(STACK)
    wanted = {node.full_name: node.value for node in variables_of(root)}
    sources = [
        write_saved_model(tmp_path / "saved", root, shards=2),
        write_checkpoint(tmp_path / "run" / "ckpt", root),
        tmp_path / "run",
        write_tfjs(tmp_path / "web", STACK),
    ]
    for source in sources:
        found = k2t.weights(source)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)


def test_a_legacy_file_has_the_names_of_keras() -> None:
    found = k2t.weights(STACK)
    assert "bidirectional/forward_lstm/lstm_cell/kernel" in found
    with h5py.File(STACK) as file:
        assert len(found) == len(datasets(file["model_weights"]))
    assert k2t.weights(WEIGHTS).keys() == {
        "embedding_1/embeddings",
        *(
            f"bidirectional_1/{half}_lstm_1/{weight}"
            for half in ("forward", "backward")
            for weight in ("kernel", "recurrent_kernel", "bias")
        ),
        "dense_1/kernel",
        "dense_1/bias",
    }


def test_a_v3_store_has_its_paths() -> None:
    found = k2t.weights(STACK_KERAS)
    with zipfile.ZipFile(STACK_KERAS) as archive, archive.open("model.weights.h5") as member:
        with h5py.File(member) as file:
            for name, value in found.items():
                np.testing.assert_array_equal(value, file[name][()])
    assert any(name.endswith("forward_layer/cell/vars/0") for name in found)
    assert not any(name.startswith("optimizer") for name in found)


def test_names_that_repeat_become_paths(tmp_path: Path) -> None:
    """TensorFlow 2.1 gives both cells of a stack one name."""
    cells = {n: Node(value=np.full(3, float(n), "f4"), full_name="rnn/kernel") for n in "01"}
    single = Node(value=np.ones(2, "f4"), full_name="dense/kernel")
    rate = Node(value=np.ones((), "f4"), full_name="learning_rate")
    root = Node(
        children={
            "cells": Node(children=dict(cells)),
            "dense": Node(children={"kernel": single}),
            "opt": Node(children={"learning_rate": rate}),
            "save_counter": Node(value=np.array(1), full_name="save_counter"),
        }
    )
    found = k2t.weights(write_checkpoint(tmp_path / "ckpt", root))
    assert found.keys() == {"cells/0", "cells/1", "dense/kernel"}
    assert found["cells/1"].tolist() == [1.0, 1.0, 1.0]


def test_names_that_repeat_in_an_h5_have_the_layers_name(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["a", "b"]
        for layer in "ab":
            group = file.create_group(layer)
            group.attrs["weight_names"] = ["kernel:0"]
            group["kernel:0"] = np.full(2, ord(layer), "f4")
    found = k2t.weights(path)
    assert {name: value[0] for name, value in found.items()} == {"a/kernel": 97, "b/kernel": 98}


def test_a_checkpoint_of_tensorflow_1_has_its_own_names(tmp_path: Path) -> None:
    tensors = {"lstm/kernel": np.ones((2, 3), "f4"), "step": np.array(7, "i8"), "text": b"x"}
    found = k2t.weights(write_files(tmp_path / "model.ckpt-7", bundle_files(tensors)))
    assert found.keys() == {"lstm/kernel", "step"}


@pytest.mark.parametrize(
    "file",
    [
        "tf.keras-2.15.0/subclassed.weights.tar",
        "tf.keras-2.15.0/subclassed.checkpoint.tar",
        "tf.keras-2.15.0/subclassed.savedmodel.tar",
        "tf-2.1.4/subclassed.weights.tar",
    ],
)
def test_a_subclassed_model_of_real_tensorflow_is_read(file: str, tmp_path: Path) -> None:
    found = k2t.weights(unpack(file, tmp_path).model)
    kernels = [name for name in found if name.endswith("/kernel")]
    assert len(kernels) >= 4
    assert "tagger/embedding/embeddings" in found
    assert not {"save_counter", "iteration", "learning_rate"} & found.keys()
    assert all(np.isfinite(value).all() for value in found.values())


# Whose variables are recorded, by name. Not readable: those of TensorFlow 2.1 without pickle, of
# graphs at all, and what Keras 3 exports by name (it keeps no names).
OTHERS = ("tf-2.1.4/", "tf_keras-2.21.0/export_keras3.", "tensorflowjs-4.22.0/graph_model.")
VARIABLES = [
    file
    for file, entry in ENTRIES.items()
    if entry.get("variables") and entry["kind"] != "tflite" and not file.startswith(OTHERS)
    if "w0" in names_of_arrays(file)
]


@pytest.mark.every(3)
@pytest.mark.parametrize("file", VARIABLES)
def test_names_and_numbers_are_those_of_real_keras(file: str, tmp_path: Path) -> None:
    entry = ENTRIES[file]
    found = k2t.weights(unpack(file, tmp_path).model)
    with np.load(TENSORFLOW / entry["npz"]) as archive:
        for number, name in enumerate(entry["variables"]):
            np.testing.assert_array_equal(found[name.removesuffix(":0")], archive[f"w{number}"])


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group("x")
    with pytest.raises(InvalidModelFileError, match="holds no weights; give a file with weights"):
        k2t.weights(tmp_path / "m.h5")
    (tmp_path / "arch.json").write_text(json.dumps(model_tree(STACK)[1]), encoding="utf-8")
    with pytest.raises(InvalidModelFileError, match="JSON text without weights"):
        k2t.weights(tmp_path / "arch.json")


def test_groups_have_a_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group("a/b/c/d")
    monkeypatch.setattr("keras2torch_birnn.readers.weights.paths.MAX_GROUP_DEPTH", 2)
    with pytest.raises(InvalidModelFileError, match="groups nested too deep"):
        k2t.weights(tmp_path / "m.h5")
    assert limits.MAX_GROUP_DEPTH == 64
