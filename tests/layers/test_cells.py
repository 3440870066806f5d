"""RNN over cells, stacks of cells and convolutional LSTMs: numbers, refusals, names of weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import FIXTURES, changed_config, k2t
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_parity import assert_same, by_reference, by_torch, masks, ruled
from sampling import examples
from specs import (
    CELLS,
    KERAS2,
    MERGE_MODES,
    RULES,
    B,
    F,
    H,
    T,
    bi,
    describe,
    layer,
    layer_of_settings,
    recurrent_call,
    rnn,
    values,
    with_options,
)
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedOptionError, UsageError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.convolution import ConvLSTM
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.cells import infer_mask_rule
from keras2torch_birnn.readers.config.generations import generation_of, options_of, rule_of
from keras2torch_birnn.rnn.cell_kind import unwrap
from keras2torch_birnn.rnn.custom_cell import StackedRNN
from keras2torch_birnn.schema import SCHEMA, cells_in_order
from keras2torch_birnn.schema.custom_cells import states_of
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

# ---- specs -------------------------------------------------------------------------------------


def cell(kind: str, units: int, features: int, seed: int, **config: Any) -> LayerSpec:
    """A cell with the weights of its layer."""
    of_layer = rnn(kind, units, features, seed, **config)
    options = SCHEMA[f"{of_layer.class_name}Cell"].options
    kept = {key: of_layer.config[key] for key in ("trainable", *options)}
    return LayerSpec(f"{of_layer.class_name}Cell", f"cell_{seed}", kept, of_layer.weights)


def over(cells: tuple[LayerSpec, ...], states: str = "first cell first", **loop: Any) -> LayerSpec:
    """An RNN over one cell, or over a stack of them."""
    inner = cells[0]
    if len(cells) > 1:
        parts = {str(i): one for i, one in enumerate(cells)}
        inner = layer_of_settings("StackedRNNCells", "stack", {"states": states}, parts=parts)
    options = {"return_sequences": True, "masked_output": "zeros", **loop}
    return layer("RNN", "rnn", cell=inner, **options)


def conv_lstm(rank: int, seed: int = 0, **config: Any) -> LayerSpec:
    """A ConvLSTM with random weights over images of 7 x 6 x 5 points and 2 channels."""
    rng, filters = np.random.default_rng(seed), 3
    options = {
        "filters": filters,
        "kernel_size": (2, 3, 2)[:rank],
        "recurrent_activation": "sigmoid",
        "masked_output": "zeros",
        **config,
    }
    size = tuple(options["kernel_size"])
    weights = {
        "kernel": rng.normal(size=(*size, 2, 4 * filters)),
        "recurrent_kernel": rng.normal(size=(*size, filters, 4 * filters)) / 3,
        "bias": rng.normal(size=4 * filters),
    }
    if not options.get("use_bias", True):
        del weights["bias"]
    return layer(f"ConvLSTM{rank}D", weights=weights, **options)


def image(rank: int, *, channels_first: bool = False, batch: int = B, steps: int = 4) -> Array:
    size = (7, 6, 5)[:rank]
    return values(batch, steps, *((2, *size) if channels_first else (*size, 2)))


# ---- numbers -----------------------------------------------------------------------------------


@st.composite
def any_loop(draw: st.DrawFn, rules: tuple[str, ...]) -> dict[str, Any]:
    options = {
        key: draw(st.booleans()) for key in ("return_sequences", "return_state", "go_backwards")
    }
    return {**options, "masked_output": draw(st.sampled_from(rules))}


@st.composite
def any_stack(draw: st.DrawFn, seed: int, last: int, **loop: Any) -> LayerSpec:
    """One to three cells of any kind; the rule of the first state needs equal widths."""
    count = draw(st.integers(1, 3))
    order = draw(st.sampled_from(("first cell first", "last cell first")))
    first = loop["masked_output"] == "previous_first_state"
    if loop["masked_output"] == "previous_state" or first:
        # What Keras shows is the first of all states: the last cell's, or one of the same width.
        order = "first cell first" if first else "last cell first"
    widths = [last if first or i == count - 1 else (2, 7, 11)[i] for i in range(count)]
    if first and count == 1:
        loop["masked_output"] = "previous_state"
    sizes = zip(widths, (F, *widths), strict=False)
    cells = [
        cell(draw(st.sampled_from(CELLS)), units, features, seed + i)
        for i, (units, features) in enumerate(sizes)
    ]
    return over(tuple(cells), order, **loop)


def first_states(halves: tuple[LayerSpec, ...]) -> tuple[Array, ...]:
    """Random first states in Keras' order, none where Keras cannot split them into halves."""
    shapes = []
    for half in halves:
        cells = cells_in_order(half.parts["cell"])
        listed = states_of(half.parts["cell"])
        shapes.append([cells[i].config["units"] for i, count in listed for _ in range(count)])
    if len({len(own) for own in shapes}) > 1:
        return ()
    widths = [size for own in shapes for size in own]
    return tuple(values(B, size, seed=50 + i) for i, size in enumerate(widths))


