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
from exported import LOOPS, assert_exported, many_layers, write_onnx
from sampling import rest_thorough
from specs import CELLS, H_BACK, MERGE_MODES, RULES, H, bi, rnn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.exporting import onnx_activations
from keras2torch_birnn.functional.activations import FUNCTIONS, activation
from keras2torch_birnn.spec import LayerSpec


@pytest.mark.parametrize("masked", [False, True])
def test_every_cell_and_merge_is_exact_at_any_size(masked: bool, tmp_path: Path) -> None:
    """Every cell with two merges with a mask, and with two without; every merge, either way."""
    layers: dict[str, LayerSpec] = {}
    outputs: dict[str, int] = {}
    wanted: Counter[str] = Counter()
    pairs = product(enumerate(CELLS), enumerate(MERGE_MODES))
    for (row, cell), (column, merge) in pairs:
        if (column - row - 2 * masked) % 5 < 2:
            halves = [rnn(cell, seed=row + s, return_sequences=row < 2) for s in (column, 100)]
            name = f"{cell.replace(' ', '_')}_{merge}"
            layers[name], outputs[name] = bi(*halves, merge), 1 if merge else 2
            wanted[{"SimpleRNN": "RNN"}.get(cell, cell.partition(" ")[0])] += 1
    graph = assert_exported(many_layers(layers, outputs, masked=masked), tmp_path / "m.onnx")
    kinds = Counter(node.op_type for node in graph.node)
    # Both directions are one node, or behind a mask two.
    assert all(count <= kinds[kind] <= (1 + masked) * count for kind, count in wanted.items())
    assert all(
        len(node.input) < 5 or not node.input[4] for node in graph.node if "R" in node.op_type
    )


def test_every_rule_of_masked_steps_is_kept(tmp_path: Path) -> None:
    layers = {}
    for rule in RULES:
        halves = [rnn("LSTM", seed=s, return_sequences=True, masked_output=rule) for s in (0, 1)]
        layers[f"bi_{rule}"] = bi(*halves, "concat")
        layers[f"one_{rule}"] = rnn("GRU", seed=2, masked_output=rule)
        layers[f"back_{rule}"] = rnn(
            "SimpleRNN", seed=3, return_sequences=True, go_backwards=True, masked_output=rule
        )
    assert_exported(many_layers(layers, dict.fromkeys(layers, 1), masked=True), tmp_path / "m.onnx")


@pytest.mark.parametrize("masked", [False, True])
def test_states_go_in_and_out(masked: bool, tmp_path: Path) -> None:
    """The final c of an LSTM is carried through masked steps, in a row without any other, too."""
    layers, outputs = {}, {}
    for gate in ("sigmoid", "hard_sigmoid_0.2"):
        for back in (False, True):
            name = f"lstm_{gate[:4]}_{back}"
            layers[name] = rnn(
                "LSTM",
                seed=len(layers),
                return_sequences=back,
                return_state=True,
                go_backwards=back,
                recurrent_activation=gate,
                activation="relu" if back else "tanh",
            )
            outputs[name] = 3
    spec = many_layers(layers, outputs, masked=masked, states=(H, H))
    graph = assert_exported(spec, tmp_path / "m.onnx")
    assert Counter(node.op_type for node in graph.node)["LSTM"] == 4


def test_states_of_both_directions_keep_their_order(tmp_path: Path) -> None:
    layers, outputs = {}, {}
    for cell, states in (("LSTM", 2), ("GRU", 1)):
        halves = [rnn(cell, seed=s, return_sequences=True, return_state=True) for s in (0, 1)]
        layers[cell], outputs[cell] = bi(*halves, "sum"), 1 + 2 * states
    assert_exported(many_layers(layers, outputs, masked=True), tmp_path / "m.onnx")


def test_halves_that_differ_are_two_nodes(tmp_path: Path) -> None:
    halves = (
        rnn("LSTM", seed=0, return_sequences=True),
        rnn("GRU", units=H_BACK, seed=1, return_sequences=True),
    )
    spec = many_layers({"pair": bi(*halves, "concat")}, {"pair": 1}, masked=True)
    graph = assert_exported(spec, tmp_path / "m.onnx")
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["LSTM"], kinds["GRU"]) == (1, 1)


