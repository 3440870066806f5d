"""Graphs of layers: merges, attention, masks on their way, and what is refused.

That a wrong one gives other numbers than Keras: ``parity/test_fixtures.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from model_configs import Json, entry, keras3, listed, parsed, source
from seen_operators import SeenOperators
from specs import ENTRIES, fixture, values

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather
from keras2torch_birnn.layers import attention, merging
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers.config.generations import generation_of, options_of, rule_of
from keras2torch_birnn.spec import (
    Call,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
)

K2, TF, K3 = "2.2.4", "2.15.0", "3.15.1"


def refused(version: str, *layers: Json, match: str) -> None:
    _, parsing = parsed(version, *layers)
    with pytest.raises(K2TError, match=match):
        raise gather(parsing.problems)


def calls(root: LayerSpec) -> Mapping[str, Call]:
    assert root.graph is not None
    return {call.layer: call for call in root.graph.calls}


def masked(structure: Structure) -> list[bool]:
    return [leaf.masked for leaf in leaves(structure) if isinstance(leaf, TensorRef)]


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shapes", "match"),
    [
        (entry("Subtract", "y", [listed("a", "b", "c")]), [(7, 3)] * 3, "2 tensors are expected"),
        (entry("Dot", "y", [listed("a")], axes=1), [(7, 3)], "2 tensors are expected, found 1"),
        (entry("Add", "y", [listed("a", "b")]), [(7, 3), (7, 5)], "do not fit each other"),
        (entry("Dot", "y", [listed("a", "b")], axes=[2, 1]), [(7, 3), (7, 3)], "axis 2 of .* axis"),
        (entry("Dot", "y", [listed("a", "b")], axes=0), [(7, 3), (7, 3)], "axis 0 of a tensor"),
        (entry("Dot", "y", [listed("a", "b")], axes=[1, 2, 3]), [(7, 3)] * 2, "axis or two"),
        (entry("Concatenate", "y", [listed("a", "b")], axis=0), [(7, 3), (5, 3)], "more than axis"),
        (entry("Concatenate", "y", [listed("a", "b")], axis=3), [(7, 3)] * 2, "axis 3 of a tensor"),
        (entry("Concatenate", "y", [listed("a", "b")]), [(7, 3), (5, 3)], "more than axis 2"),
        (entry("Concatenate", "y", [listed("a", "b")]), [(7, 3), (3,)], "cannot be concatenated"),
        (entry("Attention", "y", [listed("a", "b")]), [(7, 3), (3,)], "tensors of 3 dimensions"),
        (entry("Attention", "y", [listed("a", "b")], score_mode="sum"), [(7, 3)] * 2, "score_mode"),
    ],
)
def test_a_list_of_tensors_that_does_not_fit_is_refused(
    layer: Json, shapes: list[tuple[int, ...]], match: str
) -> None:
    inputs = [source(name, *shape) for name, shape in zip("abc", shapes, strict=False)]
    refused(TF, *inputs, layer, match=match)


def test_a_merge_of_one_tensor_in_keras_3_is_refused() -> None:
    add = entry("Add", "y", [keras3("a")])
    refused(K3, source("a", 7, 3), add, match="a list of tensors is expected, found one")


HEADS = {"num_heads": 2, "key_dim": 5}


@pytest.mark.parametrize(
    ("config", "node", "shape", "match"),
    [
        ({"attention_axes": [1, 2]}, keras3("a", "a"), (7, 3), "attention_axes"),
        ({"attention_axes": -2}, keras3("a", "a"), (7, 3), "attention_axes"),
        ({}, keras3("a", "a"), (7,), "tensors of 3 dimensions at least are expected"),
        ({}, keras3("a"), (7, 3), "a query and a value are expected"),
        ({}, keras3("a", "a", training=True), (7, 3), "called with training=True"),
        ({}, keras3("a", "a", unheard_of=1), (7, 3), "called with unheard_of='1': unknown|unknown"),
        ({"rotary": True}, keras3("a", "a"), (7, 3), "option rotary='?True'? is unknown"),
        ({"sliding_window": 0}, keras3("a", "a"), (7, 3), "sliding_window"),
    ],
)
def test_heads_that_are_not_supported_are_refused(
    config: Json, node: Json, shape: tuple[int, ...], match: str
) -> None:
    heads = entry("MultiHeadAttention", "y", [node], **HEADS, **config)
    refused(K3, source("a", *shape), heads, match=match)


def test_dot_of_high_rank_is_refused_where_keras_multiplies_otherwise() -> None:
    inputs = (source("a", 7, 5, 3), source("b", 3, 11))
    dot = entry("Dot", "y", [listed("a", "b")], axes=[3, 1])
    refused(K2, *inputs, dot, match="more than 3 dimensions in its own way")
    for version in ("2.3.1", TF):
        assert not parsed(version, *inputs, dot)[1].problems


def test_initial_state_of_a_stateful_layer_is_refused_where_it_is_used_now_and_then() -> None:
    inputs = (source("a", 7, 3), source("s", 5))
    gru = entry("SimpleRNN", "y", [listed("a", "s")], units=5, stateful=True)
    refused(TF, *inputs, gru, match="initial_state on a stateful layer: this Keras uses it only")
    assert not parsed(K2, *inputs, gru)[1].problems
    node = keras3("a", initial_state="s")
    assert not parsed(K3, *inputs, {**gru, "inbound_nodes": [node]})[1].problems
    inner = {"class_name": "SimpleRNN", "config": {"name": "r", "units": 5, "stateful": True}}
    two = entry("Bidirectional", "y", [listed("a", "s", "s")], layer=inner, merge_mode="sum")
    refused(TF, *inputs, two, match="initial_state on a stateful layer")


@pytest.mark.parametrize("node", [{"p": 3}, {"p": ["z", 0, 0, {}]}, {"p": []}, {}, {"p": "a"}])
def test_a_dict_of_what_is_no_tensor_is_refused(node: Json) -> None:
    with pytest.raises(InvalidModelFileError, match=r"no layer of the model|unknown form"):
        parsed(TF, source("a", 7, 3), entry("Add", "y", [node]))


# ---- what a version means -----------------------------------------------------------------------


def test_the_mask_rules_of_versions() -> None:
    rules = {
        version: (
            options_of("Add", g)["masking"],
            options_of("Attention", g)["mask_after"],
            options_of("MultiHeadAttention", g)["masking"],
            options_of("Softmax", g)["masking"],
            rule_of("passed_mask_goes_on", g),
        )
        for version in ("2.2.4", "2.3.1", "2.4.0", "2.10.0", "3.3.3", "3.4.1", "3.12.0", "3.13.0")
        for g in [generation_of(version)]
    }
    assert rules == {
        "2.2.4": ("all", "query", "add", "ignore", False),
        "2.3.1": ("all", "query", "add", "ignore", False),
        "2.4.0": ("all", "query", "ignore", "add", True),
        "2.10.0": ("all", "query", "add", "add", True),
        "3.3.3": ("none", "none", "add", "add", False),
        "3.4.1": ("any", "query", "add", "add", False),
        "3.12.0": ("any", "query", "add by hand", "add", True),
        "3.13.0": ("any", "query", "zeros", "replace", True),
    }
    taken = [
        rule_of("attention_takes_masks", generation_of(v)) for v in ("2.15.0", "3.7.0", "3.8.0")
    ]
    assert taken == [False, False, True]


def test_a_passed_mask_goes_on_where_keras_lets_it() -> None:
    layers = (source("a", 7, 3), source("m", 7))
    for version, keeps in ((TF, False), ("3.10.0", True), (K3, False)):
        node = listed("a", mask=["m", 0, 0]) if version == TF else keras3("a", mask="m")
        root, parsing = parsed(version, *layers, entry("SimpleRNN", "y", [node], units=5))
        assert not parsing.problems
        assert calls(root)["y"].kwargs.get("keep_mask", False) is keeps


def lost(version: str) -> tuple[Mapping[str, Call], list[str]]:
    """a -> Dropout d -> heads h(d, b); later d, a, b and h are read."""
    root, parsing = parsed(
        version,
        source("x", 7, 3),
        entry("Masking", "a", [keras3("x")], mask_value=0.0),
        entry("Masking", "b", [keras3("x")], mask_value=1.0),
        entry("Dropout", "d", [keras3("a")], rate=0.5),
        entry("MultiHeadAttention", "h", [keras3("d", "b")], **HEADS),
        entry("Add", "y", [keras3(["d", "a", "b", "h"])]),
    )
    return calls(root), parsing.notes


def test_heads_take_the_masks_off_their_inputs_and_off_what_these_are() -> None:
    found, notes = lost(K3)
    assert masked(found["h"].args) == [True, True]
    assert masked(found["y"].args) == [False, False, False, True]
    assert any("takes the masks off" in note for note in notes)


def test_heads_of_earlier_versions_leave_masks_alone() -> None:
    found, notes = lost("3.7.0")
    assert all(all(masked(call.args)) for call in found.values())
    assert notes == []


def test_who_may_run_before_heads_take_a_mask_is_refused() -> None:
    """Only who needs the heads' output surely runs after them."""
    layers = (
        source("x", 7, 3),
        entry("Masking", "a", [keras3("x")], mask_value=0.0),
        entry("MultiHeadAttention", "h", [keras3("a", "a")], **HEADS),
        entry("LSTM", "r", [keras3("a")], units=3, return_sequences=True),
        entry("Add", "y", [keras3(["r", "h"])]),
    )
    refused(K3, *layers, match="the mask of a: MultiHeadAttention of this Keras takes it off")
    _, parsing = parsed("3.7.0", *layers)
    assert not parsing.problems