@settings(max_examples=examples(120), deadline=None)
@given(st.data())
def test_every_stack_of_cells_gives_what_the_reference_gives(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**20))
    loop = data.draw(any_loop((*RULES, "previous_first_state")))
    spec = data.draw(any_stack(seed, H, **loop))
    halves = (spec,)
    if data.draw(st.booleans()):
        other = data.draw(any_stack(seed + 9, H, **loop))
        spec = bi(spec, other, data.draw(st.sampled_from(MERGE_MODES)))
        halves = tuple(spec.parts.values())
    spec = ruled(spec)
    mask, x = data.draw(masks(B, T)), values(B, T, F)
    state = first_states(halves) if data.draw(st.booleans()) else ()
    assert_same(by_torch(convert_layer(spec), x, mask, state), by_reference(spec, x, mask, state))


@settings(max_examples=examples(80), deadline=None)
@given(st.data())
def test_every_convolutional_lstm_gives_what_the_reference_gives(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    loop = data.draw(any_loop(RULES))
    first = data.draw(st.booleans())
    dilated = data.draw(st.booleans())
    options = {
        **loop,
        "padding": data.draw(st.sampled_from(("valid", "same"))),
        "data_format": "channels_first" if first else "channels_last",
        "strides": (1,) * rank if dilated else data.draw(st.sampled_from((1, 2))),
        "dilation_rate": 2 if dilated else 1,
        "use_bias": data.draw(st.booleans()),
        "activation": data.draw(st.sampled_from(("tanh", "relu", "softmax"))),
        "recurrent_activation": data.draw(st.sampled_from(("sigmoid", "hard_sigmoid_0.2"))),
    }
    spec = conv_lstm(rank, data.draw(st.integers(0, 2**20)), **options)
    if data.draw(st.booleans()):
        twin = conv_lstm(rank, 7, **options)
        spec = bi(spec, twin, data.draw(st.sampled_from(MERGE_MODES)))
    spec = ruled(spec)
    mask, x = data.draw(masks(B, 4)), image(rank, channels_first=first)
    state: tuple[Array, ...] = ()
    if data.draw(st.booleans()):
        half = spec.parts.get("forward_layer", spec)
        returned = with_options(half, return_state=True)
        shape = by_reference(returned, x, None, ())[1].shape
        count = 4 if spec.parts else 2
        state = tuple(values(*shape, seed=60 + i) for i in range(count))
    assert_same(by_torch(convert_layer(spec), x, mask, state), by_reference(spec, x, mask, state))


@pytest.mark.parametrize("kind", CELLS)
def test_an_rnn_over_one_cell_is_the_layer_of_that_cell(kind: str) -> None:
    """Module, names and engine are equal."""
    one = over((cell(kind, H, F, 3),))
    itself = rnn(kind, H, F, 3, return_sequences=True)
    module, twin = convert_layer(one), convert_layer(itself)
    assert type(module) is type(twin)
    assert module.state_dict().keys() == twin.state_dict().keys()
    assert repr(module) == repr(twin)
    assert unwrap(one).config.items() <= itself.config.items() | {("trainable", True)}
    x = values(B, T, F)
    assert_same(by_torch(module, x, None, ()), by_torch(twin, x, None, ()))


def test_two_alike_rnns_over_cells_are_one_bidirectional_module() -> None:
    pair = bi(over((cell("LSTM", H, F, 1),)), over((cell("LSTM", H, F, 2),)))
    module = convert_layer(pair)
    assert isinstance(module, nn.LSTM)
    assert module.bidirectional


def test_cells_of_a_stack_are_torchs_own_modules() -> None:
    stack = over((cell("LSTM", 2, F, 1), cell("GRU", H, 2, 2), cell("GRU before", 3, H, 3)))
    module = convert_layer(stack)
    assert isinstance(module, StackedRNN)
    assert [isinstance(m, nn.RNNBase) for m in module.cells] == [True, True, False]
    assert "cells.1.weight_hh_l0" in module.state_dict()


def test_initial_states_of_another_number_than_a_stack_has_are_refused() -> None:
    module = convert_layer(over((cell("LSTM", 2, F, 1), cell("GRU", H, 2, 2))))
    x, states = torch.randn(B, T, F).double(), [torch.randn(B, n).double() for n in (2, 2, H)]
    module(x, None, states)
    for wrong in (states[:2], [*states, states[0]]):
        with pytest.raises(UsageError, match=f"3 states are expected, found {len(wrong)}"):
            module(x, None, wrong)


# ---- masks that Keras cannot take --------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "x", "match"),
    [
        (conv_lstm(2, masked_output="fails"), image(2), "ConvLSTM2D is not supported"),
        (
            over((cell("GRU", 2, F, 1), cell("GRU", H, 2, 2)), masked_output="fails"),
            values(B, T, F),
            "cells of different width is not supported",
        ),
    ],
)
def test_a_mask_that_fails_in_keras_is_refused(spec: LayerSpec, x: Array, match: str) -> None:
    wrapped = bi(spec, spec)
    for one in (spec, wrapped):
        with pytest.raises(UnsupportedOptionError, match=match):
            build(ModelSpec(recurrent_call(one), KERAS2))
        build(ModelSpec(recurrent_call(one, masked=False), KERAS2))


