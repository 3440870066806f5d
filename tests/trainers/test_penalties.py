"""Regularizers and constraints: read, kept, shown, and refused; see also test_training_parity."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from out_files import changing, write_out
from same_models import assert_same_outputs
from specs import FIXTURES
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UnsupportedOptionError, UsageError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.training_terms import replace_weights, terms_of
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.options import (
    describe_penalties,
    list_unknown,
    read_training,
)
from keras2torch_birnn.schema.training_rules import describe, penalty_rule
from keras2torch_birnn.spec import LayerSpec
from keras2torch_birnn.trainers.weight_views import find_views

FOLDER = FIXTURES / "training" / "keras-3.15.1"
INSIDE, CONSTRAINED = (FOLDER / f"{n}.before.keras" for n in ("regularized", "constrained"))
REGULARIZED = FIXTURES / "compiled" / "keras-3.15.1" / "regularizers.keras"
GENERATION = generation_of("3.15.1")


def steps(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, 7, 3, generator=torch.Generator().manual_seed(rows))


def rows(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 5, 2, generator=torch.Generator().manual_seed(count)).double()


@pytest.fixture(scope="module")
def converted() -> nn.Module:
    return k2t.convert(REGULARIZED, dtype="float64")


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "config", "wanted"),
    [
        ("Dense", {"kernel_regularizer": None, "units": 3}, []),
        ("Dense", {"bias_constraint": "max_norm"}, ["bias: MaxNorm(max_value=2, axis=0)"]),
        (
            "LSTM",
            {
                "kernel_regularizer": {"class_name": "L1L2", "config": {"l1": 0.0, "l2": 0.1}},
                "recurrent_constraint": {"class_name": "UnitNorm", "config": {"axis": [0, 1]}},
                "activity_regularizer": {
                    "module": "keras.regularizers",
                    "class_name": "L1",
                    "config": {"l1": 0.5},
                    "registered_name": None,
                },
            },
            ["kernel: L1L2(l2=0.1)", "recurrent: UnitNorm(axis=(0, 1))", "activity: L1L2(l1=0.5)"],
        ),
        (
            "Dense",
            {"W_regularizer": {"name": "WeightRegularizer", "l1": 0.1, "l2": 0}},
            ["W: L1L2(l1=0.1)"],
        ),
        (
            "Dense",
            {"W_constraint": {"name": "maxnorm", "m": 3}},
            ["W: MaxNorm(max_value=3, axis=0)"],
        ),
        ("Dense", {"kernel_regularizer": {"class_name": "L2", "config": {"l2": 0.0}}}, []),
        ("Dense", {"kernel_regularizer": "l1_l2"}, ["kernel: L1L2(l1=0.01, l2=0.01)"]),
        ("Dense", {"kernel_constraint": "NonNeg"}, ["kernel: NonNeg"]),
        ("ActivityRegularization", {"l1": 0.1, "l2": 0.2}, ["activity: L1L2(l1=0.1, l2=0.2)"]),
        ("ActivityRegularization", {"l1": 0.0, "l2": 0.0}, []),
    ],
)
def test_what_a_config_adds_in_training_is_read(
    class_name: str, config: dict[str, Any], wanted: list[str]
) -> None:
    training = read_training(class_name, config, GENERATION)
    assert describe(LayerSpec(class_name, "one", {}, training=training)) == wanted
    assert list_unknown(config, training) == []


@pytest.mark.parametrize(
    ("class_name", "version", "value"),
    [
        ("Dense", "2.15.0", {"class_name": "RadialConstraint", "config": {}}),
        ("Dense", "2.15.0", {"class_name": "Custom>MaxNorm", "config": {}}),
        (
            "Dense",
            "3.5.0",
            {"class_name": "MaxNorm", "config": {}, "registered_name": "My>MaxNorm"},
        ),
        ("Dense", "3.5.0", {"class_name": "NonNeg", "config": {}, "module": "mine"}),
        ("Dense", "3.5.0", {"class_name": "NonNeg", "config": {"more": 1}}),
        ("Dense", "3.5.0", {"class_name": "MaxNorm", "config": {"max_value": "2"}}),
        ("Conv2D", "1.2.2", {"name": "MaxNorm", "m": 2, "axis": 0}),
    ],
)
def test_what_is_not_known_is_noted_by_name(class_name: str, version: str, value: Any) -> None:
    config = {"kernel_constraint": value, "virtual_batch_size": 4}
    training = read_training(class_name, config, generation_of(version))
    name, batches = list_unknown(config, training)
    assert name.startswith("kernel: ") and batches == "virtual batches"
    (note,) = describe_penalties({f"dense_{i}": (name,) for i in range(11)})[:1]
    assert "and 3 more layers; add them to your own loss" in note


@pytest.mark.parametrize("name", ["MaxNorm", "max_norm", "L1L2", "l2", ""])
@pytest.mark.parametrize("ending", ["regularizer", "constraint"])
def test_a_constraint_as_a_regularizer_is_noted_and_so_is_the_reverse(
    name: str, ending: str
) -> None:
    fits = (name in ("MaxNorm", "max_norm")) == (ending == "constraint") and name != ""
    for value in (name, {"class_name": name, "config": {}}):
        config = {f"kernel_{ending}": value}
        found = list_unknown(config, read_training("Dense", config, GENERATION))
        assert found == ([] if fits else [f"kernel: {name}"])


def test_nothing_unknown_makes_no_note() -> None:
    assert describe_penalties({}) == []
    assert not any("training only" in note for note in k2t.inspect(REGULARIZED).notes)


def test_inspect_tells_them_by_layer() -> None:
    rows = {row.path: row.training for row in k2t.inspect(CONSTRAINED).rows}
    assert rows["dense"] == "kernel: NonNeg"
    assert rows["bidirectional/backward_layer"] == (
        "kernel: MaxNorm(max_value=0.7, axis=0); recurrent: UnitNorm(axis=1); "
        "bias: MinMaxNorm(min_value=0.2, max_value=0.5, rate=0.6, axis=0)"
    )


# ---- penalties ----------------------------------------------------------------------------------


def test_the_outputs_of_the_last_call_in_training_mode_count(converted: nn.Module) -> None:
    model = copy.deepcopy(converted)
    with pytest.raises(UsageError, match="was not called in training mode; call"):
        k2t.penalty(model)
    model.train()
    model(rows(3))
    first = k2t.penalty(model)
    model(rows(5))
    assert k2t.penalty(model) != first
    model(rows(3))
    assert torch.equal(k2t.penalty(model), first)
    model.eval()(rows(3))
    with pytest.raises(UsageError, match="regularizes its output, and the model was not"):
        k2t.penalty(model)


def test_copies_and_pickles_keep_no_outputs(converted: nn.Module) -> None:
    model = copy.deepcopy(converted).train()
    model(rows())
    wanted = k2t.penalty(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with pytest.raises(UsageError, match="not called in training mode"):
            k2t.penalty(other)
        other(rows())
        torch.testing.assert_close(k2t.penalty(other), wanted)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_they_survive_saving_and_loading(suffix: str, converted: nn.Module, tmp_path: Path) -> None:
    k2t.save(converted, tmp_path / f"out{suffix}")
    model = copy.deepcopy(converted).train()
    loaded = k2t.load(tmp_path / f"out{suffix}").train()
    for one in (model, loaded):
        one(rows())
    assert k2t.penalty(model) > 0.1
    assert_same_outputs(k2t.penalty(model), k2t.penalty(loaded))


def test_a_model_around_a_converted_one_has_its_penalties(converted: nn.Module) -> None:
    outer = nn.Sequential(copy.deepcopy(converted), nn.Linear(7, 2).double()).train()
    outer(rows())
    k2t.penalty(outer).backward()
    gradients = [p.grad for p in outer[0].parameters() if p.requires_grad]
    assert sum(bool(g is not None and g.any()) for g in gradients) > 8
    assert outer[1].weight.grad is None


def test_models_without_them_have_none_and_no_hooks() -> None:
    model = k2t.convert(FOLDER / "merges.before.keras")
    assert k2t.penalty(model).item() == 0.0 and not k2t.penalty(model).requires_grad
    before = copy.deepcopy(model.state_dict())
    k2t.constrain_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for one in (model, k2t.convert(CONSTRAINED)):
        assert not any(module._forward_hooks for module in one.modules())


@pytest.mark.thorough
def test_a_constrained_model_is_compiled_as_a_whole() -> None:
    model = k2t.convert(CONSTRAINED).train()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(steps()), model(steps()))


def test_frozen_weights_count_where_that_keras_counts_them() -> None:
    assert [penalty_rule(generation_of(v)).frozen for v in ("2.2.4", "2.15.0", "3.5.0")] == [
        True,
        True,
        False,
    ]
    rows = [penalty_rule(generation_of(v)).per_row for v in ("2.3.1", "2.4.0", "3.13.2", "3.14.0")]
    assert rows == [False, True, False, True]


# ---- constraints --------------------------------------------------------------------------------


def test_constraints_act_on_the_layout_of_keras() -> None:
    model = k2t.convert(CONSTRAINED, dtype="float64")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 3)
    frozen = model.get_parameter("dense_1.weight").clone()
    k2t.constrain_(model)
    names = {name: value.detach() for name, value in model.named_parameters()}
    filters = names["conv1d.weight"].square().sum(dim=(1, 2)).sqrt()
    torch.testing.assert_close(filters, torch.full_like(filters, 0.9), atol=1e-6, rtol=1e-6)
    recurrent = names["bidirectional.weight_hh_l0"].square().sum(dim=0).sqrt()  # all gates at once
    torch.testing.assert_close(recurrent, torch.ones_like(recurrent), atol=1e-6, rtol=1e-6)
    assert not (names["dense.weight"] < 0).any() and not (names["lstm.bias_ih_l0"] < 0).any()
    assert torch.equal(frozen, model.get_parameter("dense_1.weight"))


def test_a_parametrized_weight_is_not_constrained_in_silence() -> None:
    model = k2t.convert(CONSTRAINED)
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule("dense"))
    with pytest.raises(UsageError, match="weight is no parameter, so it cannot be constrained"):
        k2t.constrain_(model)


# ---- refusals -----------------------------------------------------------------------------------


def damaged(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Save a converted model with another configuration of its Dense layer."""
    out = write_out(CONSTRAINED, folder)
    with changing(out) as (_, texts):
        entries = texts["architecture"]["config"]["layers"]
        change(next(one["config"] for one in entries if one["config"]["name"] == "dense"))
    return out


