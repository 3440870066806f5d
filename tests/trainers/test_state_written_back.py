"""The state of an optimizer goes back into its Keras file, from which real Keras trains on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras_trains_on
import live
import numpy as np
import pytest
import torch
from compiled_fixtures import COMPILED, ROWS, recorded, unpack, unpack_checkpoint
from replays import train
from torch import Tensor

import keras2torch_birnn as k2t

STEPS = 2
FORGETS_PRODUCT = ("keras-2.2.4/nadam.h5", "tf.keras-2.15.0/nadam.keras")
READ_AGAIN = (
    "keras-2.2.4/adam.h5",
    "tf.keras-2.10.0/nadam.h5",
    "tf.keras-2.15.0/adam.h5",
    "tf.keras-2.15.0/adam.keras",
    "tf.keras-2.15.0/saved_nadam.savedmodel",
    "tf_keras-2.21.0/legacy_saved_adam.savedmodel",
    "tf.keras-2.4.0/saved_adam.checkpoint",
    "tf.keras-2.10.0/new_saved_adam.checkpoint",
    "tf.keras-2.10.0/saved_schedule.checkpoint",
    "tf.keras-2.15.0/saved_adam.checkpoint",
    "keras-3.5.0/adam.keras",
    "keras-3.15.1/nadam.keras",
    "keras-3.15.1/accumulation.keras",
    "keras-3.15.1/adam.h5",
    "keras-3.15.1/lamb_tagger.keras",
    "keras-3.15.1/scaled.keras",
    "keras-3.15.1/scaled.h5",
    "keras-3.15.1/muon_tagger.keras",
    "keras-3.15.1/muon_excluded.h5",
    "keras-3.15.1/adafactor_attentive.keras",
    "keras-3.15.1/adafactor_accumulation.keras",
)
LIVE = {
    "keras": (
        "keras-3.15.1/adam_tagger.keras",
        "keras-3.15.1/nadam.keras",
        "keras-3.15.1/momentum_nested.keras",
        "keras-3.15.1/muon_tagger.keras",
        "keras-3.15.1/adafactor_attentive.keras",
        "keras-3.15.1/scaled.keras",
    ),
    "tf_keras": (
        "tf_keras-2.21.0/adam.keras",
        "tf_keras-2.21.0/adam.h5",
        "tf_keras-2.21.0/lion.keras",
    ),
}


class Written(NamedTuple):
    """A model that was trained and written back; ``config``: of a checkpoint."""

    state: k2t.Training
    model: k2t.WrittenModel
    config: Path | None

    @property
    def path(self) -> Path:
        """The path to open it by."""
        return self.model.path if self.config is None else self.model.path / "ckpt-1"


def trained_and_written(name: str, folder: Path) -> Written:
    path, config = unpack(ROWS[name]["file"], folder), None
    if ROWS[name]["container"] == "checkpoint":
        path, config = unpack_checkpoint(ROWS[name], folder)
    state = k2t.training(path, config=config)
    train(state, recorded(ROWS[name]), 0, STEPS)
    new = folder / f"new-{name.replace('/', '-')}".removesuffix(".savedmodel")
    written = k2t.write_back(state.model, path, new, optimizer=state.optimizer, config=config)
    return Written(state, written, config)


def slots_of(state: k2t.Training) -> dict[str, Tensor]:
    return {
        f"{name}/{slot}": value
        for name, param in state.model.named_parameters()
        for slot, value in state.optimizer.state[param].items()
    }


@pytest.mark.every(2)
@pytest.mark.parametrize("name", READ_AGAIN)
def test_a_written_state_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    written = trained_and_written(name, tmp_path)
    state = written.state
    assert not any("Nadam" in note for note in written.model.notes)
    if name == "tf.keras-2.15.0/adam.h5":
        assert written.model.notes == ()
        assert written.path.stat().st_size == (COMPILED / ROWS[name]["file"]).stat().st_size
    again = k2t.training(written.path, config=written.config)
    assert again.optimizer.iterations == state.optimizer.iterations == 5 + STEPS
    groups = [one.optimizer.param_groups[0] for one in (state, again)]
    assert all(groups[0][key] == groups[1][key] for key in ("lr", "shared"))
    wanted, got = slots_of(state), slots_of(again)
    assert wanted.keys() == got.keys() != set()
    assert all(torch.equal(value, got[key]) for key, value in wanted.items())
    for one in (state, again):
        train(one, recorded(ROWS[name]), STEPS, 1)
    for key, value in state.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


@pytest.mark.parametrize("name", FORGETS_PRODUCT)
def test_a_note_says_that_a_file_has_no_place_for_the_product(name: str, tmp_path: Path) -> None:
    written = trained_and_written(name, tmp_path)
    (note,) = written.model.notes
    assert "no place for the product of Nadam's momenta: in Keras it begins at 1 again" in note
    products = [
        one.optimizer.param_groups[0]["shared"]["product"]
        for one in (written.state, k2t.training(written.path))
    ]
    assert products[0] < products[1] == 1.0


def test_a_note_says_that_a_file_has_no_place_for_the_number_of_steps(tmp_path: Path) -> None:
    written = trained_and_written("keras-2.2.4/decay_adagrad.h5", tmp_path)
    (note,) = written.model.notes
    assert "no place for the number of steps, which the decay of the learning rate needs" in note
    rates = [one.optimizer.learning_rate for one in (written.state, k2t.training(written.path))]
    assert rates[0] < rates[1] == pytest.approx(0.051)


def test_the_numbers_of_a_checkpoint_are_taken_instead_of_given_ones(tmp_path: Path) -> None:
    path, config = unpack_checkpoint(ROWS["tf.keras-2.4.0/saved_adam.checkpoint"], tmp_path)
    given = json.loads(config.read_text("utf-8"))
    options = given["training_config"]["optimizer_config"]["config"]
    wanted = k2t.training(path, config=config).optimizer
    options |= {"learning_rate": 0.5, "beta_1": 0.25, "beta_2": 0.125, "decay": 0.75}
    config.write_text(json.dumps(given))
    found = k2t.training(path, config=config).optimizer
    assert found.learning_rate == wanted.learning_rate == pytest.approx(0.017)
    assert found.rule == wanted.rule
    assert found.settings == wanted.settings


def test_a_changed_rate_is_written_or_noted(tmp_path: Path) -> None:
    path, config = unpack_checkpoint(ROWS["tf.keras-2.4.0/saved_adam.checkpoint"], tmp_path)
    state = k2t.training(path, config=config)
    state.optimizer.param_groups[0]["lr"] = 0.25
    new = tmp_path / "new"
    written = k2t.write_back(state.model, path, new, optimizer=state.optimizer, config=config)
    assert written.changed == 1
    assert written.notes == ()
    assert k2t.training(new / "ckpt-1", config=config).optimizer.learning_rate == 0.25
    source = unpack(ROWS["tf.keras-2.4.0/adam.h5"]["file"], tmp_path)
    state = k2t.training(source)
    state.optimizer.param_groups[0]["lr"] = 0.25
    written = k2t.write_back(state.model, source, tmp_path / "x.h5", optimizer=state.optimizer)
    assert written.changed == 0
    (note,) = written.notes
    assert "it is 0.017 again after load_model, not 0.25" in note


@pytest.mark.live_keras
@pytest.mark.parametrize("package", LIVE)
def test_keras_trains_on_from_what_was_written(package: str, tmp_path: Path) -> None:
    if live.label(package) is None:
        pytest.skip(f"{package} is not installed")
    pairs = []
    for name in LIVE[package]:
        pairs += [str(trained_and_written(name, tmp_path).path), str(COMPILED / ROWS[name]["npz"])]
    done = subprocess.run(
        [sys.executable, keras_trains_on.__file__, package, str(STEPS), *pairs],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "0", "KERAS_BACKEND": "tensorflow"},
    )
    lines = done.stdout.splitlines()[-len(LIVE[package]) :]
    for name, line in zip(LIVE[package], lines, strict=True):
        losses = np.array(line.split(), dtype=float)
        wanted = recorded(ROWS[name]).losses[STEPS : STEPS + keras_trains_on.STEPS]
        np.testing.assert_allclose(losses, wanted, rtol=1e-11, atol=1e-11, err_msg=name)
