"""Operations beside layers: tables that real Keras filled, refusals, code that reads well."""

from __future__ import annotations

import copy
import functools
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import k2t
from model_configs import entry, functional_config, listed, parse_config, source
from spec_parity import assert_gives
from specs import ENTRIES, FIXTURES, fixture, read_entry
from torch import Tensor

from keras2torch_birnn import K2TError
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.layers import functional
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers.operations import operation_names, translation
from keras2torch_birnn.saving.checkpoint import load, save
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.operations.dtypes import DtypeError, Dtypes, Promotion
from keras2torch_birnn.spec import (
    Constant,
    ModelSpec,
    TensorRef,
    leaves,
)
from keras2torch_birnn.verification import verify

OPERATIONS = [file for file in ENTRIES if "operations" in ENTRIES[file]["tags"]]
TF, K3 = "2.15.0", "3.15.1"


# ---- what was compared -------------------------------------------------------------------------


def config_of(file: str) -> Mapping[str, Any]:
    path = FIXTURES / file
    if path.suffix == ".keras":
        text = zipfile.ZipFile(path).read("config.json")
    else:
        with h5py.File(path) as stored:
            text = stored.attrs["model_config"]
    found: Mapping[str, Any] = json.loads(text)
    return found


@functools.cache
def names_in_files() -> Mapping[str, frozenset[str]]:
    """Collect the functions, graph nodes and classes of operations that real Keras wrote."""
    found: dict[str, set[str]] = {"lambdas": set(), "nodes": set(), "keras3": set()}
    for file in OPERATIONS:
        for layer in config_of(file)["config"]["layers"]:
            config = layer["config"]
            if layer["class_name"] in ("TFOpLambda", "SlicingOpLambda"):
                found["lambdas"].add(config["function"])
            elif layer["class_name"] == "TensorFlowOpLayer":
                found["nodes"].add(config["node_def"]["op"])
            elif "trainable" not in config:
                found["keras3"].add(layer["class_name"])
    return {key: frozenset(names) for key, names in found.items()}


def test_every_function_of_the_tables_was_written_by_real_keras() -> None:
    seen = names_in_files()
    saved = {name for name, form in translation.FUNCTION_FORMS.items() if form.saved}
    assert saved <= seen["lambdas"]
    assert translation.NODE_FORMS.keys() == seen["nodes"]
    # of masks alone: other files have it, see test_fixtures.test_every_class_was_compared
    assert translation.KERAS3_FORMS.keys() - seen["keras3"] == {"ConvertToTensor"}


def test_every_generation_that_writes_operations_was_compared() -> None:
    labels = {ENTRIES[file]["label"] for file in OPERATIONS}
    assert labels == {
        *("tf-2.0.4", "tf-2.1.4", "tf-2.2.3", "tf.keras-2.4.0", "tf.keras-2.15.0"),
        *("tf_keras-2.21.0", "keras-3.0.5", "keras-3.15.1"),
    }


# ---- models made here --------------------------------------------------------------------------


INPUTS = (source("x", 7, 3, dtype="float32"), source("i", 7, dtype="int32"))


def tf_model(*layers: tuple[str, Any, Any]) -> dict[str, Any]:
    """A Functional config of tf.keras: inputs x and i, then (function, node, config)."""
    operations = [
        entry(
            "SlicingOpLambda" if function == "__operators__.getitem" else "TFOpLambda",
            f"op{number}",
            [node],
            function=function,
            **config,
        )
        for number, (function, node, config) in enumerate(layers)
    ]
    return functional_config(*INPUTS, *operations)


def keras3_model(class_name: str, config: Any, args: list[Any], **kwargs: Any) -> dict[str, Any]:
    """A Functional config of Keras 3 with one operation on x."""
    operation = {
        "class_name": class_name,
        "module": "keras.src.ops.numpy",
        "config": {"name": "op0", **config},
        "name": "op0",
        "inbound_nodes": [{"args": args, "kwargs": kwargs}],
    }
    return functional_config(*INPUTS, operation)