# ---- training ----------------------------------------------------------------------------------


def test_a_frozen_cell_of_a_stack_is_frozen_alone() -> None:
    frozen = with_options(cell("LSTM", 2, F, 1), trainable=False)
    module = convert_layer(over((frozen, cell("GRU", H, 2, 2))))
    assert isinstance(module, StackedRNN)
    learns = [[p.requires_grad for p in m.parameters()] for m in module.cells]
    assert not any(learns[0])
    assert all(learns[1])


@pytest.mark.parametrize("frozen", ["forward", "backward"])
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: over((cell("LSTM", 2, F, seed), cell("GRU", H, 2, seed + 1))),
        lambda seed: conv_lstm(2, seed),
    ],
    ids=["stacked cells", "ConvLSTM2D"],
)
def test_a_frozen_half_of_a_pair_is_frozen_alone(
    frozen: str, make: Callable[[int], LayerSpec]
) -> None:
    halves = {"forward": make(1), "backward": make(5)}
    halves[frozen] = with_options(halves[frozen], trainable=False)
    trained = {
        name for name, p in convert_layer(bi(**halves)).named_parameters() if p.requires_grad
    }
    (other,) = halves.keys() - {frozen}
    assert trained
    assert all(name.startswith(other) for name in trained)


def test_a_convolutional_lstm_drops_while_training_alone() -> None:
    spec = conv_lstm(2, dropout=0.5, recurrent_dropout=0.5)
    module, x = convert_layer(spec), torch.from_numpy(image(2))
    assert isinstance(module, ConvLSTM)
    first, second = module.train()(x), module(x)
    assert not torch.equal(first, second)
    calm = module.eval()(x)
    assert torch.equal(calm, module(x))
    assert torch.equal(calm, convert_layer(conv_lstm(2))(x))


@pytest.mark.parametrize("names", [("dropout",), ("recurrent_dropout",)])
def test_each_gate_of_a_convolutional_lstm_has_its_own_mask_for_all_steps(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of ones leave everything as it is; their number and their shape are Keras'."""
    shapes: list[tuple[int, ...]] = []

    def ones(x: Tensor, rate: float) -> Tensor:
        assert rate == 0.5
        shapes.append(tuple(x.shape))
        return torch.ones_like(x)

    monkeypatch.setattr("keras2torch_birnn.layers.convolution.functional.dropout", ones)
    x = torch.from_numpy(image(1))
    module = convert_layer(conv_lstm(1, **dict.fromkeys(names, 0.5))).train()
    torch.testing.assert_close(module(x), convert_layer(conv_lstm(1))(x))
    assert shapes == [(B, 7, 2) if names == ("dropout",) else (B, 6, 3)] * 4


def test_gradients_reach_every_parameter() -> None:
    for spec, x in (
        (conv_lstm(2), image(2)),
        (over((cell("LSTM", 2, F, 1), cell("GRU", H, 2, 2))), values(B, T, F)),
    ):
        module = convert_layer(spec)
        module(torch.from_numpy(x)).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) is parameter.requires_grad, name
        assert sum(p.grad is not None for p in module.parameters()) >= 3


# ---- what the command says ---------------------------------------------------------------------

STACKED = FIXTURES / "tf.keras-2.15.0" / "stacked.h5"
PLAIN = FIXTURES / "tf.keras-2.15.0" / "cells_plain.h5"
CONV = FIXTURES / "tf.keras-2.15.0" / "conv_lstm_2d.h5"

