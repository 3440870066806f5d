"""Rules of optimizers, compared with what real Keras made of given gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from recorded_rules import CASES, config_of, largest_difference, skip_other_norms
from sampling import rest_thorough
from torch import nn

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.trainers.compiled import OptimizerConfig, parse_compiled
from keras2torch_birnn.trainers.rules import RULES, parse_rule
from keras2torch_birnn.trainers.schedules import parse_schedule
from keras2torch_birnn.trainers.settings import parse_settings
from keras2torch_birnn.trainers.variables import Variable

TOLERANCE = {"float64": 1e-12, "float32": 5e-6}


# In float32 the steps are the same, rounded: ``make test`` takes one case of seven.
@pytest.mark.parametrize(
    ("row", "floats"),
    rest_thorough(
        product(CASES, TOLERANCE),
        [*product(CASES, ["float64"]), *product(CASES[::7], ["float32"])],
    ),
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_weights_are_those_of_keras_after_every_step(row: tuple[str, str], floats: str) -> None:
    label, case = row
    if floats == "float64":
        skip_other_norms(label, case)
    assert largest_difference(label, case, floats) <= TOLERANCE[floats]


def test_every_rule_has_recorded_cases_of_every_family_that_has_it() -> None:
    found: dict[str, set[str]] = {name: set() for name in RULES}
    for label, case in CASES:
        config = config_of(label, case)
        found[config.class_name.lower()].add(config.family)
    newer = {"tf.keras", "keras3"}
    alone = {
        "adamw": newer,
        "lion": newer,
        **{name: {"keras3"} for name in ("lamb", "muon", "adafactor")},
    }
    for name, families in found.items():
        assert families == alone.get(name, {*newer, "legacy"}), name


# ---- refusals ----------------------------------------------------------------------------------


def config(name: str = "Adam", **options: Any) -> OptimizerConfig:
    return OptimizerConfig(name, options, "keras3")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Mine", "the optimizer Mine is not supported; make it in torch, with k2t.convert"),
        ("LossScaleOptimizerV3", "is not supported; compile with the optimizer inside of it"),
    ],
)
def test_other_optimizers_are_refused(name: str, match: str) -> None:
    with pytest.raises(UnsupportedOptionError, match=match):
        parse_rule(config(name))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"beta_1": "0.9"}, "beta_1=0.9 of an optimizer"),
        ({"beta_1": float("nan")}, "beta_1=nan of an optimizer"),
        ({"epsilon": 1e300}, "epsilon=1e\\+300 of an optimizer"),
        ({"amsgrad": "yes"}, "amsgrad=yes of an optimizer"),
    ],
)
def test_broken_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidModelFileError, match=match):
        parse_rule(config(**options))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"ns_steps": 101}, "ns_steps=101"),
        ({"exclude_layers": "head"}, "exclude_layers=head of an optimizer"),
        ({"exclude_layers": ["(head"]}, r"exclude_layers=\['\(head'\] of an optimizer"),
        ({"exclude_layers": ["a{99999999999}"]}, "exclude_layers="),
        ({"exclude_layers": ["(a|a)*b"]}, "is too complex a pattern; name the layers"),
        ({"exclude_layers": ["a*a*a*b"]}, "is too complex a pattern; name the layers"),
        ({"exclude_layers": ["a" * 201]}, "is too complex a pattern; name the layers"),
    ],
)
def test_broken_options_of_muon_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises((InvalidModelFileError, UnsupportedOptionError), match=match):
        parse_rule(config("Muon", **options))


def test_a_layer_that_load_model_would_not_exclude_from_muon_is_refused() -> None:
    rule = parse_rule(config("Muon", exclude_layers=["^both/", "^dense/"]))
    matrix = nn.Parameter(torch.zeros(2, 3))
    dense = Variable.of(matrix, 0, "dense/kernel")
    half = replace(dense, path="forward_lstm/lstm_cell/kernel", around=("both",))
    assert rule.slot_shape("v", dense) == rule.slot_shape("m", half) == (2, 3)
    with pytest.raises(
        UnsupportedOptionError,
        match="both/forward_lstm/lstm_cell/kernel is excluded from Muon by the name of a wrapper",
    ):
        rule.slot_shape("v", half)


def test_options_of_muon_that_are_null_are_none() -> None:
    rule = parse_rule(config("Muon", rms_rate=None, adam_weight_decay=None))
    assert (rule.decays(), parse_rule(config("Muon")).decays()) == (False, True)
    matrix = Variable.of(nn.Parameter(torch.zeros(2, 3)), 0, "dense/kernel")
    assert rule.weight_decay(matrix, 0.25) == 0.25
    by_name = parse_compiled({"optimizer": "muon"}, generation_of("3.15.1")).optimizer
    assert parse_settings(by_name, rule.known()).weight_decay == 0.004


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clipnorm": -1.0}, "clipnorm=-1.0 of an optimizer"),
        ({"ema_overwrite_frequency": 1.5, "use_ema": True}, "ema_overwrite_frequency=1.5"),
    ],
)
def test_broken_settings_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidModelFileError, match=match):
        parse_settings(config(**options), frozenset())


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match="options speed of an optimizer"):
        parse_settings(config(speed=3), frozenset())


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"class_name": "Mine", "config": {}}, "the schedule Mine, which its own Python code"),
        ({"class_name": "Mine"}, "a learning rate without class_name, config"),
        ({"class_name": "CosineDecay", "config": {}}, "decay_steps=0.0 of a schedule"),
        (
            {"class_name": "PiecewiseConstantDecay", "config": {"boundaries": [1], "values": [1]}},
            "a schedule of 1 boundaries and 1 values",
        ),
        (
            {"class_name": "PiecewiseConstantDecay", "config": {"boundaries": 1}},
            "boundaries=1 of an optimizer",
        ),
        (
            {"class_name": "CosineDecayRestarts", "config": {"first_decay_steps": 1, "t_mul": 0.5}},
            "t_mul=0.5 of a schedule",
        ),
    ],
)
def test_other_schedules_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises((UnsupportedOptionError, InvalidModelFileError), match=match):
        parse_schedule(given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (None, "holds no compiled training; compile the model in Keras"),
        ({"loss": "mse"}, "compiled without an optimizer"),
        ({"optimizer": {"class_name": 3}}, "an optimizer without class_name, config"),
        (
            {"optimizer": {"class_name": "Adam", "config": {}, "module": "mine.code"}},
            "the optimizer Adam, which its own Python code defines",
        ),
        (
            {"optimizer_config": {"class_name": "mine>Adam", "config": {}}},
            "the optimizer mine>Adam, which its own Python code defines",
        ),
    ],
)
def test_nothing_compiled_is_refused(given: Any, match: str) -> None:
    with pytest.raises((UnsupportedOptionError, InvalidModelFileError), match=match):
        parse_compiled(given, generation_of("3.15.1"))


def test_experimental_optimizers_of_tensorflow_2_9_are_refused() -> None:
    options = {"learning_rate": 0.01, "jit_compile": False}
    given = {"optimizer_config": {"class_name": "Adam", "config": options}}
    with pytest.raises(UnsupportedOptionError, match=r"experimental in tf\.keras 2\.9"):
        parse_compiled(given, generation_of("2.9.0"))
    assert parse_compiled(given, generation_of("2.10.0")).optimizer.family == "tf.keras"