def ref(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


X = ["x", 0, 0]


def found_in(model: Mapping[str, Any], version: str) -> list[K2TError]:
    """Its problems, also the one that ends the reading."""
    try:
        return parse_config(model, version)[1].problems
    except K2TError as problem:
        return [problem]


def spec_of(model: Mapping[str, Any], version: str) -> ModelSpec:
    root, parsing = parse_config(model, version)
    assert not parsing.problems, parsing.problems
    return ModelSpec(root, parsing.generation)


# ---- refusals ----------------------------------------------------------------------------------

# Operations that no model of the collections has.
NOT_SUPPORTED = (
    "AveragePool BatchNorm Diagonal DotProductAttention Erfc Erfinv Hypot LayerNorm MaxPool "
    "RMSNorm Size Threshold Trace"
)
TF_NOT_SUPPORTED = (
    "clip_by_norm compat.v1.gather_nd compat.v1.size identity_n linalg.diag linalg.diag_part "
    "linalg.trace math.erfc math.erfinv math.lgamma math.multiply_no_nan math.xdivy math.xlog1py "
    "math.xlogy nn.avg_pool nn.max_pool2d rank reverse_sequence"
)


@pytest.mark.parametrize("name", [*NOT_SUPPORTED.split(), *TF_NOT_SUPPORTED.split()])
def test_an_operation_that_is_not_supported_may_be_replaced(name: str) -> None:
    of_keras = name in NOT_SUPPORTED.split()
    model = keras3_model(name, {}, [ref("x")]) if of_keras else tf_model((name, [*X, {}], {}))
    (problem,) = found_in(model, K3 if of_keras else TF)
    shown = name if of_keras else f"tf.{name}"
    assert problem.message == f"operation {shown} is not supported"
    assert "--plugin" in problem.advice
    assert problem.exit_code == 4


TF_REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("math.bessel_i0", [*X, {}], "operation tf.math.bessel_i0 is not supported"),
    ("os.system", [*X, {}], "operation tf.os.system is not supported"),
    ("nn.dropout", [*X, {"rate": 0.5}], "draws random numbers"),
    ("compat.v1.boolean_mask", [*X, {"mask": ["i", 0, 0]}], "shape depends on its values"),
    ("__operators__.eq", [*X, {}], "without its argument x2, which Keras did not save"),
    ("einsum", ["_CONSTANT_VALUE", -1, "bij->bi", {}], "which Keras did not save"),
    ("math.multiply", [*X, {"y": 2.0, "wrong": 1}], "with wrong=1 is not supported"),
    ("math.reduce_mean", ["i", 0, 0, {"axis": 1}], "drops the remainder"),
    ("cast", [*X, {"dtype": "complex64"}], "dtype complex64 is not supported"),
    ("cast", [*X, {"dtype": "uint8"}], "dtype uint8 is not supported"),
    ("math.reduce_sum", [*X, {"axis": 3}], "axis 3 of a tensor of 3 dimensions"),
    ("math.reduce_sum", [*X, {"axis": [1, -2]}], "name one twice"),
    ("math.reduce_sum", [*X, {"axis": 10**12}], "whole number"),
    ("math.reduce_sum", [*X, {"axis": 99}], "the number of an axis is expected"),
    ("math.reduce_sum", [*X, {"axis": 1, "keepdims": "yes"}], "true or false is expected"),
    ("reshape", [*X, {"shape": [-1, 10**12]}], "whole number"),
    ("reshape", [*X, {"shape": [-1, "x"]}], "whole number"),
    ("tile", [*X, {"multiples": [1, 10**9, 1]}], "larger than"),
    ("tile", [*X, {"multiples": [10**9, 1, 1]}], "larger than"),
    ("repeat", [*X, {"repeats": 10**9, "axis": 0}], "larger than"),
    ("compat.v1.pad", [*X, {"paddings": [[0, 0], [0, 10**9], [0, 0]]}], "larger than"),
    ("one_hot", ["i", 0, 0, {"depth": 10**12}], "whole number"),
    ("one_hot", ["i", 0, 0, {"depth": 10**9}], "larger than"),
    ("broadcast_to", [*X, {"shape": [10**6, 7, 3, 10**6]}], "cannot be broadcast"),
    ("fill", ["_CONSTANT_VALUE", -1, [10**5, 10**5], {"value": 1.0}], "larger than"),
    ("range", ["_CONSTANT_VALUE", -1, 10**9, {}], "larger than"),
    ("transpose", [*X, {"perm": [0, 2, 1]}], "tf.transpose is not supported"),
    ("compat.v1.transpose", [*X, {"perm": [0, 1, 1]}], "name one twice"),
    ("split", [*X, {"num_or_size_splits": 10**6, "axis": 1}], "at most 4096 parts"),
    ("split", [*X, {"num_or_size_splits": 2, "axis": 1}], "7 in 2 equal parts"),
    ("unstack", [*X, {"num": 10**9, "axis": 0}], "1000000000 tensors, more than 4096"),
    ("math.top_k", [*X, {"k": 5}], "the 5 largest of"),
    ("math.top_k", [*X, {"k": 2, "sorted": False}], "sorted=False is not supported"),
    ("linalg.matmul", [*X, {"b": X}], "do not fit each other"),
    ("compat.v1.gather", [*X, {"indices": [-1], "axis": 1}], "indices below 0"),
    ("math.add", [*X, {"y": [[1.0], [2.0, 3.0]]}], "unequal rows"),
    ("math.add", [*X, {"y": ["text"]}], "numbers are expected"),
    ("compat.v1.norm", [*X, {"ord": 3, "axis": 1}], "norm with ord=3 is not supported"),
    ("compat.v1.norm", [*X, {"ord": 1, "axis": [1, 2]}], "norm with ord=1 is not supported"),
    ("compat.v1.norm", [*X, {"ord": 2}], "norm with ord=2 without an axis"),
    ("compat.v1.norm", [*X, {"ord": ["fro"], "axis": 1}], "norm with ord="),
    ("cast", [*X, {"dtype": "float16"}], "numbers of float16, which are computed in float32"),
    ("compat.v1.gather", [*X, {"indices": [[2], [3]], "axis": -1}], "index 3 into an axis of size"),
    ("compat.v1.gather", [*X, {"indices": 9, "axis": 1}], "index 9 into an axis of size 7"),
    ("slice", [*X, {"begin": [0, 1, 0], "size": [-1, ["i", 0, 0], -1]}], "a slice from a computed"),
    ("slice", [*X, {"begin": [0, ["i", 0, 0], 0], "size": [-1, 2, -1]}], "a slice from a computed"),
    ("linalg.band_part", [*X, {"num_lower": -1, "num_upper": 0}], "tf.linalg.band_part is not su"),
    ("compat.v1.pad", [*X, {"paddings": [[1, 1]] * 3, "mode": "REFLECT"}], "mode=reflect"),
    ("math.add", [*X, {"y": "text"}], "the text 'text' where numbers are expected"),
    ("roll", [*X, {"shift": 1, "axis": 1}], "operation tf.roll is not supported"),
    ("sequence_mask", ["i", 0, 0, {}], "without maxlen"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("function", "node", "text"), TF_REFUSED, ids=[f"{f}-{t[:20]}" for f, _, t in TF_REFUSED]
)
def test_what_cannot_be_honoured_is_refused_by_name(function: str, node: Any, text: str) -> None:
    (problem,) = found_in(tf_model((function, node, {})), TF)
    assert text in str(problem)
    assert problem.exit_code in (3, 4)
    assert problem.place == "op0"


SLICES = (
    ([{"start": 0, "stop": None, "step": 0}], "a slice with step 0"),
    ([None, "Ellipsis", "Ellipsis"], "a list of indices"),
    ([0, 7], "index 7 into an axis of size 7"),
    ([0, 0, 0, 0], "4 indices into 3 dimensions"),
    ([["i", 0, 0]], "computed from values"),
    ([2**40], "whole number"),
    ([1.5], "whole number"),
)


@pytest.mark.parametrize(("spec", "text"), SLICES, ids=[text for _, text in SLICES])
def test_an_index_that_cannot_be_is_refused(spec: Any, text: str) -> None:
    model = tf_model(("__operators__.getitem", [*X, {"slice_spec": spec}], {}))
    (problem,) = found_in(model, TF)
    assert text in str(problem)


def test_all_unknown_operations_are_listed_at_once_without_consequences() -> None:
    model = tf_model(
        ("math.bessel_i0", [*X, {}], {}),
        ("math.digamma", ["op0", 0, 0, {}], {}),
        ("math.multiply", ["op1", 0, 0, {"y": ["i", 0, 0]}], {}),
    )
    problems = found_in(model, TF)
    assert [(p.place, p.message) for p in problems] == [
        ("op0", "operation tf.math.bessel_i0 is not supported"),
        ("op1", "operation tf.math.digamma is not supported"),
    ]
    assert all("--plugin" in p.advice for p in problems)


K3_REFUSED: tuple[tuple[str, Any, list[Any], str], ...] = (
    ("Quantile", {}, [ref("x")], "operation Quantile is not supported"),
    ("Multiply", {}, [ref("x")], "without its argument x2"),
    ("Einsum", {"subscripts": "bij,bjk->bq"}, [ref("x"), ref("x")], "every letter of the output"),
    ("Einsum", {"subscripts": "bii->b"}, [ref("x")], "a letter twice"),
    ("Einsum", {"subscripts": "__import__('os')"}, [ref("x")], "terms such as"),
    ("Einsum", {"subscripts": "bij,bjk->bik"}, [ref("x")], "1 tensors for the 2 terms"),
    ("Einsum", {"subscripts": "bij,bij->b" * 99}, [ref("x")], "terms such as"),
    ("Reshape", {"newshape": [None, -1]}, [ref("x")], "a size that is not there"),
    ("Squeeze", {"axis": None}, [ref("x")], "is not known"),
    ("GetItem", {}, [ref("x"), [ref("i")]], "an index that is a tensor"),
    ("Max", {"axis": 1, "keepdims": False, "initial": 0.5}, [ref("x")], "initial=0.5"),
    ("Round", {"decimals": 2}, [ref("x")], "other than whole numbers"),
    ("Pad", {"pad_width": [[1, 1]], "mode": "edge"}, [ref("x")], "mode=edge"),
    ("Norm", {"ord": "nuc", "axis": 1}, [ref("x")], "norm with ord='nuc' is not supported"),
    ("Normalize", {"axis": -1, "order": 1}, [ref("x")], "an order other than 2"),
    ("Take", {"axis": 2}, [ref("x"), [[[5]]]], "index 5 into an axis of size 3"),
    ("Softmax", {"axis": [1, 2]}, [ref("x")], "whole number"),
    ("ExpandDims", {}, [ref("x")], "ops.ExpandDims without axis"),
    ("ExpandDims", {"axis": None}, [ref("x")], "ops.ExpandDims option axis=None"),
    ("Moveaxis", {"source": 1, "destination": 2}, [ref("x")], "Moveaxis is not supported"),
)


@pytest.mark.parametrize(
    ("class_name", "config", "args", "text"), K3_REFUSED, ids=[f"{r[0]}-{r[3]}" for r in K3_REFUSED]
)
def test_operations_of_keras_3_are_refused_by_name(
    class_name: str, config: Any, args: list[Any], text: str
) -> None:
    (problem,) = found_in(keras3_model(class_name, config, args), K3)
    assert text in str(problem)
    assert problem.exit_code in (3, 4)


def node_model(node_def: Any, constants: Any, *inputs: str) -> dict[str, Any]:
    config = {"node_def": node_def, "constants": constants}
    operation = entry("TensorFlowOpLayer", "op0", [listed(*inputs)], **config)
    return functional_config(*INPUTS, operation)


def node(op: str, count: int, **attributes: Any) -> dict[str, Any]:
    return {"name": op, "op": op, "input": ["a"] * count, "attr": attributes}


NODES: tuple[tuple[Any, Any, tuple[str, ...], str], ...] = (
    (node("Bessel", 1), {}, ("x",), "operation Bessel of TensorFlow is not supported"),
    (None, {}, ("x",), "operation None of TensorFlow"),
    (node("Mul", 2), {}, ("x",), "1 tensors and 0 constants for 2 inputs"),
    (node("Mul", 2), {"1": 2.0}, ("x", "x"), "2 tensors and 1 constants for 2 inputs"),
    (node("Sum", 2, keep_dims={"b": False}, odd={"i": "1"}), {"1": 1}, ("x",), "with odd=1"),
    (node("Einsum", 1, equation={"s": "%%%"}), {}, ("x",), "a text that cannot be read"),
    (node("Pack", 1, axis={"i": "one"}), {}, ("x",), "no number"),
    (node("OneHot", 4), {"1": 3, "2": 2.0, "3": 0.0}, ("i",), "other than 1 and 0"),
    (node("Tile", 2), {"1": [1, 10**9, 1]}, ("x",), "larger than"),
    (node("BiasAdd", 2, data_format={"s": "TkNIVw=="}), {"1": [1.0]}, ("x",), "channels first"),
)


@pytest.mark.parametrize(
    ("node_def", "constants", "inputs", "text"), NODES, ids=[row[3] for row in NODES]
)
def test_nodes_of_a_graph_are_refused_by_name(
    node_def: Any, constants: Any, inputs: tuple[str, ...], text: str
) -> None:
    (problem,) = found_in(node_model(node_def, constants, *inputs), "2.2.4-tf")
    assert text in str(problem)
    assert problem.exit_code in (3, 4)


def test_a_node_as_text_is_read_as_well() -> None:
    text = json.dumps(node("Mul", 2))
    spec = spec_of(node_model(text, {"1": 3.0}, "x"), "2.2.4-tf")
    x = np.ones((2, 7, 3))
    assert_gives(spec, [x, np.zeros((2, 7), np.int32)], 3 * x)


def test_an_operation_that_is_called_twice_is_refused() -> None:
    model = tf_model(("math.exp", [*X, {}], {}))
    model["config"]["layers"][-1]["inbound_nodes"].append([*X, {}])
    problems = found_in(model, TF)
    assert "called 2 times" in str(problems[0])


# ---- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "has", "casts", "results"),
    [
        ("Add", ("float", "int64"), ("float", "float"), ("float",)),
        ("Add", ("int32", "a float"), ("float", "float"), ("float",)),
        ("Add", ("float", "an int"), ("float", "float"), ("float",)),
        ("Maximum", ("int32", "int64"), ("int64", "int64"), ("int64",)),
        ("Add", ("size", "an int"), ("size", "size"), ("size",)),
        ("Add", ("size", "int32"), ("int32", "int32"), ("int32",)),
        ("Exp", ("int32",), ("float",), ("float",)),
        ("Less", ("size", "int32"), ("int32", "int32"), ("bool",)),
        ("LogicalNot", ("float",), ("bool",), ("bool",)),
        ("Sum", ("bool",), ("int32",), ("int32",)),
        ("Where", ("int32", "a float", "int32"), ("bool", "float", "float"), ("float",)),
        ("Take", ("float", "int32"), ("float", "int64"), ("float",)),
        ("Reshape", ("int32", "size", "an int"), ("int32", "size", "size"), ("int32",)),
        ("TopK", ("float",), ("float",), ("float", "int32")),
        ("Shape", ("float",), ("float",), ("size",)),
    ],
)
def test_arguments_become_one_dtype(op: str, has: Dtypes, casts: Dtypes, results: Dtypes) -> None:
    assert OPS[f"ops.{op}"].settle_dtypes(has, {}) == Promotion(casts, results)


