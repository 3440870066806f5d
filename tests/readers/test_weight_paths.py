"""Weights found by meaning: the three ways of numbering groups, shared layers, nested models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import FIXTURES, changed_config
from specs import ENTRIES, F, H, chain, dense, functional, layer, read_entry, rnn

from keras2torch_birnn.errors import WeightMismatchError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.hdf5.store import HDF5Store
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.weights.v3 import _number, number_groups, snake_case, v3_places
from keras2torch_birnn.spec import Call, Generation, LayerSpec, TensorRef

NUMBERED_OTHERWISE = "tf.keras-2.13.1/hard_sigmoid_stack.keras"
STACK = chain(
    rnn("LSTM", name="first"),
    layer("Dropout", "a", rate=0.5),
    dense(5, 5, seed=1),
    layer("Dropout", "b", rate=0.5),
    dense(7, 5, seed=2),
    dense(11, 7, seed=3),
)


@pytest.mark.parametrize(
    ("class_name", "group"),
    [
        ("LSTM", "lstm"),
        ("GRU", "gru"),
        ("SimpleRNN", "simple_rnn"),
        ("TimeDistributed", "time_distributed"),
        ("PReLU", "p_re_lu"),
        ("GlobalAveragePooling1D", "global_average_pooling1d"),
        ("CuDNNLSTM", "cu_dnnlstm"),
        ("InputLayer", "input_layer"),
    ],
)
def test_groups_are_named_after_classes(class_name: str, group: str) -> None:
    assert snake_case(class_name) == group


@pytest.mark.parametrize(
    ("skips", "groups"),
    [
        (False, "lstm dropout dense dropout_1 dense_1 dense_2"),
        (True, "lstm dropout dense dropout_1 dense_2 dense_4"),
    ],
    ids=["once", "twice with weights in Keras 2.12 and 2.13"],
)
def test_layers_of_a_class_are_counted(skips: bool, groups: str) -> None:
    assert list(number_groups(STACK, skips=skips).values()) == groups.split()


def test_layers_that_are_stored_elsewhere_can_be_left_out() -> None:
    names = number_groups(STACK, skips=False, without=frozenset({"dense_1"}))
    assert list(names.values()) == ["lstm", "dropout", "dropout_1", "dense", "dense_1"]


def doubled(inner: LayerSpec) -> LayerSpec:
    """A model that adds the output of a layer to itself, by an operation."""
    ends = TensorRef("x"), TensorRef(inner.name)
    calls = [Call(inner.name, 0, ends[:1]), Call("twice", 0, (ends[1], ends[1]))]
    layers = [layer("InputLayer", "x", shape=(None, F)), inner, layer("ops.Add", "twice")]
    return functional(layers, calls, ends[:1], (TensorRef("twice"),))


def test_operations_hide_no_layer_of_a_nested_model(tmp_path: Path) -> None:
    """tf.keras 2.15 names the group of every operation after another class (``tf_op_lambda``)."""
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        for group in ("layers", "layers/functional/layers"):
            for name in ("input_layer", "tf_op_lambda"):
                file.create_group(f"{group}/{name}/vars")
        file.create_group("layers/functional/layers/dense/vars")
    root = doubled(doubled(dense(H, F)))
    with path.open("rb") as opened, HDF5Store(Window(opened, 0, path.stat().st_size)) as store:
        places = v3_places(root, store, Generation("tf.keras", "2.15.0"), "layers")
        found = {layer.name: base for base, layer in places}
    assert found["dense_0"] == "/layers/functional/layers/dense"


TWICE = [file for file in ENTRIES if ENTRIES[file]["case"].startswith("twice_wrapped")]


@pytest.mark.parametrize("file", TWICE)
def test_a_layer_that_is_reached_twice_has_its_weights_twice(file: str) -> None:
    found = [layer for layer in read_entry(file).root.walk() if layer.class_name == "Dense"]
    shared = [layer for layer in found if layer.name == "shared_dense"]
    assert len(shared) == 2
    np.testing.assert_array_equal(shared[0].weights["kernel"], shared[1].weights["kernel"])
    assert len({layer.weights["kernel"].shape for layer in found}) == 3


def test_the_numbering_rules_were_met_in_real_files() -> None:
    labels = {ENTRIES[file]["label"] for file in TWICE if ENTRIES[file]["kind"] != "h5"}
    assert labels >= {"tf.keras-2.13.1", "tf.keras-2.15.0", "keras-3.15.1", "tf_keras-2.21.0"}


def offsets(group: h5py.Group) -> list[int]:
    """Return the offset of the bytes of every array below the group, by all paths."""
    found: list[int] = []
    for node in group.values():
        found += offsets(node) if isinstance(node, h5py.Group) else [node.id.get_offset()]
    return found


def test_keras_writes_no_array_twice() -> None:
    """Two paths to the same bytes are refused (hdf5.py): no real file has any."""
    for file in TWICE:
        if ENTRIES[file]["kind"] == "h5":
            with h5py.File(FIXTURES / file) as opened:
                places = offsets(opened)
            assert len(set(places)) == len(places) > 0


def test_names_in_several_attributes_are_joined() -> None:
    path = FIXTURES / "keras-3.15.1" / "chunked_names.h5"
    with h5py.File(path) as file:
        assert "layer_names" not in file["model_weights"].attrs
        assert "layer_names1" in file["model_weights"].attrs
    spec = read_model(path)
    assert sum(x.class_name == "Dense" for x in spec.root.walk()) == 211


@pytest.mark.parametrize("file", ["keras-3.15.1/bi_simplernn_ave_last.keras", NUMBERED_OTHERWISE])
def test_a_layer_with_more_numbered_weights_than_it_needs_is_refused(
    file: str, tmp_path: Path
) -> None:
    """Keras refuses it, too; here its bias would be left out without a word."""

    def without_bias(model: dict[str, Any]) -> None:
        text = json.dumps(model).replace('"use_bias": true', '"use_bias": false')
        model |= json.loads(text)

    path = changed_config(FIXTURES / file, tmp_path / "m.keras", without_bias)
    words = "/vars: [23] weights where the configuration implies [12]"
    with pytest.raises(WeightMismatchError, match=words):
        read_model(path)


@pytest.mark.parametrize("name", ["9" * 5000, "٣", "x"])
def test_numbers_of_weights_are_short_and_ascii(name: str) -> None:
    assert sorted(["10", name, "2"], key=_number) == ["2", "10", name]
