"""Graphs that no Keras writes are refused by name: found by changing good ones at random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import FIXTURES, changed_config, changed_layer, layer

from keras2torch_birnn import (
    InvalidModelFileError,
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    convert,
)
from keras2torch_birnn.errors import gather
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.reference import rounding
from keras2torch_birnn.schema import OPS, SCHEMA, ShapeError
from keras2torch_birnn.schema.options import REQUIRED

LIVE = FIXTURES / "keras-3.15.1"
MERGE = LIVE / "merge_concat_features.keras"
SIAMESE = FIXTURES / "keras-2.3.1" / "graph_siamese.h5"
HALVES = FIXTURES / "tf.keras-2.15.0" / "backward_class.h5"
PADDED = FIXTURES / "keras-2.2.4" / "around_margins1.h5"


def first_of(model: dict[str, Any], class_name: str) -> dict[str, Any]:
    """The first layer of a class."""
    return next(e for e in model["config"]["layers"] if e["class_name"] == class_name)


def without_first_input(model: dict[str, Any]) -> None:
    model["config"]["input_layers"] = model["config"]["input_layers"][1:]


def input_that_is_none(model: dict[str, Any]) -> None:
    model["config"]["input_layers"][0][0] = first_of(model, "LSTM")["config"]["name"]


def input_twice(model: dict[str, Any]) -> None:
    model["config"]["input_layers"] *= 2


def input_of_a_call_before_the_first(model: dict[str, Any]) -> None:
    model["config"]["input_layers"][0][1] = -1


def input_of_a_second_call(model: dict[str, Any]) -> None:
    model["config"]["input_layers"][0][1] = 1


def second_output_of_an_input(model: dict[str, Any]) -> None:
    model["config"]["input_layers"][0][2] = 1


def mask_from_nowhere(model: dict[str, Any]) -> None:
    node = first_of(model, "LSTM")["inbound_nodes"][0]
    tensor = json.loads(json.dumps(node["args"][0]))
    tensor["config"]["keras_history"][2] = 1
    node["kwargs"]["mask"] = tensor


def list_for_one(model: dict[str, Any]) -> None:
    node = first_of(model, "LSTM")["inbound_nodes"][0]
    node["args"][0] = {"a": node["args"][0]}


def number_for_a_tensor(model: dict[str, Any]) -> None:
    first_of(model, "LSTM")["inbound_nodes"][0]["args"][0] = 3


def number_in_a_list(model: dict[str, Any]) -> None:
    joined = [e for e in model["config"]["layers"] if e["class_name"] == "Concatenate"]
    own = next(e for e in joined if e["module"] == "keras.layers")  # not the operation
    own["inbound_nodes"][0]["args"][0][0] = 3


def no_tensor(model: dict[str, Any]) -> None:
    first_of(model, "LSTM")["inbound_nodes"][0]["args"] = []


def mask_of_numbers(model: dict[str, Any]) -> None:
    first_of(model, "LSTM")["inbound_nodes"][0]["kwargs"]["mask"] = [0, 1]


def first_call(model: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = first_of(model, "LSTM")["inbound_nodes"][0]
    return node


def as_activation(module: str, class_name: str) -> Callable[[dict[str, Any]], None]:
    """Put an activation, written as k2t writes operations, in the place of a layer."""

    def change(model: dict[str, Any]) -> None:
        entry = first_of(model, "LSTM")
        config = {"name": entry["config"]["name"], "function": "relu"}
        entry.update(module=module, class_name=class_name, config=config)

    return change


def activation_of_ours(model: dict[str, Any]) -> None:
    first_of(model, "LSTM")["config"]["activation"] = {"name": "relu", "max_value": 1.0}


def operation_in_a_wrapper(model: dict[str, Any]) -> None:
    entry = first_of(model, "LSTM")
    inner = {"module": "keras.src.ops.numpy", "class_name": "Absolute", "config": {"name": "abs"}}
    entry.update(class_name="TimeDistributed", config={"name": "td", "layer": inner})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_first_input, "is not one of input_layers"),
        (input_that_is_none, "which is no input but a"),
        (input_twice, "input_layers names .* twice"),
        (input_of_a_call_before_the_first, "input_layers names output 0 of call -1 of "),
        (input_of_a_second_call, "input_layers names output 0 of call 1 of "),
        (second_output_of_an_input, "input_layers names output 1 of call 0 of "),
        (mask_from_nowhere, "output 1 of layer .* is used but not there"),
        (list_for_one, "LSTM called with {'a'.* where a tensor is expected"),
        (number_for_a_tensor, "LSTM called with 3 where a tensor is expected"),
        (number_in_a_list, "Concatenate called with 3 where a tensor is expected"),
        (no_tensor, "LSTM called with 0 tensors"),
        (mask_of_numbers, "LSTM called with .* where a tensor is expected"),
    ],
)
def test_a_call_without_its_tensors_is_refused(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    source = next(
        path
        for path in sorted(LIVE.glob("merge_*.keras"))
        if all(name in path.read_bytes() for name in (b'"LSTM"', b'"Concatenate"'))
    )
    changed = changed_config(source, tmp_path / "m.keras", change)
    with pytest.raises(InvalidModelFileError, match=words):
        read_with_problems(changed)


STEPS = LIVE / "arch_ner_char_lstm.h5"  # TimeDistributed: "time_distributed" and "..._1" after it
TWICE = FIXTURES / "tf_keras-2.21.0" / "twice_wrapped_last.keras"
SIZES = FIXTURES / "tf.keras-2.15.0" / "ops_tf_choose.h5"
PLACES = FIXTURES / "tf.keras-2.4.0" / "ops_tf_shapes.h5"
MASKS = LIVE / "ops_masks.h5"


def one_in_a_list(model: dict[str, Any]) -> None:
    node = layer(model, "time_distributed")["inbound_nodes"][0]
    node["args"] = [node["args"]]


def one_by_name(model: dict[str, Any]) -> None:
    node = layer(model, "time_distributed_1")["inbound_nodes"][0]
    node["args"][0] = {"config": node["args"][0]}


def two_for_one(model: dict[str, Any]) -> None:
    """The layer is inside two TimeDistributed."""
    layer(model, "time_distributed")["inbound_nodes"][0] *= 2


def slice_of_nothing(model: dict[str, Any]) -> None:
    layer(model, "tf.__operators__.getitem")["inbound_nodes"] = [[]]


def list_of_nothing(model: dict[str, Any]) -> None:
    layer(model, "concatenate")["inbound_nodes"][0]["args"] = [[]]


def output_below_none(model: dict[str, Any]) -> None:
    layer(model, "tf.concat_2")["inbound_nodes"][0][2][2] = -2


def model_output_below_none(model: dict[str, Any]) -> None:
    model["config"]["output_layers"][2] = -1


@pytest.mark.parametrize(
    ("source", "change", "words"),
    [
        (STEPS, one_in_a_list, r"time_distributed: TimeDistributed called with \(.* a tensor is"),
        (STEPS, one_by_name, r"time_distributed_1: TimeDistributed called with \{'config'"),
        (TWICE, two_for_one, r"time_distributed: TimeDistributed called with \(.* a tensor is"),
        (SIZES, slice_of_nothing, r"getitem: ops\.GetItem called with 0 tensors"),
        (MASKS, list_of_nothing, r"concatenate: ops\.Concatenate called with 0 tensors"),
        (PLACES, output_below_none, r"output -2 of layer tf\.split_3 is used but not there"),
        (STEPS, model_output_below_none, r"output -1 of layer .* is used but not there"),
    ],
)
def test_a_call_of_another_form_is_refused(
    source: Path, change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    """Each ended in a TypeError, an IndexError or a RecursionError."""
    changed = changed_config(source, tmp_path / f"m{source.suffix}", change)
    with pytest.raises(InvalidModelFileError, match=words):
        read_with_problems(changed)


def test_a_wrapper_that_is_refused_is_told(tmp_path: Path) -> None:
    """The search for its inner layer once ended in a KeyError."""

    def of_nowhere(model: dict[str, Any]) -> None:
        layer(model, "time_distributed")["module"] = float("inf")

    _, problems = read_with_problems(changed_config(TWICE, tmp_path / "m.keras", of_nowhere))
    with pytest.raises(UnsupportedLayerError, match="layer class TimeDistributed is not supported"):
        raise gather(problems)


def test_a_model_at_every_step_takes_its_tensors_by_name(tmp_path: Path) -> None:
    """Names of tensors were taken for shapes, letter by letter without end."""

    def by_name(model: dict[str, Any]) -> None:
        entry = layer(model, "time_distributed_3")
        entry["inbound_nodes"] = [{"words": entry["inbound_nodes"][0][0]}]

    source = FIXTURES / "keras-2.0.8" / "arch_hierarchy_attention.h5"
    shapes = []
    for path in (source, changed_config(source, tmp_path / "m.h5", by_name)):
        spec, problems = read_with_problems(path)
        assert not problems
        assert spec.root.graph is not None
        shapes.append(spec.root.graph.layer("time_distributed_3").output_shape)
    assert shapes[0] == shapes[1] == (None, 7, 14)


def test_a_shared_layer_needs_the_same_weights_for_every_input(tmp_path: Path) -> None:
    """Only its last call was looked at, and its weights fitted that one."""

    def after_itself(model: dict[str, Any]) -> None:
        """The second call of the Dense reads what its first one gives."""
        shared, joined = layer(model, "dense_1"), ["concatenate_1", 0, 0, {}]
        shared["inbound_nodes"] = [[joined], [["dense_1", 0, 0, {}]]]

    changed = changed_config(SIAMESE, tmp_path / "m.h5", after_itself)
    with pytest.raises(K2TError, match="which need different weights"):
        convert(changed)


def test_a_bidirectional_over_a_refused_half_says_so(tmp_path: Path) -> None:
    def unknown(model: dict[str, Any]) -> None:
        first_of(model, "Bidirectional")["config"]["backward_layer"]["config"]["new_option"] = 1

    changed = changed_config(HALVES, tmp_path / "m.h5", unknown)
    with pytest.raises(UnsupportedOptionError, match="new_option"):
        convert(changed)


def test_sizes_that_no_weight_backs_up_are_refused(tmp_path: Path) -> None:
    padding = [2**30, 2]
    changed = changed_layer(PADDED, tmp_path / "m.h5", "zero_padding1d_2", padding=padding)
    with pytest.raises(InvalidModelFileError, match="numbers, more than"):
        read_with_problems(changed)


def test_a_model_that_cannot_be_computed_is_an_error_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compute(*_: Any, **__: Any) -> None:
        raise ValueError("operands could not be\nbroadcast together")

    monkeypatch.setattr(rounding, "compute", compute)
    with pytest.raises(InvalidModelFileError, match="ValueError: operands could not be broadcast"):
        convert(PADDED)


def test_every_default_has_the_form_of_a_parsed_value() -> None:
    for name in SCHEMA.keys() - OPS.keys():
        row = SCHEMA[name]
        for key, option in {**row.options, **row.semantics, **row.call_options}.items():
            if option.default is not REQUIRED and option.default is not None:
                assert option.parse(option.default) == option.default, (name, key)


def test_calls_outside_of_a_model_of_keras_30_are_refused(tmp_path: Path) -> None:
    """It counts them between layers, and does not list them."""

    def change(model: dict[str, Any]) -> None:
        shared = next(e for e in model["config"]["layers"] if len(e["inbound_nodes"]) == 2)
        name = shared["config"]["name"]
        text = json.dumps(model["config"]["layers"])
        for call in (1, 0):  # as if it had been called once before
            text = text.replace(f'["{name}", {call}, 0]', f'["{name}", {call + 1}, 0]')
        model["config"]["layers"] = json.loads(text)

    source = FIXTURES / "keras-3.0.5" / "graph_siamese.keras"
    changed = changed_config(source, tmp_path / "m.keras", change)
    with pytest.raises(UnsupportedOptionError, match="was also called outside of this model, and"):
        read_with_problems(changed)


def test_nothing_is_merged_with_a_model_without_outputs() -> None:
    """Such a model has the shape (), which has no batch."""
    with pytest.raises(ShapeError, match="an input without a batch cannot be merged"):
        SCHEMA["Add"].output({}, ((None, 3), ()))


def test_a_refused_half_may_have_any_config(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        for entry in model["config"]["layers"]:
            if entry["class_name"] == "Bidirectional":
                entry["config"]["layer"].update(module="elsewhere", config=[])

    file = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"
    with pytest.raises(UnsupportedLayerError, match=r"layer class (LSTM|GRU) is not supported"):
        convert(changed_config(file, tmp_path / "m.h5", change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda model: first_call(model)["kwargs"].update(ignore_mask=True),
            "LSTM called with ignore_mask=True: a word of k2t's own; call it without",
        ),
        (
            lambda model: first_call(model)["kwargs"].update(keep_mask=True),
            "LSTM called with keep_mask=True: a word of k2t's own",
        ),
        (
            lambda model: first_call(model)["kwargs"].update({"class": True}),
            "LSTM called with class=True: unknown",
        ),
        (
            lambda model: first_call(model)["kwargs"].update(mask={"tensor": ["x", 0, 0]}),
            "LSTM called with mask='x' where a tensor is expected",
        ),
        (as_activation("keras.layers", "ops.Activation"), "layer class ops.Activation is not sup"),
        (as_activation("k2t operation", "Activation"), "the module 'k2t operation', which no Kera"),
        (activation_of_ours, "option activation=.* a name, ReLU, LeakyReLU, ELU or Sof"),
        (operation_in_a_wrapper, "an operation in a wrapper"),
    ],
)
def test_words_that_only_k2t_writes_are_refused(
    change: Callable[[dict[str, Any]], None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(K2TError, match=words):
        convert(changed_config(MERGE, tmp_path / "hostile.keras", change))


def test_a_slice_with_a_place_that_only_k2t_writes_is_refused(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        _, key = first_of(model, "GetItem")["inbound_nodes"][0]["args"]
        key[0]["config"]["start"] = "@"

    file = changed_config(LIVE / "ops_shapes.keras", tmp_path / "hostile.keras", change)
    with pytest.raises(InvalidModelFileError, match="GetItem: 2 arguments are expected, found 1"):
        convert(file)


def test_a_users_class_called_input_layer_is_refused_inside_a_sequential(tmp_path: Path) -> None:
    """Its shape would be that of the whole model's input."""

    def put_into_a_sequential(model: dict[str, Any]) -> None:
        inner = json.loads(json.dumps(model))
        first = first_of(inner, "InputLayer")
        first |= {"module": "mine", "registered_name": "mine>InputLayer"}
        config = {"name": "outer", "trainable": True, "layers": [inner]}
        model |= {"class_name": "Sequential", "config": config}

    path = changed_config(
        LIVE / "graph_residual.keras", tmp_path / "m.keras", put_into_a_sequential
    )
    with pytest.raises(UnsupportedLayerError, match=r"layer class InputLayer .* the module mine"):
        convert(path)