@pytest.mark.parametrize("op", ["Matmul", "Dot", "Einsum", "Floor", "Round"])
@pytest.mark.parametrize("kind", ["int32", "int64", "bool", "size"])
def test_whole_numbers_are_refused_where_keras_may_keep_their_bits(op: str, kind: str) -> None:
    row = OPS[f"ops.{op}"]
    with pytest.raises(DtypeError, match=f"numbers of kind {kind} are not supported here, only fl"):
        row.settle_dtypes((kind,) * max(1, len(row.arguments)), {})


@pytest.mark.parametrize("kind", ["float", "bool", "a float"])
def test_indices_are_whole_numbers(kind: str) -> None:
    with pytest.raises(DtypeError, match="indices that are not whole numbers"):
        OPS["ops.Take"].settle_dtypes(("float", kind), {})


@pytest.mark.parametrize("op", ["Cast", "ConvertToTensor"])
def test_sizes_stay_sizes_in_a_cast_to_integers(op: str) -> None:
    row = OPS[f"ops.{op}"]
    assert row.settle_dtypes(("size",), {"dtype": "int64"}) == Promotion(("size",), ("size",))
    assert row.settle_dtypes(("size",), {"dtype": "float"}) == Promotion(("float",), ("float",))


def test_sizes_are_no_tensors() -> None:
    with pytest.raises(DtypeError, match="numbers of kind size are not supported here"):
        OPS["ops.Negative"].settle_dtypes(("size",), {})