def test_masks_passed_by_argument_join_those_that_came() -> None:
    """query_mask of Keras 3.0; since 3.8 the layer looks at the query itself."""
    layers = (source("a", 7, 3), source("m", 7))
    heads = entry("MultiHeadAttention", "y", [keras3("a", "a", query_mask="m")], **HEADS)
    old, new = (calls(parsed(version, *layers, heads)[0])["y"] for version in ("3.0.5", K3))
    assert old.kwargs["mask"] == (TensorRef("m"), None)
    assert new.kwargs["mask"] == (None, None)


# ---- structures ---------------------------------------------------------------------------------


def test_dicts_are_read_in_the_order_of_their_keys_and_stay_dicts() -> None:
    case = fixture("keras-3.15.1/graph_dicts.keras")
    assert [layer.name for layer in case.spec.input_layers()] == ["alpha", "zeta"]
    inputs = [torch.from_numpy(x) for x in case.inputs[0]]
    outputs = build(case.spec)(*inputs)
    assert list(outputs) == ["left", "sum"]


def test_nested_outputs_keep_their_structure() -> None:
    case = fixture("keras-3.15.1/graph_nested_outputs.keras")
    outputs = build(case.spec)(torch.from_numpy(case.inputs[0][0]))
    assert list(outputs) == ["a", "b"]
    assert isinstance(outputs["b"], tuple)
    assert list(outputs["b"][1]) == ["c", "d"]


