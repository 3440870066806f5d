"""Every generation and every kind of file: what the fixtures' outputs alone would not show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import FIXTURES, changed_config, changed_h5
from specs import read_entry

from keras2torch_birnn.errors import (
    UnsupportedLayerError,
    UnsupportedOptionError,
    WeightMismatchError,
)
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.readers.config.generations import cell_defaults, generation_of
from keras2torch_birnn.readers.config.parsing import read_policy
from keras2torch_birnn.spec import LayerSpec, ModelSpec

K1 = FIXTURES / "keras-1.2.2"


def halves(spec: ModelSpec) -> list[LayerSpec]:
    return [
        part
        for layer in spec.root.walk()
        if layer.class_name == "Bidirectional"
        for part in layer.parts.values()
    ]


# ---- the note -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "note"),
    [
        ("tf.keras-2.15.0/dense_only.h5", "tf.keras 2.15.0"),
        (
            "tf.keras-2.15.0/mask_stack_bi_dense.h5",
            "tf.keras 2.15.0: Bidirectional gives zeros at masked steps",
        ),
        (
            "keras-3.15.1/hard_sigmoid_bi_lstm.h5",
            "Keras 3.15.1: hard_sigmoid is clip(x/6 + 0.5, 0, 1)",
        ),
        (
            "keras-2.2.4/mask_plain_gru_last.h5",
            "Keras 2.2.4: hard_sigmoid is clip(0.2 x + 0.5, 0, 1); "
            "masked steps repeat the previous state",
        ),
    ],
)
def test_the_note_tells_the_rules_that_the_model_uses(file: str, note: str) -> None:
    assert read_entry(file).notes[0] == f"written by {note}"


# ---- Keras 1 ------------------------------------------------------------------------------------


def edited(name: str, target: Path, class_name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a Keras 1 file; ``change`` edits the first layer of a class."""

    def in_config(model: dict[str, Any]) -> None:
        change(next(e for e in model["config"] if e["class_name"] == class_name))

    return changed_config(K1 / name, target / "changed.h5", in_config)


def test_gates_of_keras_1_are_stored_in_another_order_than_they_are_used() -> None:
    path = K1 / "less_cpu_lstm.h5"
    spec = read_model(path)
    forward = halves(spec)[0].weights
    with h5py.File(path) as file:
        group = file["model_weights/bidirectional_1"]
        names = [n.decode() for n in group.attrs["weight_names"]][:12]
        arrays = {name.split("_W_")[-1][0]: group[name][()] for name in names if "_W_" in name}
    assert list(arrays) == ["i", "c", "f", "o"]
    wanted = np.concatenate([arrays[gate] for gate in "ifco"], axis=1)
    np.testing.assert_array_equal(forward["kernel"], wanted)


@pytest.mark.parametrize(
    ("version", "plain"), [("1.2.2", False), ("2.2.4", False), ("2.15.0", True), ("3.15.1", True)]
)
def test_a_gru_that_does_not_say_when_it_resets_does_as_its_generation(
    version: str, plain: bool
) -> None:
    """Without a bias, whose shape would tell."""
    generation = generation_of(version)
    for kind, wanted in (("GRU", plain), ("GRUCell", plain), ("CuDNNGRU", True)):
        assert cell_defaults(kind, {"use_bias": False}, generation)["reset_after"] is wanted
        for said in (False, True):
            given = cell_defaults(kind, {"reset_after": said}, generation)
            assert given["reset_after"] is said


def test_a_keras_1_layer_becomes_one_of_keras_2() -> None:
    entry = {
        "class_name": "AtrousConvolution1D",
        "config": {
            "nb_filter": 5,
            "filter_length": 3,
            "atrous_rate": 2,
            "subsample_length": 1,
            "border_mode": "valid",
            "bias": False,
            "init": "uniform",
            "input_dim": 7,
            "name": "c",
        },
    }
    assert keras1.modernize(entry) == {
        "class_name": "Conv1D",
        "config": {
            "filters": 5,
            "kernel_size": 3,
            "dilation_rate": 2,
            "strides": 1,
            "padding": "valid",
            "use_bias": False,
            "name": "c",
        },
    }