Change = Callable[[dict[str, Any]], None]


def changed(source: Path, target: Path, change: Change) -> Path:
    """A copy of an .h5 file whose first layer's entry is changed."""

    def of_model(model: dict[str, Any]) -> None:
        change(next(e for e in model["config"]["layers"] if e["class_name"] != "InputLayer"))

    return changed_config(source, target, of_model)


def test_inspect_shows_cells_and_their_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    run = k2t("inspect", STACKED, "--json")
    assert run.code == 0
    rows = {row["path"]: row for row in json.loads(run.out)["layers"]}
    engines = {path: row["engine"] for path, row in rows.items()}
    assert engines["rnn_1"] == "fused"
    assert rows["rnn_1"]["reason"] == "cells of a stack: nn.LSTM / nn.GRU / nn.RNN"
    assert engines["rnn"] == "stack"
    assert engines["rnn_1/cell/0"] == "part"
    conv = json.loads(k2t("inspect", CONV, "--json").out)["layers"]
    assert {row["engine"] for row in conv} == {"loop"}
    assert {row["reason"] for row in conv} == {"torch has no convolutional LSTM"}


def _cell_class(name: str) -> Change:
    def change(entry: dict[str, Any]) -> None:
        entry["config"]["cell"]["class_name"] = name

    return change


def _in_stack(name: str) -> Change:
    def change(entry: dict[str, Any]) -> None:
        entry["config"]["cell"]["config"]["cells"][1]["class_name"] = name

    return change


def _stack_in_stack(entry: dict[str, Any]) -> None:
    stack = entry["config"]["cell"]
    stack["config"]["cells"][0] = json.loads(json.dumps(stack))


def _option(key: str, value: Any, *way: str) -> Change:
    def change(entry: dict[str, Any]) -> None:
        config = entry["config"]
        for step in way:
            config = config[step]["config"]
        config[key] = value

    return change


@pytest.mark.parametrize(
    ("source", "change", "place", "found"),
    [
        (PLAIN, _cell_class("MyCell"), "rnn_4/cell", "cell class MyCell is not supported"),
        (PLAIN, _cell_class("Dense"), "rnn_4/cell", "cell class Dense is not supported"),
        (
            STACKED,
            _in_stack("MyCell"),
            "rnn_1/cell/1",
            "cell class MyCell is not supported",
        ),
        (
            STACKED,
            _stack_in_stack,
            "rnn_1/cell/0",
            "cell class StackedRNNCells is not supported",
        ),
        (PLAIN, _option("time_major", True), "rnn_4", "time_major=True is not supported"),
        (PLAIN, _option("projection", 5), "rnn_4", "projection=5 is unknown"),
        (
            PLAIN,
            _option("projection", 5, "cell"),
            "rnn_4/cell",
            "LSTMCell option projection=5 is unknown",
        ),
        (
            STACKED,
            _option("reverse_state_order", True, "cell"),
            "rnn_1/cell",
            "reverse_state_order=True is unknown",
        ),
        (CONV, _option("padding", "causal"), "conv_lstm2d_2", "padding='causal' is not supported"),
        (CONV, _option("groups", 2), "conv_lstm2d_2", "groups=2 is unknown"),
    ],
)
def test_what_a_recurrent_layer_may_not_hold_is_refused_with_its_place(
    source: Path, change: Change, place: str, found: str, tmp_path: Path
) -> None:
    run = k2t("convert", changed(source, tmp_path / "m.h5", change), tmp_path / "out.pt")
    assert run.code == 4
    (line,) = run.lines("error")
    assert f": {place}" in line
    assert found in line
    assert not (tmp_path / "out.pt").exists()


def test_a_users_cell_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = changed(PLAIN, tmp_path / "m.h5", _cell_class("MyCell"))
    (line,) = k2t("convert", path, tmp_path / "out.pt").lines("error")
    assert "LSTMCell, GRUCell, SimpleRNNCell, StackedRNNCells" in line
    assert "--plugin" in line


def _without(key: str, *way: str) -> Change:
    def change(entry: dict[str, Any]) -> None:
        config = entry["config"]
        for step in way:
            config = config[step]["config"]
        del config[key]

    return change


