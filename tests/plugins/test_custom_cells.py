"""Cells of a plugin in RNN, StackedRNNCells and Bidirectional: numbers, mutations, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import changed_config, changed_layer, k2t, layer
from plugin_files import (
    ATOL,
    ENTRIES,
    FIXTURES,
    RTOL,
    USERS,
    changed_users,
    convert_and_verify,
    differ,
    gives_what_keras_gave,
    read,
    read_arrays,
    unregister_all,
    write_plugin,
)
from specs import MERGE_MODES, layer_of_settings
from torch import Tensor, nn
from torch_runs import outputs_of

import keras2torch_birnn
from keras2torch_birnn.errors import UnsupportedLayerError, UnsupportedOptionError, UsageError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.layers.running import forget_states
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.readers.config.cells import infer_mask_rule
from keras2torch_birnn.readers.config.generations import generation_of, rule_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.schema.custom_layers import REGISTERED, converts
from keras2torch_birnn.spec import Array, LayerSpec

K2, TF, K3 = "keras-2.2.4", "tf.keras-2.15.0", "keras-3.15.1"
CHAIN = FIXTURES / K3 / "cell_chain.h5"
CELLS = [file for file in ENTRIES if "/cell_" in file]
STATEFUL = [file for file in CELLS if "stateful" in file]


# ---- against real Keras: see also test_plugins.py ----------------------------------------------


@pytest.mark.parametrize("file", STATEFUL)
def test_a_stateful_layer_carries_the_states_of_its_cell(file: str) -> None:
    """Two batches, the second in reversed time; then the first again, from zeros.

    A cell with initial states of its own begins with them only before the first batch.
    """
    load_plugins([USERS])
    spec, (x, wanted) = read(file), read_arrays(file)
    if len(wanted) == 2:  # the cell begins with zeros
        wanted = [*wanted, wanted[0]]
    model = keras2torch_birnn.convert(FIXTURES / file, plugins=[USERS])
    batches = [x, x[:, ::-1].copy()]
    got = [y for one in batches for y in outputs_of(model, one)]
    keras2torch_birnn.reset_states(model)
    got += outputs_of(model, x)
    assert not differ(got, wanted, ATOL, RTOL)
    forget_states(model)
    assert not differ(outputs_of(model, x), wanted[:1], ATOL, RTOL)
    REGISTERED.equations.setdefault("LeakyCell", leaky_equation)
    states: dict[str, tuple[Array, ...]] = {}
    exact = [compute(spec, (one,), states=states).outputs[0] for one in batches]
    states = {place: tuple(map(np.zeros_like, state)) for place, state in states.items()}
    exact.append(compute(spec, (x,), states=states).outputs[0])
    assert not differ(exact, wanted, ATOL, RTOL)


def leaky_equation(
    cell: LayerSpec, x: Array, states: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...]]:
    keep, w = cell.config["keep"], cell.weights
    h = keep * states[0] + (1 - keep) * np.tanh(x @ w["kernel"] + states[0] @ w["recurrent"] + 0.5)
    return 2 * h - 0.75, (h,)


def test_every_container_of_cells_is_compared() -> None:
    """Keras 2.2.4, 2.15 and 3.15; h5 and .keras; every merge mode, masked and not."""
    cases = {(entry["label"], entry["kind"]) for entry in map(ENTRIES.__getitem__, CELLS)}
    labels = (TF, K3, "tf_keras-2.21.0")
    assert {(label, kind) for label in labels for kind in ("h5", "keras")} <= cases
    assert (K2, "h5") in cases
    names = {Path(file).name for file in CELLS if file.startswith(K3)}
    merges = [str(mode).lower() for mode in MERGE_MODES]
    assert {f"cell_bi_{m}{end}.h5" for m in merges for end in ("", "_masks")} <= names


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        (f"{TF}/cell_states.h5", "m * 0.5", "m * 0.4"),
        (f"{TF}/cell_states.h5", "h @ self.store", "states[0] @ self.store"),
        (
            f"{K3}/cell_start.keras",
            "torch.full((rows, self.memory), self.level)",
            "torch.zeros(rows, self.memory)",
        ),
    ],
    ids=["a state", "an output", "initial states"],
)
def test_verify_notices_a_wrong_module_of_a_cell(
    source: str, old: str, new: str, tmp_path: Path
) -> None:
    """By the NumPy equation of the plugin, in the first layer that has the cell."""
    out, wrong = tmp_path / "out.pt", changed_users(tmp_path, (old, new))
    assert k2t("convert", FIXTURES / source, out, "--plugin", wrong).code == 0
    compared = (FIXTURES / source, out, "--plugin", wrong, "--against", "reference")
    done = k2t("verify", *compared, "--json")
    assert done.code == 1
    assert not {one["path"]: one["ok"] for one in json.loads(done.out)["layers"]}["rnn"]


# ---- around a cell -----------------------------------------------------------------------------


def test_convert_verify_inspect_and_load_know_cells(tmp_path: Path) -> None:
    out, source = tmp_path / "out.safetensors", FIXTURES / K3 / "cell_bi_concat_masks.keras"
    done = convert_and_verify(source, out, USERS)
    assert done.code == 0
    assert "plugin for GatedCell: no NumPy equation, so its module is not verified" in done.err
    assert k2t("verify", out, "--plugin", USERS).code == 0
    rows = keras2torch_birnn.inspect(source, plugins=[USERS]).rows
    found = {row.path: (row.engine, row.reason) for row in rows}
    assert found["bidirectional"] == ("pair", "custom cell")
    assert found["bidirectional/forward_layer"] == ("loop", "custom cell")
    assert ("part", "of an RNN") in found.values()
    model = keras2torch_birnn.load(out, plugins=[USERS])
    explained = keras2torch_birnn.explain(model)
    assert {c.reason for choices in explained.values() for c in choices} == {"custom cell"}
    assert gives_what_keras_gave(model, f"{K3}/cell_bi_concat_masks.keras")


def test_a_checkpoint_without_its_plugin_names_the_cell(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    assert k2t("convert", CHAIN, out, "--plugin", USERS).code == 0
    unregister_all()
    done = k2t("verify", out)
    assert done.code == 4
    assert "PairCell" in done.err
    assert "load the plugin that supplies it" in done.err


def test_gradients_of_a_masked_loop_are_those_of_finite_differences() -> None:
    load_plugins([USERS])
    spec = read(f"{K3}/cell_masks_last.h5")
    one = next(part for part in spec.root.walk() if part.class_name == "RNN")
    module = convert_layer(one).double()
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    x = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach().requires_grad_() for p in module.parameters()]

    def call(x: Tensor, *weights: Tensor) -> Any:
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, given, (x,), {"mask": mask})

    assert torch.autograd.gradcheck(call, (x, *values))


def test_no_step_gives_no_output() -> None:
    load_plugins([USERS])
    model = keras2torch_birnn.convert(FIXTURES / K3 / "cell_bi_sum.h5", plugins=[USERS])
    assert model(torch.zeros(5, 7, 3)).shape == (5, 7, 13)
    inner = next(m for m in model.modules() if isinstance(m, CustomRNN))
    inner.plan = replace(inner.plan, return_sequences=True)
    assert inner(torch.zeros(2, 0, 3)).shape == (2, 0, 11)


@pytest.mark.parametrize("engine", ["fused", "native"])
def test_no_kernel_computes_a_custom_cell(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", engine)
    with pytest.raises(
        UsageError, match=f"K2T_ENGINE={engine}: there is no kernel of a custom cell"
    ):
        keras2torch_birnn.convert(CHAIN, plugins=[USERS])


FROZEN = [
    f"{label}/{case}"
    for label, case in (
        (K2, "cell_masks_leaky.h5"),
        (TF, "cell_masks_leaky.h5"),
        (TF, "cell_masks_last.keras"),
        (K3, "cell_masks_leaky.h5"),
        (K3, "cell_masks_last.keras"),
    )
]


@pytest.mark.parametrize("file", FROZEN)
def test_a_frozen_cell_learns_nothing(file: str, tmp_path: Path) -> None:
    """The cell of one RNN: its numbers are the same, and all other layers learn."""

    rnn = "rnn_1" if file.startswith(K2) else "rnn"

    def freeze(model: dict[str, Any]) -> None:
        layer(model, rnn)["config"]["cell"]["config"]["trainable"] = False

    source = FIXTURES / file
    frozen = changed_config(source, tmp_path / f"frozen{source.suffix}", freeze)
    free = keras2torch_birnn.convert(source, plugins=[USERS])
    model = keras2torch_birnn.convert(frozen, plugins=[USERS])
    assert all(one.requires_grad for one in free.parameters())
    learns = {name: one.requires_grad for name, one in model.named_parameters()}
    assert {name for name, one in learns.items() if not one} == {
        name for name in learns if name.startswith(f"{rnn}.")
    }
    assert True in learns.values() or file.endswith("leaky.h5")
    assert gives_what_keras_gave(model, file)


@pytest.mark.parametrize("label", [TF, K3])
def test_a_frozen_cell_of_a_stack_or_a_half_learns_nothing(label: str, tmp_path: Path) -> None:
    """PairCell in both: cells are frozen one by one, and both halves are those of one layer."""

    def freeze(at: dict[str, Any]) -> None:
        for value in at.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    if one.get("class_name") == "PairCell" or "PairCell" in str(
                        one.get("registered_name")
                    ):
                        one["config"]["trainable"] = False
                    freeze(one)

    for case in ("cell_stack.keras", "cell_states.keras"):
        frozen = changed_config(FIXTURES / label / case, tmp_path / case, freeze)
        model = keras2torch_birnn.convert(frozen, plugins=[USERS])
        pairs = [m for m in model.modules() if type(m).__name__ == "PairCell"]
        held = {id(p) for one in pairs for p in one.parameters()}
        assert held
        assert {id(p) for p in model.parameters() if not p.requires_grad} == held


# ---- refusals ----------------------------------------------------------------------------------

CELL = """
class Mine(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(cell.weights["kernel"]))

    def forward(self, x, states):
        h = x @ self.weight
        return {result}

