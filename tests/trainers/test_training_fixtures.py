"""Training goes on as in the Keras that wrote the file: losses and weights of the next steps."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled_fixtures import COMPILED, MANIFEST, ROWS, Row, recorded, unpack_checkpoint
from replays import BEFORE, FOLLOWED, STEPS, follow, opened
from sampling import FEW_EXAMPLES

import keras2torch_birnn as k2t

FEW = FEW_EXAMPLES in os.environ
CHECKPOINTS = [name for name, row in ROWS.items() if row["container"] == "checkpoint"]
LABELS = (
    "keras-2.2.4 keras-2.3.1 tf.keras-2.4.0 tf.keras-2.10.0 tf.keras-2.15.0 tf_keras-2.21.0 "
    "keras-3.5.0 keras-3.15.1 keras-3.15.1-torch"
).split()
# Files whose Keras took 200 steps, the oldest first; the last one of each optimizer in each family.
LONG = sorted(
    (name for name in FOLLOWED.values() if ROWS[name]["steps"] > STEPS),
    key=lambda name: LABELS.index(ROWS[name]["label"]),
)
LONGEST = {(ROWS[name]["flavour"], ROWS[name]["optimizer"]): name for name in LONG}
# What ``make test`` follows shows each optimizer of a family, each kind of file, and every case of
# any of its models but for options of an optimizer: ``test_rules.py`` has these by themselves.
VARIED = re.compile(
    r"^(checkpoint|decay|legacy|new|saved|scheduled|single)_"
    r"|_(attentive|inside|logits|nested|plain|smooth|stairs|sum|tagger|twice)$"
)
OF_RULES = re.compile("ada|amsgrad|ftrl|lamb|lion|momentum|muon|nadam|nesterov|rmsprop|sgd")
SHOWN = {
    name: [
        *([] if OF_RULES.match(case := VARIED.sub("", row["case"])) else [(case,)]),
        (row["flavour"], row["optimizer"]),
        (row["label"], row["container"]),
    ]
    for name, row in ROWS.items()
}


def has_slots(row: Row) -> bool:
    """Tell whether the optimizer keeps more than the number of steps and the learning rate."""
    return any(value.shape for _, value in recorded(row).split("slots", "o0"))


def test_no_file_is_left_out_of_the_manifest() -> None:
    keys = ("file", "npz", "step5", "long", "step100")
    known = {row[key] for row in ROWS.values() for key in keys if row.get(key)}
    assert {p.relative_to(COMPILED).as_posix() for p in COMPILED.glob("*/*")} == known
    for row in ROWS.values():
        for key, wanted in row["sha256"].items():
            content = (COMPILED / row[key]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == wanted, row[key]


def test_every_generation_is_there_with_the_state_of_its_optimizers() -> None:
    assert {row["label"] for row in ROWS.values()} == set(LABELS)
    assert len({(row["label"], row["case"]) for row in ROWS.values() if has_slots(row)}) >= 120


def test_every_model_was_trained_before_it_was_saved() -> None:
    for name, row in ROWS.items():
        slots = [value for _, value in recorded(row).split("slots", "o0")]
        # Keras 2.2 keeps the number of steps of some optimizers nowhere.
        counts = [value for value in slots if value.shape == () and value == BEFORE]
        assert counts or row["label"] == "keras-2.2.4", name
        assert any(np.any(value) for value in slots if value.shape) or not has_slots(row), name


@pytest.mark.parametrize(
    "row", MANIFEST["skipped"], ids=lambda row: f"{row['label']}/{row['case']}"
)
def test_what_a_keras_cannot_make_says_why(row: dict[str, Any]) -> None:
    assert row["reason"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_does_not_say_what_was_compiled(name: str, tmp_path: Path) -> None:
    path, _ = unpack_checkpoint(ROWS[name], tmp_path)
    with pytest.raises(k2t.UnsupportedOptionError, match="no more than the optimizer's numbers"):
        k2t.training(path, config=path.with_name("arch.json"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keras-2.2.4/nadam.h5", ["it begins at 1 again, as in Keras after load_model"]),
        ("keras-2.3.1/nadam.h5", []),
        ("keras-2.3.1/clipvalue_rows.h5", ["where clipvalue clips the gradients of repeated ids"]),
        ("keras-2.3.1/clipnorm.h5", []),
        ("tf.keras-2.15.0/nadam.keras", ["as by eager steps of this Keras", "begins at 1 again"]),
        ("tf_keras-2.21.0/nadam.keras", ["as by eager steps of this Keras", "begins at 1 again"]),
        ("tf.keras-2.15.0/saved_nadam.savedmodel", ["as by eager steps", "leaves out of a Saved"]),
        ("tf_keras-2.21.0/legacy_saved_adam.savedmodel", ["leaves out of a SavedModel"]),
        ("keras-2.2.4/decay_adagrad.h5", ["the number of steps, which the decay of the learning"]),
        (
            "tf.keras-2.10.0/new_unconstrained.savedmodel",
            ["apply no constraints, so state.constrain_() does nothing", "leaves out of a Saved"],
        ),
        ("keras-3.15.1/nadam.keras", []),
        ("keras-3.15.1/muon_plain.keras", ["excluded by exclude_from_weight_decay"]),
        ("keras-3.15.1/adafactor_plain.keras", []),
        ("keras-3.15.1/weight_decay_excluded.keras", ["excluded by exclude_from_weight_decay"]),
    ],
)
def test_notes_say_where_keras_goes_on_otherwise(
    name: str, words: list[str], tmp_path: Path
) -> None:
    state, _ = opened(ROWS[name], tmp_path)
    assert len(state.notes) == len(words)
    for note, part in zip(state.notes, words, strict=True):
        assert part in note


@pytest.mark.sampled(SHOWN)
@pytest.mark.parametrize("name", ROWS)
def test_the_next_steps_are_those_of_keras(name: str, tmp_path: Path) -> None:
    """All of each training; of its other files, which hold the same state, the first ones.

    200 steps of each optimizer in each family, but for ``make test``; with ``K2T_ALL_STEPS=1`` in
    the environment, with all options of every optimizer, of every Keras.
    """
    whole = LONG if "K2T_ALL_STEPS" in os.environ else [] if FEW else LONGEST.values()
    if name in whole:
        follow(name, tmp_path, ROWS[name]["steps"])
    else:
        follow(name, tmp_path, STEPS if name in FOLLOWED.values() else BEFORE)


def test_every_optimizer_takes_200_steps_in_every_family() -> None:
    found = set(LONGEST)
    wanted = {(row["flavour"], row["optimizer"]) for row in ROWS.values()}
    few = ("Lamb", "LossScaleOptimizer", "Muon", "Adafactor")  # 20 steps of these
    assert found == wanted - {("k3", name) for name in few}
