"""The spec of an OUT is parsed as strictly as a Keras file: what k2t does not write is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import FIXTURES, MASKED
from plugin_files import USERS, forgetting_plugins

import keras2torch_birnn as birnn
from keras2torch_birnn import InvalidModelFileError
from keras2torch_birnn.golden import origin
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.schema import SCHEMA, BadOptionError
from keras2torch_birnn.schema.penalties import CONSTRAINTS, REGULARIZERS
from keras2torch_birnn.schema.stored import SpecTextError, model_from_json

LIVE = FIXTURES / "keras-3.15.1"
OPERATIONS = FIXTURES / "tf.keras-2.15.0" / "ops_tf_masks.keras"
ATTENTION = LIVE / "heads_scores.keras"
STATES = LIVE / "graph_seq2seq_bi.keras"
NESTED = LIVE / "graph_nested_sequential.keras"
CELLS = LIVE / "cells_states.h5"
CENTER = FIXTURES / "plugins" / "tf.keras-2.15.0" / "center.h5"

Change = Callable[[Any], object]
Contents = Callable[[Path], dict[str, Any]]
NUMBERS = {"constant": [1, 2], "shape": [2], "kind": "int32"}
CODE = "__import__('pathlib').Path('canary').touch() or x"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """The plain dict of the OUT of a model, made once."""
    folder, made = tmp_path_factory.mktemp("outs"), dict[Path, dict[str, Any]]()

    def content(model: Path) -> dict[str, Any]:
        if model not in made:
            birnn.save(birnn.convert(model), folder / "out.pt")
            made[model] = torch.load(folder / "out.pt", weights_only=True)
        return dict(made[model])

    return content


def with_spec(content: dict[str, Any], change: Change) -> dict[str, Any]:
    spec = json.loads(content["spec"])
    change(spec)
    return {**content, "spec": json.dumps(spec)}


def saved(content: dict[str, Any], folder: Path) -> Path:
    torch.save(content, folder / "hostile.pt")
    return folder / "hostile.pt"


def layers(spec: Any, class_name: str) -> Any:
    """The first layer of a class, also inside others."""
    todo = [spec["root"]]
    while todo:
        one = todo.pop(0)
        if one["class_name"] == class_name:
            return one
        todo += [*one.get("parts", {}).values(), *one.get("graph", {}).get("layers", ())]
    raise AssertionError(class_name)


def call_of(spec: Any, class_name: str) -> Any:
    names = [e["name"] for e in spec["root"]["graph"]["layers"] if e["class_name"] == class_name]
    return next(c for c in spec["root"]["graph"]["calls"] if c["layer"] in names)


def call_ref(spec: Any, class_name: str) -> Any:
    return ref(call_of(spec, class_name)["layer"], 0, 0)


def args(class_name: str, *values: Any) -> Change:
    return lambda spec: call_of(spec, class_name).update(args=list(values))


def more(class_name: str, value: Any) -> Change:
    return lambda spec: call_of(spec, class_name)["args"].append(value)


def keyword(class_name: str, key: str, value: Any) -> Change:
    return lambda spec: call_of(spec, class_name)["kwargs"].update({key: value})


def option(class_name: str, key: str, value: Any) -> Change:
    return lambda spec: layers(spec, class_name)["config"].update({key: value})


def field(class_name: str, key: str, value: Any) -> Change:
    return lambda spec: layers(spec, class_name).update({key: value})


def generation(key: str, value: Any) -> Change:
    return lambda spec: spec["generation"].update({key: value})


def input_shape(value: Any) -> Change:
    return option("InputLayer", "shape", value)


def weight(key: str, value: Any) -> Change:
    return lambda spec: layers(spec, "Dense")["weights"]["kernel"].update({key: value})


def ref(*parts: Any) -> dict[str, Any]:
    return {"tensor": list(parts)}


# Of MASKED.
REFUSED: dict[str, tuple[Change, str]] = {
    "code in the place of a tensor": (args("Dense", CODE), 'Dense called with "__import__'),
    "code beside a tensor": (more("Dense", CODE), "Dense called with 2 tensors"),
    "a number beside a tensor": (more("Dense", 3), "Dense called with 2 tensors"),
    "a dict in the place of a tensor": (
        args("Dense", {"x": 1}),
        "Dense called with {'x': 1} where a tensor",
    ),
    "no argument": (args("Dense"), "Dense called with 0 tensors"),
    "training": (keyword("Dense", "training", True), "Dense called with training=True"),
    "a keyword of nobody": (keyword("Dense", "x", None), "Dense called with x=None"),
    "a keyword of Python": (keyword("Dense", "class", None), "a call with class="),
    "the module itself": (keyword("Dense", "self", None), "a call with self="),
    "a constant of Python": (keyword("Dense", "None", 1), "a call with None="),
    "a name of Python's own": (keyword("Dense", "__debug__", 1), "a call with __debug__="),
    "a text as a mask": (keyword("Dense", "mask", CODE), 'mask="__import__'),
    "a number for keep_mask": (keyword("Dense", "keep_mask", 1), "called with keep_mask=1"),
    "ignore_mask without states": (
        keyword("Dense", "ignore_mask", True),
        "Dense called with ignore_mask=True",
    ),
    "an input that is called": (args("InputLayer", 1), "InputLayer called with 1"),
    "masks by name": (keyword("Dense", "mask", {}), "mask={} where a list of tensors"),
    "an option that is nothing": (option("Dense", "units", None), "option units=None"),
    "an output of nothing": (
        lambda spec: spec["root"]["graph"].update(outputs=[call_ref(spec, "Dense"), []]),
        "output_layers has an empty list",
    ),
    "an output that is not there": (
        lambda spec: call_of(spec, "Dense")["args"][0]["tensor"].__setitem__(2, 7),
        "output 7 of layer",
    ),
    "an output below 0": (
        lambda spec: call_of(spec, "Dense")["args"][0]["tensor"].__setitem__(2, -1),
        "a whole number from 0",
    ),
    "a call twice": (
        lambda spec: spec["root"]["graph"]["calls"].append(call_of(spec, "Dense")),
        "has two calls of one number",
    ),
    "a constant of another size": (
        args("Dense", {"constant": [1], "shape": [3, 5], "kind": None}),
        "1 numbers of shape (3, 5)",
    ),
    "a constant of text": (
        args("Dense", {"constant": [CODE], "shape": [1], "kind": None}),
        "a number is expected",
    ),
    "an activation that is a number": (option("Dense", "activation", 7), "activation=7"),
    "an activation of a list": (
        option("Dense", "activation", {"name": ["relu"]}),
        "option activation=",
    ),
    "an input shape that is a number": (input_shape(7), "option shape=7"),
    "an input shape of text": (input_shape([None, CODE]), "option shape="),
    "an input of another rank": (input_shape([None]), "expected, found"),
    "a weight of infinite size": (weight("shape", [float("inf"), 3]), "a whole number fr"),
    "a weight of another size": (weight("shape", [2, 3]), "its spec is damaged (weight ke"),
    "a weight of text": (weight("dtype", "U9"), "dtype: one of 'float64'"),
    "a weight of nobody": (
        lambda spec: layers(spec, "Dense")["weights"].update(x={"shape": [1], "dtype": "int8"}),
        "its spec is damaged (weight x)",
    ),
    "options of another type": (field("Dense", "config", [1]), "config: an object is ex"),
    "a name that is a number": (field("Dense", "name", 7), "name: a text is expected"),
    "a place that is a list": (field("Dense", "place", []), "place: a text is expected"),
    "a shape that is a text": (field("Dense", "output_shape", "x"), "a shape is expected"),
    "a shape of a negative size": (field("Dense", "input_shape", [-1]), "a whole number"),
    "an unknown field": (field("Dense", "x", 1), "'x' is unknown"),
    "parts of a layer that has none": (
        lambda spec: field("Dense", "parts", {"layer": layers(spec, "Embedding")})(spec),
        "a Dense of layer",
    ),
    "a graph in a layer": (
        lambda spec: field("Dense", "graph", json.loads(json.dumps(spec["root"]["graph"])))(spec),
        "with or without layers",
    ),
    "half of a Bidirectional": (
        lambda spec: layers(spec, "Bidirectional")["parts"].pop("backward_layer"),
        "a Bidirectional of forward_layer",
    ),
    "a half of another class": (
        lambda spec: layers(spec, "Bidirectional")["parts"].update(
            backward_layer=layers(spec, "Dense")
        ),
        "Dense in a Bidirectional",
    ),
    "halves in one direction": (
        lambda spec: layers(spec, "Bidirectional")["parts"]["backward_layer"]["config"].update(
            go_backwards=False
        ),
        "its halves do not fit",
    ),
    "trainable that is a text": (option("Dense", "trainable", CODE), "option trainable"),
    "a generation of numbers": (generation("softmax", 7), "softmax: one of 'ignore'"),
    "an endless version": (generation("version", "9" * 201), "at most 200 characters"),
    "a flag that is a text": (generation("reset_after", "x"), "one of False, True"),
    "a norm that is infinite": (
        generation("smallest_norm", float("inf")),
        "smallest_norm: a number",
    ),
    "notes that are a text": (lambda spec: spec.update(notes="x"), "notes: a list is ex"),
    "a cut of numbers": (lambda spec: spec.update(cut={"from": [1]}), "a text is expected"),
}
REFUSED_ELSEWHERE: dict[str, tuple[Path, Change, str]] = {
    "a text as states": (STATES, keyword("LSTM", "initial_state", CODE), 'initial_state="__imp'),
    "no states": (STATES, keyword("LSTM", "initial_state", []), "initial_state=() where a list"),
    "states by name": (STATES, keyword("LSTM", "initial_state", {}), "initial_state={} where a"),
    "a call option of text": (
        ATTENTION,
        keyword("MultiHeadAttention", "use_causal_mask", CODE),
        'use_causal_mask="__import__',
    ),
    "a call option that is not parsed": (
        ATTENTION,
        keyword("MultiHeadAttention", "use_causal_mask", 1),
        "called with use_causal_mask=1",
    ),
    "one mask for several tensors": (
        ATTENTION,
        lambda spec: keyword(
            "MultiHeadAttention", "mask", call_of(spec, "MultiHeadAttention")["args"][0]
        )(spec),
        "called with one mask for 2 tensors",
    ),
    "code as an operand": (OPERATIONS, args("ops.Multiply", CODE, CODE), "ops.Multiply called wi"),
    "a keyword of an operation": (
        OPERATIONS,
        keyword("ops.Multiply", "x", 1),
        "ops.Multiply called with 'x' where no keyword",
    ),
    "kinds that are a number": (OPERATIONS, option("ops.Multiply", "kinds", 7), "option kinds=7"),
    "kinds of numbers": (
        OPERATIONS,
        lambda spec: layers(spec, "ops.Multiply")["config"]["kinds"].update(has=[1, 2]),
        "option kinds=",
    ),
    "kinds of another operation": (
        OPERATIONS,
        lambda spec: layers(spec, "ops.Multiply")["config"]["kinds"].update(gives=["bool"]),
        "option kinds=",
    ),
    "too many tensors for a model": (
        NESTED,
        lambda spec: more("Sequential", call_of(spec, "Sequential")["args"][0])(spec),
        "a model of 1 inputs that is called with 2 tensors",
    ),
    "code for a model": (NESTED, args("Sequential", CODE), 'Sequential called with "__import__'),
    "an RNN over a layer": (
        CELLS,
        lambda spec: layers(spec, "RNN")["parts"].update(cell=layers(spec, "InputLayer")),
        "InputLayer in a RNN",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_ELSEWHERE])
def test_a_spec_that_no_model_has_is_refused(name: str, contents: Contents, tmp_path: Path) -> None:
    model, change, words = REFUSED_ELSEWHERE.get(name) or (MASKED, *REFUSED[name])
    out = saved(with_spec(contents(model), change), tmp_path)
    with pytest.raises(InvalidModelFileError, match=re.escape(words)) as caught:
        birnn.load(out)
    assert "its spec is damaged" in str(caught.value)
    assert "\n" not in str(caught.value)


def deep(spec: Any) -> None:
    inner = layers(spec, "Dense")
    for _ in range(51):
        inner = {**inner, "class_name": "TimeDistributed", "parts": {"layer": inner}}
    spec["root"]["graph"]["layers"][-1] = inner


def test_layers_inside_layers_are_counted(contents: Contents) -> None:
    text = with_spec(contents(MASKED), deep)["spec"]
    with pytest.raises(SpecTextError, match="layers nested deeper than 50"):
        model_from_json(json.loads(text))


OTHER_TYPES = "golden: not a file that k2t wrote"
GOLDEN: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "a text as the maker": (lambda golden: {"made_by": "x"}, OTHER_TYPES),
    "a truth as a rounding": (lambda golden: {"rounding": True}, OTHER_TYPES),
    "a list as a rounding": (lambda golden: {"rounding": [1.0]}, OTHER_TYPES),
    "roundings of integers": (lambda golden: {"roundings": [1]}, OTHER_TYPES),
    "a text as roundings": (lambda golden: {"roundings": "x"}, OTHER_TYPES),
    "inputs by name": (lambda golden: {"inputs": {}}, OTHER_TYPES),
    "a number as an output": (lambda golden: {"outputs": [7]}, OTHER_TYPES),
    "an unknown key": (lambda golden: {"x": 1}, OTHER_TYPES),
    "outputs that NumPy does not have": (
        lambda golden: {"outputs": [y.to(torch.bfloat16) for y in golden["outputs"]]},
        r"golden: .* is not a dense tensor",
    ),
    "inputs without a number": (
        lambda golden: {"inputs": [x[:, :0].clone() for x in golden["inputs"]]},
        r"golden: .*an input without a number",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_other_golden_vectors_are_refused(name: str, contents: Contents, tmp_path: Path) -> None:
    change, words = GOLDEN[name]
    content = contents(MASKED)
    content["golden"] = {**content["golden"], **change(content["golden"])}
    with pytest.raises(InvalidModelFileError, match=words):
        birnn.load(saved(content, tmp_path))


@pytest.mark.parametrize("value", [1, None, "x"])
def test_gradients_are_wanted_or_not(value: Any, contents: Contents, tmp_path: Path) -> None:
    content = contents(MASKED)
    name = next(name for name in content["state_dict"] if name.endswith("weight"))
    content["requires_grad"] = {name: value}
    with pytest.raises(InvalidModelFileError, match="requires_grad: not a file that k2t wrote"):
        birnn.load(saved(content, tmp_path))


def test_an_export_does_not_blame_itself_for_golden_vectors_that_are_wrong(
    contents: Contents, tmp_path: Path
) -> None:
    content = contents(MASKED)
    outputs = [y + 1 for y in content["golden"]["outputs"]]
    content["golden"] = {**content["golden"], "outputs": outputs}
    model = birnn.load(saved(content, tmp_path))
    text = "golden: the converted model does not compute its own golden vectors .*nothing was"
    with pytest.raises(InvalidModelFileError, match=text):
        birnn.export(model, tmp_path / "model.py")
    assert not (tmp_path / "model.py").exists()


# ---- a plugin's layer ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (more("CenterSteps", CODE), 'CenterSteps called with "__import__'),
        (args("CenterSteps", NUMBERS), "CenterSteps called with Constant"),
        (args("CenterSteps", {}), "CenterSteps called with no tensor"),
        (keyword("CenterSteps", "class", 1), "a call with class="),
        (keyword("CenterSteps", "ignore_mask", True), "CenterSteps called with ignore_mask=True"),
        (keyword("CenterSteps", "mask", "x"), "called with mask='x' where a tensor"),
        (field("CenterSteps", "parts", {}), ""),
    ],
)
def test_calls_of_plugins_layers_are_checked(
    change: Change, words: str, contents: Contents, tmp_path: Path
) -> None:
    with forgetting_plugins():
        load_plugins([USERS])
        out = saved(with_spec(contents(CENTER), change), tmp_path)
        if not words:
            assert birnn.load(out)
            return
        with pytest.raises(InvalidModelFileError, match=re.escape(words)):
            birnn.load(out)


def test_a_layer_that_fails_on_its_golden_inputs_is_not_exported(
    contents: Contents, tmp_path: Path
) -> None:
    def twice(spec: Any) -> None:
        call = call_of(spec, "CenterSteps")
        call["args"] *= 3

    with forgetting_plugins():
        load_plugins([USERS])
        model = birnn.load(saved(with_spec(contents(CENTER), twice), tmp_path))
        with pytest.raises(InvalidModelFileError, match=r"its own golden vectors \(TypeError"):
            birnn.export(model, tmp_path / "model.py")


# ---- what is allowed ----------------------------------------------------------------------------


def older(spec: Any) -> None:
    """The spec as an older k2t wrote it: fewer rules of the generation, another word of one."""
    for key in ("cells_give_states", "conv_lstm", "smallest_norm", "bilinear", "stack_states"):
        del spec["generation"][key]
    spec["generation"]["attention_rows"] = "uniform"


def test_the_spec_of_an_older_k2t_is_taken(contents: Contents, tmp_path: Path) -> None:
    model = birnn.load(saved(with_spec(contents(MASKED), older), tmp_path))
    assert birnn.verify(tmp_path / "hostile.pt").ok
    assert "uniform" in origin(model).spec_text


@pytest.mark.parametrize(
    "model", [OPERATIONS, ATTENTION, STATES, NESTED, CELLS], ids=lambda p: p.stem
)
def test_what_is_saved_is_the_text_that_was_loaded(
    model: Path, contents: Contents, tmp_path: Path
) -> None:
    content = contents(model)
    assert origin(birnn.load(saved(content, tmp_path))).spec_text == content["spec"]


# Values that a file may have in the place of an option.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**18),
    *(0.0, 0.5, -1.5, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "relu", "@", "...", "a" * 3000, "\x00", CODE),
    *([], {}, [None], [[]], [0, 0, 0], ["@"], ["...", "..."], [None, None, None]),
    *([[None, None, 0]], [["@", "@", "@"]], [1.5], [True], ["a"], [{}], {"a": {}}),
    *([[1, 2], [3]], [[1, 2], [3, "x"]]),
    *({"name": 7}, {"name": []}, {"name": "relu", "max_value": []}, {"name": "relu", "x": 1}),
    {"has": 1, "wants": 2, "gives": 3, "passes_mask": 1},
    {"has": [1], "wants": [[]], "gives": ["float"], "passes_mask": []},
)


def test_every_option_takes_or_refuses_every_value() -> None:
    tables = [
        (name, options)
        for name, row in SCHEMA.items()
        for options in (row.options, row.semantics, row.call_options)
    ] + [(name, row) for rows in (REGULARIZERS, CONSTRAINTS) for name, row in rows.items()]
    for name, options in tables:
        for key, one in options.items():
            for value in ODD:
                try:
                    parsed = one.parse(value)
                except BadOptionError:
                    continue
                assert one.parse(parsed) == parsed, (name, key, value)