@pytest.mark.parametrize(
    ("source", "change", "found"),
    [
        (PLAIN, _without("cell"), "not as Keras writes it"),
        (STACKED, _without("cell"), "not as Keras writes it"),
        (PLAIN, _option("cell", []), "no cell's configuration"),
        (PLAIN, _option("cell", {"class_name": 7}), "no cell's configuration"),
        (STACKED, _without("cells", "cell"), "a stack without cells"),
        (STACKED, _option("cells", [], "cell"), "a stack without cells"),
        (STACKED, _option("cells", {"a": 1}, "cell"), "a stack without cells"),
        (STACKED, _option("cells", [7], "cell"), "no cell's configuration"),
    ],
)
def test_a_broken_cell_is_broken_input(
    source: Path, change: Change, found: str, tmp_path: Path
) -> None:
    run = k2t("convert", changed(source, tmp_path / "m.h5", change), tmp_path / "out.pt")
    assert run.code == 3
    assert any(found in line for line in run.lines("error"))


# ---- as TensorFlow.js writes it ----------------------------------------------------------------


def _as_javascript_writes(entry: dict[str, Any]) -> None:
    """``RNN.getConfig``: {...options of the cell, ...of the layer, ...of the RNN, cell}."""
    config = entry["config"]
    entry["config"] = {**json.loads(json.dumps(config["cell"]["config"])), **config}


@pytest.mark.parametrize("source", [PLAIN, STACKED], ids=lambda path: path.stem)
def test_an_rnn_that_repeats_the_options_of_its_cell_is_read(source: Path, tmp_path: Path) -> None:
    path = changed(source, tmp_path / "m.h5", _as_javascript_writes)
    expected, found = read_model(source), read_model(path)
    assert describe(found) == describe(expected)
    assert k2t("convert", path, tmp_path / "out.pt").code == 0
    assert k2t("verify", source, tmp_path / "out.pt", "--against", "reference").code == 0


@pytest.mark.parametrize(
    ("source", "key", "value"), [(PLAIN, "units", 4), (STACKED, "cells", []), (PLAIN, "cells", [])]
)
def test_an_rnn_that_contradicts_its_cell_is_refused(
    source: Path, key: str, value: Any, tmp_path: Path
) -> None:
    def change(entry: dict[str, Any]) -> None:
        _as_javascript_writes(entry)
        entry["config"][key] = value

    run = k2t("convert", changed(source, tmp_path / "m.h5", change), tmp_path / "out.pt")
    assert run.code == 4
    assert f"RNN option {key}={value} is unknown" in run.err


def test_a_cell_outside_an_rnn_is_refused(tmp_path: Path) -> None:
    def change(entry: dict[str, Any]) -> None:
        cell_entry = entry["config"]["cell"]
        entry["class_name"], entry["config"] = cell_entry["class_name"], cell_entry["config"]

    run = k2t("convert", changed(PLAIN, tmp_path / "m.h5", change), tmp_path / "out.pt")
    assert run.code == 4
    assert "LSTMCell outside an RNN" in run.err


def test_a_stack_of_an_old_tensorflow_is_refused(tmp_path: Path) -> None:
    path = changed(STACKED, tmp_path / "m.h5", lambda entry: None)
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = "2.1.6-tf"
    run = k2t("convert", path, tmp_path / "out.pt")
    assert run.code == 4
    assert "StackedRNNCells of TensorFlow before 1.13 was never compared" in run.err


@pytest.mark.parametrize(
    ("version", "units", "rule"),
    [
        ("2.1.6", (5, 7), "fails"),
        ("2.1.6", (7, 7), "previous_state"),
        ("2.2.2", (5, 7), "previous_state"),
        ("2.2.4", (5, 7), "fails"),
        ("2.2.4", (7, 7), "previous_first_state"),
        ("2.3.1", (5, 7), "previous_output"),
    ],
)
def test_what_stands_at_masked_steps_of_a_stack_is_the_versions(
    version: str, units: tuple[int, int], rule: str
) -> None:
    generation = generation_of(version)
    cells = [LayerSpec("GRUCell", f"c{i}", {"units": size}) for i, size in enumerate(units)]
    parts = {str(i): one for i, one in enumerate(cells)}
    stack = layer_of_settings(
        "StackedRNNCells", "s", options_of("StackedRNNCells", generation), parts=parts
    )
    config = {"masked_output": rule_of("masked_output", generation)}
    spec = layer_of_settings("RNN", "rnn", config, parts={"cell": stack})
    assert infer_mask_rule(spec, generation).semantics["masked_output"] == rule


@pytest.mark.parametrize("engine", ["fused", "native"])
def test_no_kernel_computes_a_convolutional_lstm(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", engine)
    with pytest.raises(UsageError, match="no kernel of a convolutional LSTM"):
        convert_layer(conv_lstm(2))
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "loop")
    convert_layer(conv_lstm(2))