@pytest.mark.parametrize("op", ["Multiply", "Add", "Max", "Less"])
def test_bools_are_no_numbers(op: str) -> None:
    with pytest.raises(DtypeError, match="bools where numbers are expected"):
        OPS[f"ops.{op}"].settle_dtypes(("bool", "a bool"), {})


def test_whole_numbers_of_int32_overflow_as_in_keras() -> None:
    spec = spec_of(keras3_model("Multiply", {}, [ref("i"), 2]), K3)
    ids = np.full((2, 7), 2**30, np.int32)
    assert_gives(spec, [np.zeros((2, 7, 3)), ids], np.full((2, 7), -(2**31)))


def test_a_half_precision_file_refuses_a_mask_into_a_cast() -> None:
    spec = read_entry("tf.keras-2.15.0/ops_tf_masks.keras")
    layer = spec.graph.layer("tf.cast")
    layer.semantics["kinds"]["passes_mask"] = None  # as the reader says with mixed_float16
    with pytest.raises(K2TError, match="a mask into a cast of floats") as caught:
        build(spec)
    assert caught.value.exit_code == 4


def test_constants_are_those_of_float32() -> None:
    model = tf_model(("math.multiply", [*X, {"y": [0.1, 0.2, 0.3]}], {}))
    spec = spec_of(model, TF)
    constant = next(
        leaf for leaf in leaves(spec.graph.calls[-1].args) if isinstance(leaf, Constant)
    )
    assert constant.values == tuple(np.array([0.1, 0.2, 0.3], np.float32).astype(float))


