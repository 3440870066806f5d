"""The text of a spec in OUT: Keras' options and our semantics in one mapping, as ever."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from specs import FIXTURES, bi, rnn, with_options

from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.rnn.cell_kind import can_share_module
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.stored import layer_of_settings, model_from_json
from keras2torch_birnn.spec import Call, Constant, Graph, LayerSpec, ModelSpec, TensorRef

HALF = {
    "class_name": "SimpleRNN",
    "name": "rnn",
    "config": {
        "trainable": True,
        "units": 5,
        "activation": "tanh",
        "use_bias": True,
        "return_sequences": True,
        "return_state": False,
        "go_backwards": False,
        "stateful": False,
        "unroll": False,
        "time_major": False,
        "masked_output": "previous_state",
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "implementation": 2,
    },
    "place": "rnn",
    "input_shape": [None, 7, 3],
    "output_shape": [None, 7, 5],
    "weights": {"kernel": {"shape": [3, 5], "dtype": "float32"}},
}


def text_of(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return the spec, as ``json.loads`` gives it, of an OUT that was written before the split."""
    graph = {"layers": layers, "calls": [], "inputs": [], "outputs": []}
    root = {"class_name": "Sequential", "name": "m", "config": {"trainable": True}, "place": ""}
    return {
        "generation": {
            "name": "keras2",
            "version": "2.2.4",
        },
        "notes": [],
        "root": {**root, "input_shape": None, "output_shape": None, "graph": graph},
    }


def only(data: dict[str, Any]) -> LayerSpec:
    return model_from_json(data).graph.layers[0]


def test_an_older_text_is_split_by_the_schema() -> None:
    layer = only(text_of(HALF))
    assert layer.semantics == {"masked_output": "previous_state"}
    assert layer.config.keys() == SCHEMA["SimpleRNN"].options.keys() | {"trainable"}
    assert layer.config["units"] == 5


def test_the_text_that_is_written_now_has_the_older_form() -> None:
    again = json.loads(model_from_json(text_of(HALF)).to_json())
    assert again["root"]["graph"]["layers"] == [HALF]


@pytest.mark.parametrize(
    "argument",
    [
        {"tensor": TensorRef("x")},
        {"tensor": (TensorRef("x"), TensorRef("x", 0, 1, masked=False))},
        {"constant": TensorRef("x"), "shape": TensorRef("x"), "kind": TensorRef("x")},
        {"tensor": Constant((1, 2.5), (2,), "float")},
    ],
)
def test_tensors_by_names_that_the_text_uses_itself_come_back(argument: Any) -> None:
    spec = model_from_json(text_of(HALF))
    graph = replace(spec.graph, calls=(Call("rnn", 0, (argument,)),))
    text = replace(spec, root=replace(spec.root, graph=graph)).to_json()
    assert model_from_json(json.loads(text)).graph.calls == graph.calls


def test_options_of_a_plugins_class_keep_their_names() -> None:
    mine = {**HALF, "class_name": "Mine", "config": {"masking": "any", "states": 3}, "weights": {}}
    layer = only(text_of(mine))
    assert layer.config == {"masking": "any", "states": 3}
    assert layer.semantics == {}


def test_whether_a_lambda_makes_a_mask_is_of_the_reader() -> None:
    config = {"trainable": True, "arguments": {"makes_mask": 1}, "makes_mask": True}
    layer = only(text_of({**HALF, "class_name": "Lambda", "config": config, "weights": {}}))
    assert layer.semantics == {"makes_mask": True}
    assert layer.config["arguments"] == {"makes_mask": 1}


@pytest.mark.parametrize(
    "file",
    [
        "keras-2.2.4/mask_bi_lstm_seq.h5",
        "keras-3.15.1/heads_dropout.keras",
        "keras-3.15.1/merge_dot.keras",
        "tf.keras-2.15.0/ops_tf_masks.keras",
        "tf.keras-2.15.0/attention_masks.keras",
    ],
)
def test_a_spec_comes_back_from_its_text(file: str) -> None:
    spec = read_model(FIXTURES / file)
    back = model_from_json(json.loads(spec.to_json()))
    for one, other in zip(spec.root.walk(), back.root.walk(), strict=True):
        assert (one.name, one.config, one.semantics) == (other.name, other.config, other.semantics)
        if one.class_name in SCHEMA and one.graph is None:
            row = SCHEMA[one.class_name]
            assert one.config.keys() - {"trainable"} == row.options.keys()
            assert one.semantics.keys() == row.semantics.keys()


@pytest.mark.parametrize(
    ("class_name", "config", "key"),
    [
        ("ReLU", {"passes_mask": False}, "passes_mask=False"),
        ("SimpleRNN", {"units": 5, "masked_output": "fails"}, "masked_output='fails'"),
    ],
)
def test_a_file_cannot_set_semantics(class_name: str, config: dict[str, Any], key: str) -> None:
    first = {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": [None, 7, 3]}}
    own = {"class_name": class_name, "config": {"name": "own", **config}}
    parsing = Parsing(generation_of("2.15.0"))
    parse_architecture(
        {"class_name": "Sequential", "config": {"name": "m", "layers": [first, own]}}, parsing
    )
    (problem,) = parsing.problems
    assert f"{class_name} option {key} is unknown" in str(problem)


def test_no_setting_is_both_an_option_and_semantics() -> None:
    for name, row in SCHEMA.items():
        assert not row.options.keys() & row.semantics.keys(), name


def test_specs_that_differ_in_semantics_differ() -> None:
    first = layer_of_settings("ReLU", "r", {"max_value": None, "passes_mask": True})
    assert first.config == {"max_value": None}
    assert first != replace(first, semantics={"passes_mask": False})


def test_halves_share_a_module_whatever_their_masked_steps_give() -> None:
    pair = bi(rnn("GRU", seed=1), rnn("GRU", seed=2, masked_output="previous_output"))
    halves = tuple(pair.parts.values())
    assert {half.semantics["masked_output"] for half in halves} == {"zeros", "previous_output"}
    assert can_share_module(*halves)
    assert not can_share_module(halves[0], with_options(halves[1], use_bias=False))
    one, other = (replace(half, semantics={"rule": i}) for i, half in enumerate(halves))
    assert not can_share_module(one, other)


@pytest.mark.parametrize("version", ["1.2.2", "2.2.4", "2.15.0", "3.0.5", "3.6.0", "3.15.1"])
def test_the_rules_of_every_generation_go_through_the_text(version: str) -> None:
    root = LayerSpec("Sequential", "m", {"trainable": True}, graph=Graph((), (), (), ()))
    spec = ModelSpec(root, generation_of(version))
    assert model_from_json(json.loads(spec.to_json())).generation == spec.generation
