"""Numbers of any dtype into a converted model, layers of several dtypes: as Keras takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import changed_config
from model_configs import entry, keras3, listed, parsed, source
from specs import ENTRIES, FIXTURES, TF_KERAS, chain, dense, fixture, layer, read_entry, values
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import K2TError, UnsupportedOptionError, gather
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.checks import check_input_dtypes
from keras2torch_birnn.readers.config.parsing import mixture_note
from keras2torch_birnn.spec import LayerSpec, ModelSpec

K2, TF, K3 = "2.2.4", "2.15.0", "3.15.1"
BIDIRECTIONAL = "tf.keras-2.15.0/bi_lstm_concat_seq.h5"
MIXED = "tf.keras-2.15.0/dtypes_of_layers.h5"
IDS = "keras-3.15.1/mask_bi_lstm_seq.h5"
POLICIES = ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
MIXTURE = "layers of float32 and of float64: all of the model is computed in float64"


def call(model: nn.Module, *given: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return flat(model(*given))


def whole(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).integers(0, 5, shape))


def given_to(*specs: LayerSpec, dtype: str) -> ModelSpec:
    """A chain whose input, (B, 7, 3), is declared in a dtype."""
    root = chain(*specs, shape=(None, 7, 3))
    assert root.graph is not None
    config: Any = root.graph.layers[0].config
    config["dtype"] = dtype
    return ModelSpec(root, TF_KERAS)


# ---- what a user gives --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "uint8", "bool"])
def test_an_input_becomes_what_the_file_declares(dtype: str) -> None:
    model = build(read_entry(BIDIRECTIONAL))
    x = whole(2, 7, 3).to(getattr(torch, dtype))
    (wanted,), (got,) = call(model, x.float()), call(model, x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_model_casts_to_the_dtype_that_it_was_brought_to(dtype: str) -> None:
    model = build(read_entry(BIDIRECTIONAL)).to(getattr(torch, dtype))
    (got,) = call(model, torch.from_numpy(values(2, 7, 3)).float())
    assert got.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int32"])
def test_ids_of_any_dtype_are_the_same_ids(dtype: str) -> None:
    model, ids = build(read_entry(IDS)), whole(2, 7)
    (wanted,), (got,) = call(model, ids), call(model, ids.to(getattr(torch, dtype)))
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)


def test_a_declared_bool_is_true_where_it_is_not_zero() -> None:
    model = build(given_to(dense(5, 3), dtype="bool"))
    x = torch.tensor([0.5, 0.0, -2.0]).expand(2, 7, 3)
    torch.testing.assert_close(call(model, x), call(model, x != 0), atol=0, rtol=0)
    assert not torch.equal(call(model, x)[0], call(model, torch.ones_like(x))[0])


def test_declared_whole_numbers_lose_their_fraction() -> None:
    model = build(given_to(layer("Flatten"), dense(5, 21), dtype="int32"))
    x = torch.from_numpy(values(2, 7, 3)) * 3
    torch.testing.assert_close(call(model, x), call(model, x.trunc().int()), atol=0, rtol=0)
    (truths,) = call(model, x > 0)
    torch.testing.assert_close(truths, call(model, (x > 0).int())[0], atol=0, rtol=0)


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_declared_whole_numbers_add_up_beyond_8_bits(dtype: str) -> None:
    added = entry("Add", "y", [listed("a", "b")])
    root, parsing = parsed(TF, of("int32"), of("int32", "b"), added)
    x = torch.full((2, 7, 3), 200).to(getattr(torch, dtype))
    (got,) = call(build(ModelSpec(root, parsing.generation)), x, x)
    assert got.eq(2 if dtype == "bool" else 400).all()


def test_an_input_that_is_an_output_is_what_the_file_declares() -> None:
    table = values(5, 2).astype("float32")
    looked_up = layer("Embedding", "e", {"embeddings": table}, input_dim=5, output_dim=2)
    root = given_to(looked_up, dtype="int32").root
    assert root.graph is not None
    graph = replace(root.graph, outputs=(root.graph.inputs[0], root.graph.outputs))
    model = build(ModelSpec(replace(root, graph=graph), TF_KERAS))
    ids, _ = call(model, torch.full((2, 7, 3), 2.7))
    assert ids.eq(2).all()


def test_an_initial_state_becomes_floats_of_the_model() -> None:
    case = fixture("keras-2.2.4/graph_gru_initial.h5")
    model, given = build(case.spec), [torch.from_numpy(x) for x in case.inputs[0]]
    wider = [x.double() if x.is_floating_point() else x for x in given]
    assert any(x.dtype == torch.float64 for x in wider)
    torch.testing.assert_close(call(model, *wider), call(model, *given), atol=0, rtol=0)


def test_an_out_of_another_dtype_takes_floats_of_any(tmp_path: Path) -> None:
    model = k2t.convert(FIXTURES / BIDIRECTIONAL, dtype="float64")
    k2t.save(model, tmp_path / "out.pt")
    x = torch.from_numpy(values(2, 7, 3))
    for one in (model, k2t.load(tmp_path / "out.pt")):
        assert one(x.float()).dtype == one(x).dtype == torch.float64


# ---- layers of several dtypes -------------------------------------------------------------------


def test_a_model_of_float32_and_float64_computes_in_float64_and_says_so() -> None:
    spec = read_entry(MIXED)
    assert spec.notes.count(MIXTURE) == 1
    x = torch.from_numpy(values(2, 7, 3))
    given = (x.float(), x.float())
    assert {y.dtype for y in call(build(spec), *given)} == {torch.float64}


@pytest.mark.parametrize("floats", [set(), {"float32"}, {"float64"}])
def test_one_dtype_needs_no_words(floats: set[str]) -> None:
    assert mixture_note(floats, np.dtype("float32")) == []


def test_a_file_of_float64_alone_is_no_mixture() -> None:
    assert MIXTURE not in read_entry("keras-3.15.1/policy_float64.keras").notes


HALVES = [
    (file, policy)
    for file, found in ENTRIES.items()
    for policy in POLICIES
    if found["case"] in (f"policy_{policy}", f"policy_mask_{policy}", f"dtypes_{policy}")
]


@pytest.mark.parametrize(("file", "policy"), HALVES)
def test_half_precision_is_told_whatever_wrote_it(file: str, policy: str) -> None:
    words = f"the file asks for {policy}: computed in float32, which is more exact"
    assert read_entry(file).notes.count(words) == 1


def test_half_precision_was_compared_in_every_generation_that_has_it() -> None:
    found = {(ENTRIES[file]["label"], ENTRIES[file]["kind"]) for file, _ in HALVES}
    old = {("tf.keras-2.4.0", "h5"), ("tf.keras-2.10.0", "h5"), ("keras-3.0.5", "keras")}
    labels = ("tf.keras-2.13.1", "tf.keras-2.15.0", "tf_keras-2.21.0", "keras-3.5.0")
    new = {(label, kind) for label in (*labels, "keras-3.15.1") for kind in ("h5", "keras")}
    assert found == old | new


@pytest.mark.parametrize("file", [f for f, e in ENTRIES.items() if e["case"] == "dtypes_in_half"])
def test_half_precision_of_single_layers_is_told(file: str) -> None:
    notes = [note for note in read_entry(file).notes if "computed in float32" in note]
    assert [note.split()[4] for note in notes] == ["mixed_float16:", "mixed_bfloat16:"]


def test_an_input_of_half_precision_is_told(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["config"]["layers"][0]["config"]["dtype"] = "float16"

    file = changed_config(FIXTURES / BIDIRECTIONAL, tmp_path / "changed.h5", change)
    assert "the file asks for float16: computed in float32, which is more exact" in (
        read_model(file).notes
    )


# ---- whole numbers and bools that compute otherwise --------------------------------------------


def refused(version: str, *layers: dict[str, Any], match: str) -> None:
    root, parsing = parsed(version, *layers)
    assert not parsing.problems
    check_input_dtypes(root, parsing)
    with pytest.raises(K2TError, match=match):
        raise gather(parsing.problems)


def of(dtype: str, name: str = "a", *shape: int) -> dict[str, Any]:
    return source(name, *(shape or (7, 3)), dtype=dtype)


@pytest.mark.parametrize("version", [K2, TF])
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_a_mean_without_remainder_is_refused(version: str, dtype: str) -> None:
    pooled = entry("GlobalAveragePooling1D", "y", [listed("a")])
    refused(version, of(dtype), pooled, match="y: the mean of whole numbers: this Keras drops the")


def test_a_mean_of_numbers_that_are_handed_on_is_refused() -> None:
    flat_, pooled = entry("Dropout", "x", [listed("a")], rate=0.5), "GlobalAveragePooling1D"
    refused(TF, of("int64"), flat_, entry(pooled, "y", [listed("x")]), match="y: the mean of whole")


def test_a_mean_of_every_step_is_refused() -> None:
    inner = {"class_name": "GlobalAveragePooling1D", "config": {"name": "pool"}}
    steps = entry("TimeDistributed", "y", [listed("a")], layer=inner)
    refused(TF, of("int32", "a", 5, 7, 3), steps, match="the mean of whole numbers")


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@pytest.mark.parametrize(
    ("class_name", "shape", "config"),
    [
        ("LayerNormalization", (7, 3), {}),
        ("GroupNormalization", (7, 3), {"groups": 3}),
        ("RMSNormalization", (7, 3), {}),
        ("UpSampling2D", (5, 7, 3), {"interpolation": "bilinear"}),
    ],
)
def test_what_keras_3_cuts_again_is_refused(
    class_name: str, shape: tuple[int, ...], config: dict[str, Any], dtype: str
) -> None:
    one = entry(class_name, "y", [keras3("a")], **config)
    refused(K3, of(dtype, "a", *shape), one, match="y: whole numbers or bools: Keras 3 cuts")


def test_products_of_bools_are_refused() -> None:
    dot = entry("Dot", "y", [keras3(["a", "b"])], axes=1)
    refused(K3, of("bool"), of("bool", "b"), dot, match="y: bools: this Keras gives bools again")
    product = entry("Multiply", "y", [listed("a", "b")])
    refused(TF, of("bool"), source("b", 7, 3), product, match="y: bools: this Keras gives bools")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
@pytest.mark.parametrize("class_name", ["Add", "Subtract", "Multiply"])
def test_sums_of_short_numbers_are_refused(class_name: str, dtype: str) -> None:
    handed = entry("Flatten", "x", [listed("b")])
    merged = entry(class_name, "y", [listed("x", "x")])
    match = "y: numbers of 8 or 16 bits: sums and products overflow there; not supported; cast"
    refused(TF, of("float32"), of(dtype, "b"), handed, merged, match=match)


def test_short_numbers_beside_others_are_no_problem() -> None:
    merged = entry("Add", "y", [keras3(["a", "b"])])
    root, parsing = parsed(K3, of("uint8"), source("b", 7, 3), merged)
    check_input_dtypes(root, parsing)
    assert not parsing.problems


COUNT: dict[str, Any] = {
    "class_name": "CategoryEncoding",
    "config": {"name": "count", "num_tokens": 7, "output_mode": "count"},
}


@pytest.mark.parametrize("version", [TF, K3])
@pytest.mark.parametrize(
    ("class_name", "config"),
    [
        ("Embedding", {"input_dim": 7, "output_dim": 3}),
        ("CategoryEncoding", {"num_tokens": 7}),
        ("Dense", {"units": 3}),
        ("Masking", {}),
        ("Activation", {"activation": "relu"}),
        ("GlobalAveragePooling1D", {}),
        ("Bidirectional", None),
    ],
)
def test_a_layer_that_reads_text_is_refused(
    version: str, class_name: str, config: dict[str, Any] | None
) -> None:
    if config is None:
        config = {"layer": {"class_name": "LSTM", "config": {"name": "lstm", "units": 3}}}
    refs = [keras3("a")] if version == K3 else [listed("a")]
    one = entry(class_name, "y", refs, **config)
    shape = (7,) if class_name == "CategoryEncoding" else (7, 3)
    root, parsing = parsed(version, of("string", "a", *shape), one)
    assert not parsing.problems
    check_input_dtypes(root, parsing)
    (problem,) = parsing.problems
    words = "computes with an input of dtype string; not supported"
    found = f"{class_name} {words}"
    if class_name == "Masking":  # hands on what it gets
        found = "an output of the model has dtype string; not supported"
    assert (problem.place, problem.message) == ("y", found)
    assert problem.advice == "turn it into numbers before the model"


def test_text_that_passes_through_other_layers_is_seen_where_it_is_read() -> None:
    layers = [
        of("string", "a", 3, 5),
        of("string", "b", 3, 2),
        entry("Concatenate", "x", [listed("a", "b")]),
        entry("RepeatVector", "z", [listed("f")], n=3),
        entry("Flatten", "f", [listed("x")]),
        entry("TimeDistributed", "y", [listed("z")], layer=COUNT),
    ]
    layers[3], layers[4] = layers[4], layers[3]
    refused(TF, *layers, match="y.*: CategoryEncoding computes with an input of dtype string")


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "variant", "resource"])
def test_other_inputs_without_numbers_are_refused(dtype: str) -> None:
    one = entry("Dense", "y", [listed("a")], units=3)
    refused(TF, of(dtype), one, match=f"y: Dense computes with an input of dtype {dtype}")


def test_text_that_is_an_output_is_refused() -> None:
    handed = entry("Dropout", "y", [listed("a")], rate=0.5)
    refused(TF, of("string"), handed, match="y: an output of the model has dtype string")


def test_text_that_no_layer_reads_is_no_problem() -> None:
    root, parsing = parsed(
        TF, of("string"), source("b", 7, 3), entry("Flatten", "y", [listed("b")])
    )
    check_input_dtypes(root, parsing)
    assert not parsing.problems


def test_a_refusal_reaches_the_user(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        for one in model["config"]["layers"]:
            if one["class_name"] == "InputLayer":
                one["config"]["dtype"] = "uint8"

    file = changed_config(
        FIXTURES / "keras-3.15.1" / "merge_values.keras", tmp_path / "m.keras", change
    )
    assert read_model(file)  # RNNs come first: they make floats
    source_ = FIXTURES / "tf.keras-2.15.0" / "merge_ranks.h5"
    with pytest.raises(UnsupportedOptionError, match="numbers of 8 or 16 bits"):
        read_model(changed_config(source_, tmp_path / "r.h5", change))