# ---- the model ---------------------------------------------------------------------------------


def code(model: Mapping[str, Any], version: str) -> list[str]:
    module = build(spec_of(model, version))
    lines = module.code.split("def forward")[1].splitlines()[1:]
    return [line.split(";")[0].strip() for line in lines if line.strip()]


def test_the_code_reads_as_what_the_user_wrote() -> None:
    model = tf_model(
        ("math.multiply", ["_CONSTANT_VALUE", -1, 2.0, {"y": X}], {}),
        ("math.reduce_sum", ["op0", 0, 0, {"axis": 1}], {}),
        ("__operators__.getitem", [*X, {"slice_spec": [
            {"start": None, "stop": None, "step": None}, -1]}], {}),
        ("math.subtract", ["op1", 0, 0, {"y": ["op2", 0, 0]}], {}),
        ("compat.v1.shape", [*X, {}], {}),
        ("__operators__.getitem", ["op4", 0, 0, {"slice_spec": 0}], {}),
        ("reshape", ["op3", 0, 0, {"shape": [["op5", 0, 0], 3, 1]}], {}),
    )  # fmt: skip
    assert code(model, TF) == [
        "floats_like = self.floats_like()",
        "x_1 = keras2torch_birnn_layers_core_to_float(x, floats_like)",
        "op0 = 2.0 * x_1",
        "op2 = x_1[(slice(None, None, None), -1)]",
        "op4 = x_1.shape",
        "op1 = torch.sum(op0, dim = (1,), keepdim = False)",
        "op5 = op4[0]",
        "op3 = op1 - op2",
        "op6 = op3.reshape(op5, 3, 1)",
        "return op6",
    ]


