"""Recurrent layers in ONNX: every cell, merge, mask, rule, activation and state, at any size."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import LOOPS, assert_exported, assert_replaced, many_layers, write_onnx
from specs import CELLS, H_BACK, MERGE_MODES, RULES, H, bi, rnn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.exporting import onnx_activations
from keras2torch_birnn.rnn.activations import FUNCTIONS, activation
from keras2torch_birnn.spec import LayerSpec


@pytest.mark.parametrize("masked", [False, True])
def test_every_cell_and_merge_is_exact_at_any_size(masked: bool) -> None:
    layers: dict[str, LayerSpec] = {}
    outputs: dict[str, int] = {}
    wanted: Counter[str] = Counter()
    for (row, cell), (column, merge) in product(enumerate(CELLS), enumerate(MERGE_MODES)):
        every = (row + column) % 2 == 0
        halves = [rnn(cell, seed=row + s, return_sequences=every) for s in (column, 100)]
        name = f"{cell.replace(' ', '_')}_{merge}"
        layers[name], outputs[name] = bi(*halves, merge), 1 if merge else 2
        # Both directions are one node, or behind a mask two.
        wanted[{"SimpleRNN": "RNN"}.get(cell, cell.partition(" ")[0])] += 1 + masked
    assert assert_replaced(many_layers(layers, outputs, masked=masked)) == wanted


@pytest.mark.parametrize("every", [False, True])
def test_every_rule_of_masked_steps_is_kept(every: bool) -> None:
    layers = {}
    for rule in RULES:
        options: dict[str, Any] = {"return_sequences": every, "masked_output": rule}
        halves = [rnn("LSTM", seed=s, **options) for s in (0, 1)]
        layers[f"bi_{rule}"] = bi(*halves, "concat")
        layers[f"one_{rule}"] = rnn("GRU", seed=2, **options)
        layers[f"back_{rule}"] = rnn("SimpleRNN", seed=3, go_backwards=True, **options)
    assert_replaced(many_layers(layers, dict.fromkeys(layers, 1), masked=True))


@pytest.mark.parametrize("masked", [False, True])
def test_states_go_in_and_out(masked: bool) -> None:
    """The final c of an LSTM is carried through masked steps, in a row without any other, too."""
    layers, outputs = {}, {}
    for gate, back, rule in product(("sigmoid", "hard_sigmoid_0.2"), (False, True), RULES):
        name = f"lstm_{gate[:4]}_{back}_{rule}"
        layers[name] = rnn(
            "LSTM",
            seed=len(layers),
            return_sequences=back,
            return_state=True,
            go_backwards=back,
            recurrent_activation=gate,
            activation="relu" if back else "tanh",
            masked_output=rule,
        )
        outputs[name] = 3
    assert_replaced(many_layers(layers, outputs, masked=masked, states=(H, H)))


@pytest.mark.parametrize(("cell", "states"), [("LSTM", 2), ("GRU", 1)])
def test_states_of_both_directions_keep_their_order(cell: str, states: int) -> None:
    halves = [rnn(cell, seed=s, return_sequences=True, return_state=True) for s in (0, 1)]
    for masked, given in product((False, True), ((), (H,) * 2 * states)):
        layers, outputs = {cell: bi(*halves, "sum")}, {cell: 1 + 2 * states}
        assert_replaced(many_layers(layers, outputs, masked=masked, states=given))


def test_halves_that_differ_are_two_nodes() -> None:
    halves = (
        rnn("LSTM", seed=0, return_sequences=True),
        rnn("GRU", units=H_BACK, seed=1, return_sequences=True),
    )
    spec = many_layers({"pair": bi(*halves, "concat")}, {"pair": 1}, masked=True)
    assert assert_replaced(spec) == {"LSTM": 1, "GRU": 1}


# ---- the same as graphs --------------------------------------------------------------------------


def without_lengths(graph: Any) -> Counter[str]:
    """Count the recurrent nodes of a graph, of which none takes lengths: OpenVINO ignores them."""
    nodes = [node for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    assert all(len(node.input) < 5 or not node.input[4] for node in nodes)
    return Counter(node.op_type for node in nodes)


@pytest.mark.thorough
def test_a_graph_under_a_mask_is_exact_at_any_size(tmp_path: Path) -> None:
    """A closed LSTM with its states, and what each rule and merge adds to a node."""
    options: dict[str, Any] = {"return_sequences": True, "masked_output": "previous_output"}
    pairs = {
        "lstm": [rnn("LSTM", seed=s, return_sequences=True, return_state=True) for s in (0, 1)],
        "gru": [rnn("GRU", seed=s, **options) for s in (2, 3)],
        "last": [rnn("SimpleRNN", seed=s, masked_output="zeros_unreversed") for s in (4, 5)],
    }
    merges = {"lstm": "sum", "gru": "concat", "last": None}
    layers = {name: bi(*halves, merges[name]) for name, halves in pairs.items()}
    spec = many_layers(layers, {"lstm": 5, "gru": 1, "last": 2}, masked=True)
    graph = assert_exported(spec, tmp_path / "m.onnx")
    assert without_lengths(graph) == {"LSTM": 2, "GRU": 2, "RNN": 2}


@pytest.mark.thorough
def test_a_graph_with_states_under_a_mask_is_exact_at_any_size(tmp_path: Path) -> None:
    options: dict[str, Any] = {"go_backwards": True, "masked_output": "previous_state"}
    one = rnn("GRU before", return_sequences=True, return_state=True, **options)
    spec = many_layers({"gru": one}, {"gru": 2}, masked=True, states=(H,))
    assert without_lengths(assert_exported(spec, tmp_path / "m.onnx")) == {"GRU": 1}


@pytest.mark.thorough
def test_a_graph_without_masks_is_exact_at_any_size(tmp_path: Path) -> None:
    """With numbers among a node's activations."""
    options: dict[str, Any] = {"activation": {"name": "elu", "alpha": 0.7}}
    layers = {
        "every": bi(*(rnn("GRU", seed=s, return_sequences=True) for s in (0, 1)), "mul"),
        "last": bi(*(rnn("SimpleRNN", seed=s, **options) for s in (2, 3)), "ave"),
    }
    spec = many_layers(layers, dict.fromkeys(layers, 1), masked=False)
    assert without_lengths(assert_exported(spec, tmp_path / "m.onnx")) == {"GRU": 1, "RNN": 1}