def test_values_that_are_none_stay() -> None:
    entry = {"class_name": "Bidirectional", "config": {"merge_mode": None}}
    assert keras1.modernize(entry) == entry


def test_shared_axes_that_keras_1_does_not_write_come_from_the_weights() -> None:
    prelu = [
        layer
        for layer in read_entry("keras-1.2.2/activation_layers.h5").root.walk()
        if layer.class_name == "PReLU"
    ]
    assert [layer.config["shared_axes"] for layer in prelu] == [None, (1,)]


def test_a_layer_that_no_keras_has_is_refused_by_name(tmp_path: Path) -> None:
    path = edited(
        "less_cpu_lstm.h5", tmp_path, "LSTM", lambda e: e.update(class_name="CosineDense")
    )
    with pytest.raises(UnsupportedLayerError, match="CosineDense is not supp"):
        read_model(path)


def test_a_batch_normalization_by_the_batch_is_refused(tmp_path: Path) -> None:
    path = edited("norm.h5", tmp_path, "BatchNormalization", lambda e: e["config"].update(mode=2))
    with pytest.raises(
        UnsupportedOptionError, match="mode=2 is not supported: it normalizes without"
    ):
        read_model(path)


def test_a_full_border_is_refused(tmp_path: Path) -> None:
    change = {"border_mode": "full"}
    path = edited(
        "atrous.h5", tmp_path, "AtrousConvolution1D", lambda e: e["config"].update(change)
    )
    with pytest.raises(UnsupportedOptionError, match="padding='full' is not supported"):
        read_model(path)


def test_a_gate_too_few_is_a_mismatch(tmp_path: Path) -> None:
    change = {"consume_less": "gpu"}
    path = edited("less_cpu_lstm.h5", tmp_path, "LSTM", lambda e: e["config"].update(change))
    with pytest.raises(WeightMismatchError, match="12 weights where the configuration implies 3"):
        read_model(path)


# ---- Theano -------------------------------------------------------------------------------------


