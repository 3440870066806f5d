"""``k2t.training``: the optimizer of a file, its state, notes and refusals."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compiled_fixtures
import h5py
import numpy as np
import pytest
import torch
from commands import FIXTURES, changed_keras
from torch import nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.trainers.compiled import Family, OptimizerConfig
from keras2torch_birnn.trainers.optimizers import Made, make_optimizer

COMPILED = FIXTURES / "tf.keras-2.15.0/compiled.h5"
NEVER_COMPILED = FIXTURES / "keras-3.15.1/stack_same_class.keras"


def changed(path: Path, edit: Any) -> Path:
    """Change the compiled training of a copy of the file."""
    shutil.copyfile(COMPILED, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["training_config"])
        edit(config, file)
        file.attrs["training_config"] = json.dumps(config)
    return path


def made(
    name: str, options: Mapping[str, Any], params: Any = None, family: Family = "keras3"
) -> Made:
    """Make an optimizer of one parameter, or of these."""
    found = [nn.Parameter(torch.ones(3))] if params is None else params
    config = OptimizerConfig(name, options, family)
    owners = [(number,) for number in range(len(found))]
    return make_optimizer(config, found, owners, embeddings=False)


# ---- the state ----------------------------------------------------------------------------------


def test_the_state_of_the_file_is_that_of_the_optimizer() -> None:
    state = k2t.training(COMPILED)
    with h5py.File(COMPILED) as file:
        group = file["optimizer_weights"]
        stored = {name: np.asarray(group[name]) for name in group.attrs["weight_names"]}
    assert state.model.training
    assert isinstance(state.optimizer, torch.optim.AdamW)
    counts = [value for value in stored.values() if not value.shape]
    slots = [one for of in state.optimizer.state.values() for one in of.values()]
    held = [one for one in slots if one.shape]
    assert {float(one) for one in slots if not one.shape} == {float(counts[0])} != {0.0}
    arrays = [value for value in stored.values() if value.shape]
    total = sum(float(one.double().sum()) for one in held)
    assert total == pytest.approx(sum(float(one.astype("f8").sum()) for one in arrays), rel=1e-6)
    assert sum(one.numel() for one in held) == sum(one.size for one in arrays)


def test_a_name_stands_for_the_optimizer_of_that_keras(tmp_path: Path) -> None:
    """``compile("adam")`` of tf.keras 2.15 is kept as the name alone."""
    source = FIXTURES / "compiled/tf.keras-2.15.0/adam.keras"

    def name(config: Any, file: Any) -> None:
        config["compile_config"]["optimizer"] = "adam"

    state = k2t.training(changed_keras(source, tmp_path / "named.keras", name))
    wanted = k2t.training(source)
    found = (one.optimizer.state_dict()["state"] for one in (state, wanted))
    for one, other in zip(*(held.values() for held in found), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("row", ["tf.keras-2.15.0/saved_adam.savedmodel"])
def test_a_state_in_another_format_begins_anew_with_a_note(row: str, tmp_path: Path) -> None:
    state = k2t.training(compiled_fixtures.unpack(compiled_fixtures.ROWS[row]["file"], tmp_path))
    assert any("is read from .h5 and .keras files alone: it begins" in n for n in state.notes)
    assert not state.optimizer.state


def test_the_state_inside_of_a_scaled_optimizer_begins_anew_with_notes(tmp_path: Path) -> None:
    """As Keras 3 lists it under mixed_float16."""
    source = FIXTURES / "compiled/keras-3.15.1/adam.keras"

    def scale(config: Any, file: Any) -> None:
        file["optimizer/inner_optimizer/vars/0"] = 5
        inner = config["compile_config"]["optimizer"]
        outer = {"class_name": "LossScaleOptimizer", "config": {"inner_optimizer": inner}}
        config["compile_config"]["optimizer"] = {**outer, "module": "keras.optimizers"}

    state = k2t.training(changed_keras(source, tmp_path / "scaled.keras", scale))
    for words in ("scales its loss", "LossScaleOptimizer is not read: it begins anew"):
        assert any(words in note for note in state.notes)


def test_a_file_without_a_state_begins_anew_with_a_note(tmp_path: Path) -> None:
    path = changed(tmp_path / "none.h5", lambda _, file: file.pop("optimizer_weights"))
    assert any("begins anew, as in Keras" in note for note in k2t.training(path).notes)


def test_a_state_of_other_weights_is_refused_or_left(tmp_path: Path) -> None:
    def drop_last(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        group.attrs["weight_names"] = group.attrs["weight_names"][:-1]

    path = changed(tmp_path / "less.h5", drop_last)
    with pytest.raises(k2t.WeightMismatchError, match=r"the optimizer's state has \d+ arrays"):
        k2t.training(path)
    assert not k2t.training(path, state="new").optimizer.state
    with pytest.raises(k2t.UsageError, match='state \'old\': "file" or "new" is expected'):
        k2t.training(path, state="old")


def test_slots_of_other_shapes_are_refused(tmp_path: Path) -> None:
    def reverse(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        names = group.attrs["weight_names"]
        group.attrs["weight_names"] = np.concatenate([names[:1], names[:0:-1]])

    with pytest.raises(k2t.WeightMismatchError, match=r"a slot \(.*\) of float32 where one of"):
        k2t.training(changed(tmp_path / "other.h5", reverse))


def test_iterations_must_be_a_count(tmp_path: Path) -> None:
    def turn(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        group[group.attrs["weight_names"][0]][()] = -3

    with pytest.raises(k2t.InvalidModelFileError, match=r"-3\.0 iterations"):
        k2t.training(changed(tmp_path / "negative.h5", turn))


# ---- refusals and notes -------------------------------------------------------------------------


def test_a_model_that_was_never_compiled_is_refused() -> None:
    with pytest.raises(k2t.UnsupportedOptionError, match="holds no compiled training; compile"):
        k2t.training(NEVER_COMPILED)


def test_a_model_whose_weights_are_all_frozen_is_refused(tmp_path: Path) -> None:
    def freeze(config: Any, file: Any) -> None:
        text = file.attrs["model_config"].replace('"trainable": true', '"trainable": false')
        file.attrs["model_config"] = text

    with pytest.raises(k2t.UnsupportedOptionError, match="all weights of the model are frozen"):
        k2t.training(changed(tmp_path / "frozen.h5", freeze))


@pytest.mark.parametrize("name", ["Ftrl", "Lion", "Lamb", "Muon", "Adafactor", "Mine"])
def test_optimizers_that_torch_does_not_have_are_refused_by_name(name: str) -> None:
    with pytest.raises(k2t.UnsupportedOptionError, match=f"the optimizer {name}, which torch does"):
        made(name, {})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": "fast"}, "learning_rate=fast of an optimizer"),
        ({"clipnorm": -1}, "clipnorm=-1"),
        ({"amsgrad": 1}, "amsgrad=1"),
        ({"beta_1": float("nan")}, "beta_1=nan"),
        ({"beta_2": 10**19}, "beta_2=1000000"),
        ({"beta_2": 2.0}, r"torch does not take \(Invalid beta parameter at index 1: 2.0\)"),
        ({"sparse": True}, "options sparse of an optimizer are not supported"),
    ],
)
def test_broken_and_unknown_options_are_refused(options: Any, words: str) -> None:
    with pytest.raises(k2t.K2TError, match=words):
        made("Adam", options)


@pytest.mark.parametrize(
    ("name", "options", "family", "words"),
    [
        ("Adam", {"use_ema": True}, "keras3", "moving averages of the weights"),
        ("Adam", {"gradient_accumulation_steps": 4}, "keras3", "the mean of 4 batches' gradients"),
        ("Adam", {"decay": 0.5}, "legacy", r"divided by 1 \+ 0.5 \* step"),
        ("AdamW", {"weight_decay": 0.1}, "keras3", "all trained weights decay"),
        ("Nadam", {"clipnorm": 1.0}, "keras3", "Nadam is torch's own, .*Keras clips the gradients"),
        ("Adagrad", {}, "keras3", "Adagrad is torch's own, with the options of the file and a new"),
        ("Adadelta", {}, "keras2", "Adadelta is torch's own"),
        ("Adamax", {}, "tf.keras", "Adamax is torch's own"),
    ],
)
def test_what_is_not_as_in_keras_has_a_note(
    name: str, options: Any, family: Family, words: str
) -> None:
    assert re.search(words, " ".join(made(name, options, family=family).notes))
    assert made("Adam", {}).notes == ()


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        ({"initial_learning_rate": 0.25, "decay_steps": 3}, 0.25),
        ({"initial_learning_rate": 0.0, "warmup_target": 0.5}, 0.5),
        ({"boundaries": [3], "values": [0.125, 0.5]}, 0.125),
        ({}, 0.001),
    ],
)
def test_a_schedule_is_its_first_rate_with_a_note(config: Any, rate: float) -> None:
    found = made("Adam", {"learning_rate": {"class_name": "Mine", "config": config}})
    assert found.optimizer.param_groups[0]["lr"] == rate
    assert found.notes == (
        f"the learning rate follows Mine in Keras; here it is {rate:g} throughout: "
        "torch.optim.lr_scheduler has schedules",
    )


# ---- the rules ----------------------------------------------------------------------------------


def test_adam_adds_epsilon_to_the_root_of_the_uncorrected_moment() -> None:
    param = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = made("Adam", {"learning_rate": 0.1, "epsilon": 0.5}, [param], "keras2").optimizer
    m = v = np.zeros(2)
    wanted = param.detach().numpy().copy()
    for step in range(1, 6):
        grad = np.array([0.3 * step, -0.01])
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        rate = 0.1 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        wanted -= rate * m / (np.sqrt(v) + 0.5)
        param.grad = torch.from_numpy(grad)
        optimizer.step()
        if step == 2:  # a copy and a loaded state go on as well
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    np.testing.assert_allclose(param.detach().numpy(), wanted, rtol=1e-12)
    copied = pickle.loads(pickle.dumps(optimizer))
    (param,) = copied.param_groups[0]["params"]
    param.grad = torch.ones(2, dtype=torch.float64)
    copied.step()
    assert copied.param_groups[0]["eps"] == pytest.approx(0.5 / np.sqrt(1 - 0.999**6), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "family", "wanted"),
    [
        ({"clipvalue": 1.0}, "keras3", [[1.0, -1.0], [0.5]]),
        ({"clipnorm": 1.0}, "keras3", [[0.6, -0.8], [0.5]]),
        ({"clipnorm": 2.5}, "keras2", [[1.5, -2.0], [0.25]]),
        ({"global_clipnorm": 2.5}, "tf.keras", [[1.5, -2.0], [0.25]]),
    ],
)
def test_gradients_are_clipped_before_the_step(options: Any, family: Family, wanted: Any) -> None:
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    optimizer = made("SGD", {"learning_rate": 1.0, **options}, params, family).optimizer
    params[0].grad, params[1].grad = torch.tensor([3.0, -4.0]), torch.tensor([0.5])
    with pytest.raises(UsageError, match="a step with a closure, and gradients that Keras clips"):
        optimizer.step(lambda: 0.0)
    optimizer.step()
    for param, value in zip(params, wanted, strict=True):
        torch.testing.assert_close(-param.detach(), torch.tensor(value), rtol=0.01, atol=1e-6)


def test_sgd_has_the_rate_inside_of_its_velocity() -> None:
    param = nn.Parameter(torch.zeros(1))
    optimizer = made("SGD", {"learning_rate": 1.0, "momentum": 0.5}, [param]).optimizer
    for rate, wanted in ((1.0, -1.0), (0.1, -1.6)):
        optimizer.param_groups[0]["lr"] = rate
        param.grad = torch.ones(1)
        optimizer.step()
        assert float(param.detach()) == pytest.approx(wanted)
    assert optimizer.step(lambda: 3.0) == 3.0


def test_rmsprop_has_epsilon_inside_of_the_root_but_in_older_rules() -> None:
    cases: tuple[tuple[Family, float, bool], ...] = (
        ("keras3", 0.0, True),
        ("legacy", 0.0, False),
        ("legacy", 0.5, True),
    )
    for family, momentum, inside in cases:
        param = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        options = {"learning_rate": 1.0, "epsilon": 0.5, "momentum": momentum, "rho": 0.75}
        optimizer = made("RMSprop", options, [param], family).optimizer
        param.grad = torch.full((1,), 2.0, dtype=torch.float64)
        optimizer.step()
        root = np.sqrt(1.0 + 0.5) if inside else 1.0 + 0.5
        assert float(param.detach()) == pytest.approx(-2.0 / root)