def test_operations_are_no_modules_and_hold_no_weights() -> None:
    model = build(read_entry("keras-3.15.1/ops_values.keras"))
    names = {name for name, _ in model.named_modules()}
    assert "add" not in names
    assert "floats_like" in names
    keys = {*model.state_dict(), *copy.deepcopy(model).state_dict()}
    assert not any("like" in key or "constant" in key for key in keys)
    buffers = dict(model.double().named_buffers())
    assert buffers["floats_like.values"].dtype == torch.float64


def test_a_printed_model_says_what_its_constants_are() -> None:
    lines = str(build(read_entry("keras-3.15.1/ops_values.keras"))).splitlines()
    shown = [line.strip() for line in lines if "floats_like): " in line or "constant): " in line]
    assert shown == [
        "(floats_like): ModelDtype(torch.float32)",
        "(multiply_2_constant): GraphConstant(shape=(4,), dtype=torch.float32)",
    ]


@pytest.mark.parametrize(
    "file", ["tf.keras-2.15.0/ops_tf_sizes.keras", "keras-3.15.1/ops_masks.keras"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_was_saved_is_verified_layer_by_layer(file: str, suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    save(build_model(read_entry(file)), out)
    report = verify(FIXTURES / file, out, against="reference")
    assert report.ok
    assert report.first_divergence is None
    wanted = {
        layer.name
        for layer in fixture(file).spec.graph.layers
        if layer.class_name.startswith("ops.")
        and layer.semantics["kinds"]["gives"] != ("size",)
        and layer.class_name not in ("ops.Identity", "ops.Cast")
    }
    assert wanted <= {layer.path for layer in report.layers}
    case = fixture(file)
    got = flat(load(out)(*[torch.from_numpy(x) for x in case.inputs[0]]))
    for a, b in zip(got, case.outputs[0], strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, atol=1e-5, rtol=1e-4)


def test_layers_and_inspect_know_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    table = k2t("layers").out
    assert "ops.Matmul" in table
    assert all(operation_names(name.removeprefix("ops.")) for name in OPS)
    rows = k2t("inspect", FIXTURES / "tf.keras-2.15.0/ops_tf_masks.keras").out.splitlines()
    facts = {row.split()[0]: row for row in rows if row}
    assert "drops" in facts["tf.math.multiply"]
    assert "passes" in facts["tf.cast"]


def test_gradients_flow_through_operations() -> None:
    spec = spec_of(
        tf_model(
            ("nn.softmax", [*X, {"axis": 1}], {}),
            ("math.multiply", ["op0", 0, 0, {"y": X}], {}),
            ("math.reduce_sum", ["op1", 0, 0, {"axis": 1}], {}),
        ),
        TF,
    )
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    model = build(spec, dtype="float64")
    assert torch.autograd.gradcheck(lambda t: model(t, torch.zeros(2, 7)), (x,))


@pytest.mark.parametrize(
    ("function", "options"), [("split", {"num_or_size_splits": 7, "axis": 1}), ("math.top_k", {})]
)
def test_what_has_several_outputs_takes_a_tensor_of_unknown_shape(
    function: str, options: Any
) -> None:
    model = tf_model(
        ("compat.v1.shape", [*X, {}], {}),
        ("reshape", [*X, {"shape": ["op0", 0, 0]}], {}),
        (function, ["op1", 0, 0, options], {}),
        ("cast", ["op2", 0, 1, {"dtype": "float32"}], {}),
    )
    x = np.random.default_rng(5).normal(size=(2, 7, 3)).astype("f4")
    wanted = x[:, 1:2] if function == "split" else x.argmax(-1)[..., None]
    assert_gives(spec_of(model, TF), [x, np.zeros((2, 7), np.int32)], wanted)


def test_a_step_backwards_is_a_slice_of_numpy() -> None:
    x = torch.arange(2 * 7 * 5).reshape(2, 7, 5)
    for parts in (
        (slice(None), slice(5, 1, -2)),
        (Ellipsis, slice(None, None, -1)),
        (slice(None, None, -1), None, 3, slice(-2, None, -3)),
    ):
        got: Tensor = functional.getitem_backwards(x, parts)
        np.testing.assert_array_equal(got.numpy(), x.numpy()[parts])


def test_a_floor_is_that_of_the_quotient() -> None:
    assert float(functional.floor_divide(torch.tensor(1.0), 0.1)) == 10
    assert int(functional.floor_divide(torch.tensor(-7), 2)) == -4
    assert functional.floor_divide(-7, 2) == -4


def test_references_in_the_spec_are_to_tensors_only() -> None:
    spec = spec_of(keras3_model("Add", {}, [ref("x"), 1.5]), K3)
    assert spec.graph.calls[-1].args == (TensorRef("x"), 1.5)