def test_unknown_ones_are_refused_when_they_are_needed(tmp_path: Path) -> None:
    unknown = {
        "kernel_regularizer": {"class_name": "Mine", "config": {}},
        "bias_constraint": {"class_name": "RadialConstraint", "config": {}},
    }
    model = k2t.load(damaged(tmp_path, lambda config: config.update(unknown)))
    with pytest.raises(UnsupportedOptionError, match="dense: kernel_regularizer Mine is not a reg"):
        k2t.penalty(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedOptionError, match="bias_constraint RadialConstraint is not a c"):
        k2t.constrain_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_regularizers_of_outputs_inside_of_layers_are_refused() -> None:
    model = k2t.convert(INSIDE).train()
    model(steps())
    with pytest.raises(UnsupportedOptionError) as error:
        k2t.penalty(model)
    words = "activity_regularizer of a layer inside"
    assert [f"{words} {one}" in str(error.value) for one in ("Bidirectional", "TimeDistributed")]
    assert len(error.value.problems) == 3


def test_an_orthogonal_regularizer_is_noted_and_refused_when_it_is_needed() -> None:
    model = k2t.convert(FOLDER / "orthogonal.before.keras")
    with pytest.raises(UnsupportedOptionError, match="OrthogonalRegularizer is not a regularizer"):
        k2t.penalty(model)


# ---- where weights are --------------------------------------------------------------------------


def spec_of(model: nn.Module, name: str) -> LayerSpec:
    terms = terms_of(model.get_submodule(name))
    assert terms is not None
    return terms.layer


def test_views_give_the_arrays_of_the_file() -> None:
    from keras2torch_birnn.readers import read_model

    spec = read_model(CONSTRAINED)
    model = build(spec)
    for layer in spec.root.walk():
        if layer.graph is None and layer.name in ("bidirectional", "conv1d", "lstm"):
            found: dict[Any, Any] = {}
            replace_weights(layer, lambda path, array, found=found: found.setdefault(path, array))
            module = model.get_submodule(layer.name)
            for path, view in find_views(spec_of(model, layer.name), list(found)).items():
                np.testing.assert_array_equal(view.read(module).detach(), found[path])