def test_convolutions_of_theano_are_refused(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["backend"] = "theano"

    path = changed_h5(FIXTURES / "keras-2.2.4" / "conv.h5", tmp_path / "theano.h5", change)
    with pytest.raises(UnsupportedOptionError, match="written on Theano is mirrored"):
        read_model(path)
    other = changed_h5(FIXTURES / "keras-2.2.4" / "batchnorm.h5", tmp_path / "no.h5", change)
    assert read_model(other).root.graph is not None


def test_keras_1_does_not_say_on_what_it_ran() -> None:
    notes = read_entry("keras-1.2.2/atrous.h5").notes
    assert any("do not name their backend" in note for note in notes)
    notes = read_entry("keras-1.2.2/less_cpu_lstm.h5").notes
    assert not any("do not name their backend" in note for note in notes)


# ---- TensorFlow 2.0 to 2.2: masked steps --------------------------------------------------------

FAST = "fast_lstm.h5"


@pytest.mark.parametrize(
    ("label", "rule", "writers"),
    [
        ("tf-2.0.4", "previous_output", "2.0 and 2.1"),
        ("tf-2.1.4", "previous_output", "2.0 and 2.1"),
        ("tf-2.2.3", "zeros", "2.2"),
    ],
)
def test_the_names_of_weights_tell_what_the_version_does_not(
    label: str, rule: str, writers: str
) -> None:
    spec = read_entry(f"{label}/{FAST}")
    assert {half.semantics["masked_output"] for half in halves(spec)} == {rule}
    (note,) = [note for note in spec.notes if "belongs to several TensorFlows" in note]
    assert f"as TensorFlow {writers} does on a CPU" in note


@pytest.mark.parametrize("file", ["fast_not.h5", "fast_unroll.h5", "fast_simplernn.h5"])
def test_layers_off_the_fast_path_give_zeros(file: str) -> None:
    spec = read_entry(f"tf-2.1.4/{file}")
    rules = {half.semantics["masked_output"] for half in halves(spec)}
    assert rules <= {"zeros", "zeros_unreversed"}
    assert not any("belongs to several TensorFlows" in note for note in spec.notes)


def test_without_a_mask_there_is_nothing_to_choose() -> None:
    spec = read_entry("tf-2.1.4/stack_same_class.h5")
    assert not any("belongs to several TensorFlows" in note for note in spec.notes)


@pytest.mark.parametrize("key", ["lstm", "gru_after"])
@pytest.mark.parametrize(
    ("label", "rule", "noted"), [("tf-1.14.0", "zeros", 0), ("tf-2.0.4", "previous_output", 1)]
)
def test_tensorflow_1_is_known_by_what_it_leaves_open(
    key: str, label: str, rule: str, noted: int
) -> None:
    spec = read_entry(f"{label}/first_implementation_{key}.h5")
    assert {half.semantics["masked_output"] for half in halves(spec)} == {rule}
    assert sum("belongs to several TensorFlows" in note for note in spec.notes) == noted


@pytest.mark.parametrize(("label", "carries"), [("tf-1.14.0", False), ("tf-2.0.4", True)])
def test_a_stateful_bidirectional_of_tensorflow_1_starts_anew(label: str, carries: bool) -> None:
    spec = read_entry(f"{label}/first_stateful.h5")
    assert {half.config["stateful"] for half in halves(spec)} == {carries}
    restarts = [note for note in spec.notes if "every batch starts from zero states" in note]
    assert len(restarts) == (0 if carries else 2)


def test_attention_of_tensorflow_114_does_not_say_whether_it_is_causal() -> None:
    spec = read_entry("tf-1.14.0/first_attention.h5")
    (note,) = [note for note in spec.notes if "taken as causal=False" in note]
    assert note.startswith("attention: TensorFlow 1.14 does not write the options of Attention")
    spec = read_entry("tf.keras-2.15.0/arch_reader.h5")
    assert not any("causal" in note for note in spec.notes)


# ---- dtype policies -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
@pytest.mark.parametrize("label", ["tf.keras-2.15.0", "keras-3.15.1"])
def test_half_precision_is_computed_in_float32_with_one_note(policy: str, label: str) -> None:
    spec = read_entry(f"{label}/policy_{policy}.h5")
    assert (
        spec.notes.count(f"the file asks for {policy}: computed in float32, which is more exact")
        == 1
    )
    assert {w.dtype for x in spec.root.walk() for w in x.weights.values()} == {np.dtype("float32")}


def test_float64_stays() -> None:
    spec = read_entry("keras-3.15.1/policy_float64.keras")
    assert {w.dtype for x in spec.root.walk() for w in x.weights.values()} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("float8", "dtype float8 is not supported"),
        ({"class_name": "DTypePolicy", "config": {"name": "int8"}}, "dtype int8 is not"),
        ({"class_name": "DTypePolicy", "config": 5}, "is not supported"),
        (
            {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int4"}},
            r"quantized weights \(int4\) of Dense",
        ),
        (
            {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}},
            r"quantized weights \(int8\) of Dense are not supported",
        ),
        ({"class_name": "DTypePolicyMap", "config": {}}, "is not supported"),
        ([], "dtype .. is not supported"),
    ],
)
def test_other_policies_are_refused(policy: object, words: str, tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["config"]["layers"][-1]["config"]["dtype"] = policy

    source = FIXTURES / "keras-3.15.1" / "policy_float64.h5"
    with pytest.raises(UnsupportedOptionError, match=words):
        read_model(changed_config(source, tmp_path / "changed.h5", change))


@pytest.mark.parametrize("policy", [None, "float32", "int32", {"config": {"name": "float64"}}])
def test_plain_policies_need_no_words(policy: object) -> None:
    assert read_policy(policy).note == read_policy(policy).refusal == ""