@k2t.converts("LeakyCell", weights=("kernel", "recurrent"){more})
def mine(cell):
    return Mine(cell)
"""
LEAKY = FIXTURES / TF / "cell_masks_leaky.h5"


def plugin(folder: Path, result: str = "h, (h,)", more: str = ', state_size="units"') -> Path:
    return write_plugin(folder, CELL.format(result=result, more=more))


WRONG = {
    "no pair": (
        {"result": "h"},
        "plugin for LeakyCell: its module returns Tensor; a pair is expected: (output, states)",
    ),
    "too many states": (
        {"result": "h, (h, h)"},
        "its module returns 2 states; state_size= declares 1",
    ),
    "another output": (
        {"result": "h[:, 1:], (h,)"},
        "its module returns an output of shape (5, 4); output_size= says (5, 5)",
    ),
    "another state": (
        {"result": "h, (h[:, 1:],)"},
        "its module returns state 0 of shape (5, 4); state_size= says (5, 5)",
    ),
    "no tensor": ({"result": "h, (3,)"}, "its module returns state 0 of type int; a tensor is exp"),
    "its code": ({"result": "h, 1 / 0"}, "plugin for LeakyCell: its module fails: ZeroDivisionErr"),
    "no such option": (
        {"more": ', state_size="size"'},
        "state_size= gives 'size'; a whole number or the name of the option that holds it, or a li",
    ),
    "a size of zero": ({"more": ", state_size=0"}, "state_size= gives 0; a whole number"),
    "a huge size": ({"more": ", state_size=2**40"}, "state_size= gives 1099511627776; a whole"),
    "no size": ({"more": ", state_size=()"}, "state_size= gives (); a whole number or the name"),
    "two outputs": (
        {"more": ", state_size=5, output_size=(5, 7)"},
        "output_size= gives (5, 7); a whole number or the name of the option that holds it is exp",
    ),
    "a failing function": (
        {"more": ', state_size=lambda cell: cell.config["x"]'},
        "plugin for LeakyCell: its state_size= function fails: KeyError: 'x' (mine.py:14)",
    ),
    "a mask": (
        {"more": ', state_size="units", mask="uses"'},
        "a cell sees one step: mask=, outputs=, output= and vocabulary= are not its",
    ),
    "an output's size alone": (
        {"more": ", output_size=5"},
        "output_size= and initial_state= are those of a cell, which needs state_size= as well",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_of_a_cell_is_named(name: str, tmp_path: Path) -> None:
    change, match = WRONG[name]
    done = k2t("convert", LEAKY, tmp_path / "out.pt", "--plugin", plugin(tmp_path, **change))
    assert done.code == 2
    assert match in done.err
    assert not (tmp_path / "out.pt").exists()


def test_a_converter_without_sizes_is_no_cells(tmp_path: Path) -> None:
    file = plugin(tmp_path, more="")
    text = "plugin for LeakyCell converts a layer, and this is a cell of an RNN; declare the sizes"
    with pytest.raises(UnsupportedLayerError, match=text):
        keras2torch_birnn.convert(LEAKY, plugins=[file])


def test_an_unknown_cell_is_refused_with_the_decorator_that_supplies_it(tmp_path: Path) -> None:
    done = k2t("convert", CHAIN, tmp_path / "out.pt")
    assert done.code == 4
    assert len(done.lines("error")) == 4  # every cell
    assert "rnn/cell: cell class PairCell is not supported; cells of Keras are" in done.err
    assert '--plugin file, under @k2t.converts("PairCell", state_size=...)' in done.err


def test_a_cell_outside_an_rnn_is_refused(tmp_path: Path) -> None:
    text = "LeakyCell outside an RNN: a cell sees one step; wrap it in an RNN layer"

    def take_out(model: dict[str, Any]) -> None:
        entry = layer(model, "rnn")
        entry.update(class_name="LeakyCell", config={"name": "rnn", "units": 5})

    wrong = changed_config(LEAKY, tmp_path / "wrong.h5", take_out)
    with pytest.raises(UnsupportedLayerError, match=text):
        keras2torch_birnn.convert(wrong, plugins=[USERS])


def test_constants_are_refused(tmp_path: Path) -> None:
    wrong = changed_layer(LEAKY, tmp_path / "wrong.h5", "rnn", num_constants=1)
    text = "an RNN called with constants is not supported; join them to the features"
    with pytest.raises(UnsupportedOptionError, match=text):
        keras2torch_birnn.convert(wrong, plugins=[USERS])


def test_initial_states_of_another_size_are_refused() -> None:
    model = keras2torch_birnn.convert(FIXTURES / K3 / "cell_chain.keras", plugins=[USERS])
    module = next(m for m in model.modules() if isinstance(m, CustomRNN))
    x = torch.zeros(2, 7, 3)
    with pytest.raises(UsageError, match="2 states are expected, found 1"):
        module(x, None, [torch.zeros(2, 5)])
    with pytest.raises(UsageError, match=r"a state \[2, 7\] is expected, found \[2, 5\]"):
        module(x, None, [torch.zeros(2, 5), torch.zeros(2, 5)])


@pytest.mark.parametrize(
    ("version", "states", "output", "rule"),
    [
        ("2.1.6", (5, 5), 5, "previous_first_state"),
        ("2.1.6", (5, 7), 5, "fails"),
        ("2.2.2", (5, 7), 5, "previous_first_state"),
        ("2.2.4", (5, 7), 5, "previous_first_state"),
        ("2.2.4", (5, 7), 7, "fails"),
        ("2.3.1", (5, 7), 7, "previous_output"),
    ],
)
def test_what_stands_at_masked_steps_is_the_versions(
    version: str, states: tuple[int, ...], output: int, rule: str
) -> None:
    converts("Mine", state_size=states, output_size=output)(nn.Identity)
    generation = generation_of(version)
    cell = LayerSpec("Mine", "mine", {})
    config = {"masked_output": rule_of("masked_output", generation)}
    spec = layer_of_settings("RNN", "rnn", config, parts={"cell": cell})
    assert infer_mask_rule(spec, generation).semantics["masked_output"] == rule