KNOWN: tuple[Any, ...] = (
    *("sigmoid", "tanh", "relu", "linear", "hard_sigmoid_0.2", "hard_sigmoid_1/6"),
    *("sparse_sigmoid", "elu", "celu", "leaky_relu", "softsign"),
    {"name": "relu", "negative_slope": 0.3},
    {"name": "leaky_relu", "negative_slope": 0.1},
    {"name": "elu", "alpha": 0.7},
)


def test_every_known_activation_is_what_onnx_computes(tmp_path: Path) -> None:
    layers = {}
    for number, name in enumerate(KNOWN):
        layers[f"a{number}"] = rnn("LSTM", seed=number, activation=name, return_sequences=True)
        gates = rnn("GRU", seed=number, recurrent_activation=name)
        # Gates without bounds would make the state grow, and rounding with it.
        small = {key: array / 4 for key, array in gates.weights.items()}
        layers[f"b{number}"] = replace(gates, weights=small)
        layers[f"c{number}"] = rnn("SimpleRNN", seed=number, activation=name)
    assert_exported(
        many_layers(layers, dict.fromkeys(layers, 1), masked=False), tmp_path / "m.onnx"
    )


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {str(n) for n in KNOWN}))
def test_other_activations_have_no_onnx_form(name: str) -> None:
    assert onnx_activations.to_onnx(activation(name)) is None


def test_an_option_that_onnx_lacks_is_refused() -> None:
    for options in (
        {"name": "relu", "max_value": 6.0},
        {"name": "relu", "threshold": 0.5},
        {"name": "celu", "alpha": 0.7},
    ):
        assert onnx_activations.to_onnx(activation(options)) is None


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


@pytest.mark.parametrize("cell", rest_thorough(["LSTM", "GRU before"], ("LSTM",)))
def test_the_number_of_nodes_does_not_depend_on_the_steps(cell: str, tmp_path: Path) -> None:
    counts = set()
    for steps in (7, 70, None):
        halves = [
            rnn(cell, seed=s, return_sequences=True, recurrent_activation="hard_sigmoid_0.2")
            for s in (0, 1)
        ]
        spec = many_layers({"bi": bi(*halves, "mul")}, {"bi": 1}, masked=False, steps=steps)
        file = tmp_path / f"{steps}.onnx"
        write_onnx(build_model(spec), file)
        graph = onnx.load(file).graph
        assert not LOOPS & {node.op_type for node in graph.node}
        counts.add(len(graph.node))
    assert len(counts) == 1
    assert counts.pop() < 12


# ---- refused -------------------------------------------------------------------------------------


def refused(one: LayerSpec, outputs: int, tmp_path: Path, *, masked: bool = False) -> None:
    spec = many_layers({"it": one}, {"it": outputs}, masked=masked)
    write_onnx(build_model(spec), tmp_path / "m.onnx")


def test_an_unknown_activation_is_refused_by_layer_and_option(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedOptionError, match=r"^it: recurrent_activation gelu has no ONNX form"
    ):
        refused(rnn("GRU", recurrent_activation="gelu"), 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stateful_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"^it: stateful=True has no ONNX form"):
        refused(rnn("GRU", stateful=True), 1, tmp_path)


def test_a_masked_c_behind_gates_that_cannot_close_is_refused(tmp_path: Path) -> None:
    one = rnn("LSTM", return_state=True, recurrent_activation="tanh")
    with pytest.raises(
        UnsupportedOptionError, match="only where recurrent_activation is a sigmoid"
    ):
        refused(one, 3, tmp_path, masked=True)


def test_a_recurrent_layer_in_float64_is_refused(tmp_path: Path) -> None:
    spec = many_layers({"it": rnn("GRU")}, {"it": 1}, masked=False)
    with pytest.raises(UnsupportedOptionError, match="in float64: ONNX Runtime computes them in"):
        write_onnx(build_model(spec).double(), tmp_path / "m.onnx")


def test_all_refusals_are_listed(tmp_path: Path) -> None:
    layers = {"a": rnn("GRU", activation="gelu"), "b": rnn("LSTM", activation="silu")}
    spec = many_layers(layers, {"a": 1, "b": 1}, masked=False)
    with pytest.raises(
        UnsupportedOptionError, match=r"a: activation gelu(?s:.)*b: activation silu"
    ):
        write_onnx(build_model(spec), tmp_path / "m.onnx")