KNOWN: tuple[Any, ...] = (
    *("sigmoid", "tanh", "relu", "linear", "hard_sigmoid_0.2", "hard_sigmoid_1/6"),
    *("elu", "leaky_relu", "softsign"),
    {"name": "relu", "negative_slope": 0.3},
    {"name": "leaky_relu", "negative_slope": 0.1},
    {"name": "elu", "alpha": 0.7},
)


def test_every_known_activation_is_what_onnx_computes() -> None:
    layers = {}
    for number, name in enumerate(KNOWN):
        layers[f"a{number}"] = rnn("LSTM", seed=number, activation=name, return_sequences=True)
        gates = rnn("GRU", seed=number, recurrent_activation=name)
        # Gates without bounds would make the state grow, and rounding with it.
        small = {key: array / 4 for key, array in gates.weights.items()}
        layers[f"b{number}"] = replace(gates, weights=small)
        layers[f"c{number}"] = rnn("SimpleRNN", seed=number, activation=name)
    assert_replaced(many_layers(layers, dict.fromkeys(layers, 1), masked=False))


OTHERS = (
    *sorted(FUNCTIONS.keys() - {str(name) for name in KNOWN}),
    {"name": "relu", "max_value": 6.0},
    {"name": "relu", "threshold": 0.5},
)


@pytest.mark.parametrize("option", OTHERS, ids=str)
def test_other_activations_have_no_onnx_form(option: Any) -> None:
    assert onnx_activations.to_onnx(activation(option)) is None


def test_softplus_is_refused_because_the_runtime_overflows() -> None:
    """When this fails, ONNX Runtime computes softplus as Keras does, and it can be supported."""
    one = np.ones((1, 1, 1), np.float32)
    node = onnx.helper.make_node(
        "RNN", ["x", "w", "r"], ["y"], activations=["Softplus"], hidden_size=1
    )
    weights = [onnx.numpy_helper.from_array(one * k, name) for name, k in (("w", 1), ("r", 0))]
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y], weights)
    opset = onnx.helper.make_opsetid("", 18)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [session.run(None, {"x": one * v})[0].item() for v in (50, 100)] == [50, np.inf]


@pytest.mark.thorough
def test_the_number_of_nodes_does_not_depend_on_the_steps(tmp_path: Path) -> None:
    counts = set()
    for steps in (7, 70):
        options = {"return_sequences": True, "recurrent_activation": "hard_sigmoid_0.2"}
        halves = [rnn("LSTM", seed=s, **options) for s in (0, 1)]
        spec = many_layers({"bi": bi(*halves, "mul")}, {"bi": 1}, masked=False, steps=steps)
        file = tmp_path / f"{steps}.onnx"
        write_onnx(build_model(spec), file)
        graph = onnx.load(file).graph
        assert not LOOPS & {node.op_type for node in graph.node}
        counts.add(len(graph.node))
    assert len(counts) == 1
    assert counts.pop() < 12


# ---- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "outputs", "words"),
    [
        (
            [rnn("GRU", recurrent_activation="gelu")],
            1,
            "^l0: recurrent_activation gelu has no ONNX form",
        ),
        ([rnn("GRU", stateful=True)], 1, "^l0: stateful=True has no ONNX form"),
        (
            [rnn("LSTM", return_state=True, recurrent_activation="tanh")],
            3,
            "only where recurrent_activation is a sigmoid",
        ),
        (
            [rnn("GRU", activation="gelu"), rnn("LSTM", activation="silu")],
            1,
            r"l0: activation gelu(?s:.)*l1: activation silu",
        ),
    ],
    ids=["activation", "stateful", "a masked c behind gates that cannot close", "all are listed"],
)
def test_what_onnx_lacks_is_refused_by_layer_and_option(
    layers: list[LayerSpec], outputs: int, words: str, tmp_path: Path
) -> None:
    named = {f"l{number}": one for number, one in enumerate(layers)}
    spec = many_layers(named, dict.fromkeys(named, outputs), masked=True)
    with pytest.raises(UnsupportedOptionError, match=words):
        write_onnx(build_model(spec), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_recurrent_layer_in_float64_is_refused(tmp_path: Path) -> None:
    spec = many_layers({"it": rnn("GRU")}, {"it": 1}, masked=False)
    with pytest.raises(UnsupportedOptionError, match="in float64: ONNX Runtime computes them in"):
        write_onnx(build_model(spec).double(), tmp_path / "m.onnx")