def test_a_shared_layer_is_one_module() -> None:
    model = build(fixture("keras-3.15.1/graph_siamese.keras").spec)
    names = [name for name, _ in model.named_children()]
    assert sum("bidirectional" in name for name in names) == 1
    assert sum("embedding" in name for name in names) == 1


@pytest.mark.parametrize("grad", [True, False])
def test_forward_computes_no_mask_that_no_output_needs(grad: bool) -> None:
    case = fixture("keras-3.15.1/arch_seq2seq_attention.weights.h5")
    model = build(case.spec).eval()
    assert {torch.any, torch.logical_or} <= {node.target for node in model.graph.nodes}
    inputs = tuple(map(torch.from_numpy, case.inputs[0]))
    with torch.set_grad_enabled(grad), SeenOperators() as computed:
        out = model(*inputs)
    assert {"ne", "where"} & {*computed.names}  # the masks that layers read
    assert "logical_or" not in computed.names
    np.testing.assert_allclose(flat(out)[0].detach(), case.outputs[0][0], atol=1e-5)


def test_the_parts_of_heads_have_keras_names() -> None:
    model = build(fixture("keras-3.15.1/heads_masks.keras").spec)
    names = {name.rpartition("multi_head_attention.")[2] for name in model.state_dict()}
    parts = ("query", "key", "value", "attention_output")
    assert {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")} <= names


# ---- laws ---------------------------------------------------------------------------------------


def test_equal_keys_share_attention_equally() -> None:
    """With all keys alike the output is the mean of the values that are not masked."""
    module = attention.Attention(None, causal=False)
    query, value = torch.from_numpy(values(2, 7, 3)), torch.from_numpy(values(2, 5, 3, seed=1))
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])
    y = module((query, value, torch.ones_like(value)), (None, mask))
    weights = mask / mask.sum(1, keepdim=True)
    torch.testing.assert_close(y, (weights.unsqueeze(2) * value).sum(1, keepdim=True).expand_as(y))


def test_a_merge_does_not_depend_on_what_is_masked_out() -> None:
    """Since Keras 3.4, where all inputs have masks."""
    masks = (torch.tensor([[True, False, True]]), torch.tensor([[False, True, True]]))
    a, b = torch.from_numpy(values(1, 3, 2)), torch.from_numpy(values(1, 3, 2, seed=1))
    for name in ("Multiply", "Maximum", "Minimum"):
        merge = merging.Merge(name)
        pairs = zip((a, b), masks, strict=True)
        other = tuple(torch.where(mask.unsqueeze(2), x, 99.0) for x, mask in pairs)
        torch.testing.assert_close(merge((a, b), masks), merge(other, masks))


def test_the_cases_of_this_page_are_there() -> None:
    """In every generation that has the layers: a matrix cannot shrink unnoticed."""
    labels = {f"{entry['label']} {entry['case']}" for entry in ENTRIES.values()}
    for label in ("keras-2.2.4", "keras-2.3.1", "tf.keras-2.15.0", "keras-3.15.1"):
        for case in ("graph_seq2seq", "graph_siamese", "graph_nested_twice", "merge_dot"):
            assert f"{label} {case}" in labels
    for label in ("tf.keras-2.4.0", "tf.keras-2.10.0", "tf.keras-2.15.0", "keras-3.15.1"):
        assert f"{label} heads_masks" in labels
        assert f"{label} attention_additive" in labels
