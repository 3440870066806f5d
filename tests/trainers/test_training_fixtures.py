"""Training goes on as in the Keras that wrote the file: losses and weights of the next steps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled_fixtures import (
    COMPILED,
    MANIFEST,
    ROWS,
    Recorded,
    Row,
    expected_state,
    recorded,
    unpack,
    unpack_checkpoint,
)

import keras2torch_birnn as k2t

STEPS = 20
Source = tuple[Path, Path | None]  # a model, and its configuration if that is in a file of its own
# Both compute in float64; or in float32, whose numbers have 24 bits.
TOLERANCES = {"float64": 1e-12, "float32": 5e-6}
# Saturated gates of weights up to 24: initial weights that differ by one unit in the last place
# become weights that differ by 2e-10 in 20 steps.
AMPLIFIED = {"keras-3.15.1/loss_mape": 1e-9, "tf_keras-2.21.0/loss_mape": 1e-9}
AFTER_200 = 1e-10
# TensorFlow 2.4 computes the loss of a float64 model, and so its gradient, in float32.
LOSS_IN_FLOAT32 = {"tf.keras-2.4.0": 5e-7}
# Name, key of the file that was saved in between, after how many steps.
RESUMED = [
    (name, key, step)
    for name, row in ROWS.items()
    for key, step in (("step5", 5), ("step100", 100))
    if row.get(key)
]
CHECKPOINTS = [name for name, row in ROWS.items() if row["container"] == "checkpoint"]
LABELS = (
    "keras-2.2.4 keras-2.3.1 tf.keras-2.4.0 tf.keras-2.10.0 tf.keras-2.15.0 tf_keras-2.21.0 "
    "keras-3.5.0 keras-3.15.1"
).split()


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
        counts = [value for value in slots if value.shape == () and value == 5]
        assert counts or row["label"] == "keras-2.2.4", name
        assert any(np.any(value) for value in slots if value.shape) or not has_slots(row), name


@pytest.mark.parametrize(
    "row", MANIFEST["skipped"], ids=lambda row: f"{row['label']}/{row['case']}"
)
def test_what_a_keras_cannot_make_says_why(row: dict[str, Any]) -> None:
    assert row["reason"]


def tolerance_of(row: Any) -> float:
    return max(TOLERANCES[row["floats"]], LOSS_IN_FLOAT32.get(row["label"], 0.0))


def train(state: Any, data: Recorded, first: int, steps: int) -> list[float]:
    """Train as Keras' ``fit`` does, and return the losses."""
    losses = []
    weights = data.row["class_weights"]
    options = {"class_weight": {int(k): v for k, v in weights.items()}} if weights else {}
    state.model.train()
    for step in range(first, first + steps):
        state.optimizer.zero_grad()
        inputs, targets = data.inputs(step), data.targets(step)
        loss = state.loss(
            state.model(*inputs),
            targets if len(targets) > 1 else targets[0],
            sample_weight=data.sample_weight(step),
            mask=k2t.output_mask(state.model, *inputs),
            **options,
        )
        loss = loss + state.penalty()
        loss.backward()
        state.optimizer.step()
        state.constrain_()
        losses.append(loss.item())
    return losses


def check_weights(state: Any, source: Source, data: Recorded, at: str, tolerance: float) -> None:
    """Compare the trained model with the weights of Keras."""
    path, config = source
    out = path.with_name(f"{at}-{path.name}")
    tolerance = max(tolerance, AMPLIFIED.get(f"{data.row['label']}/{data.row['case']}", 0.0))
    if data.row["container"] in ("savedmodel", "checkpoint"):
        old = [value for _, value in data.split("weights", "w0")]
        new = [value for _, value in data.split("weights", at)]
        k2t.write_back(state.model, path, out, config=config)
        got = list(k2t.weights(out if path.is_dir() else out / path.name).values())
        first = path  # the order of the weights is that of the first file
        if data.row["container"] == "savedmodel":
            (folder := path.parent / f"first-{at}").mkdir()
            first = unpack(data.row["file"], folder)
        before = list(k2t.weights(first).values())
        for one, wanted in zip(old, new, strict=True):
            index = next(i for i, v in enumerate(before) if np.array_equal(v, one))
            np.testing.assert_allclose(got[index], wanted, atol=tolerance, rtol=tolerance)
        return
    found = state.model.state_dict()
    for key, value in expected_state(data.row, at).items():
        np.testing.assert_allclose(found[key], value, atol=tolerance, rtol=tolerance, err_msg=key)


def is_uncounted(row: Any) -> bool:
    """Keras 2.2 saves the count of steps only where it makes a difference to the rule."""
    return row["label"] == "keras-2.2.4" and row["optimizer"] in ("RMSprop", "Adagrad", "Adadelta")


def opened(row: Any, folder: Path) -> tuple[Any, Source]:
    """Return the training of a file, and its path and configuration."""
    path, config = unpack(row["file"], folder), None
    if row["container"] == "checkpoint":
        path, config = unpack_checkpoint(row, folder)
    state = k2t.training(path, dtype=row["floats"], config=config)
    assert state.optimizer.iterations == (0 if is_uncounted(row) else 5)
    return state, (path, config)


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
        ("tf.keras-2.15.0/nadam.keras", ["as by eager steps of this Keras", "begins at 1 again"]),
        ("tf.keras-2.15.0/saved_nadam.savedmodel", ["as by eager steps", "leaves out of a Saved"]),
        ("tf_keras-2.21.0/legacy_saved_adam.savedmodel", ["leaves out of a SavedModel"]),
        ("keras-3.15.1/nadam.keras", []),
    ],
)
def test_notes_say_where_keras_goes_on_otherwise(
    name: str, words: list[str], tmp_path: Path
) -> None:
    state, _ = opened(ROWS[name], tmp_path)
    assert len(state.notes) == len(words)
    for note, part in zip(state.notes, words, strict=True):
        assert part in note


@pytest.mark.parametrize("name", ROWS)
def test_the_next_steps_are_those_of_keras(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    data = recorded(row)
    state, source = opened(row, tmp_path)
    tolerance = tolerance_of(row)
    check_weights(state, source, data, "w0", 0.0)
    losses = train(state, data, 0, STEPS)
    np.testing.assert_allclose(losses, data.losses[:STEPS], atol=tolerance, rtol=tolerance)
    check_weights(state, source, data, "w20", tolerance)
    if row["steps"] > STEPS:
        check_late_steps(state, source, data, STEPS)


def check_late_steps(state: Any, source: Source, data: Recorded, first: int) -> None:
    """Train up to step 200, and compare."""
    late = max(AFTER_200, 20 * LOSS_IN_FLOAT32.get(data.row["label"], 0.0))
    losses = train(state, data, first, data.row["steps"] - first)
    np.testing.assert_allclose(losses, data.losses[first:], atol=late, rtol=late)
    check_weights(state, source, data, "w200", late)


@pytest.mark.parametrize(("name", "key", "step"), RESUMED)
def test_a_file_of_a_later_step_goes_on_as_if_never_interrupted(
    name: str, key: str, step: int, tmp_path: Path
) -> None:
    row = ROWS[name]
    data, path = recorded(row), unpack(row[key], tmp_path)
    state = k2t.training(path, dtype=row["floats"])
    if step < STEPS:
        tolerance = tolerance_of(row)
        losses = train(state, data, step, STEPS - step)
        np.testing.assert_allclose(losses, data.losses[step:STEPS], atol=tolerance, rtol=tolerance)
    if row["steps"] > STEPS:
        check_late_steps(state, (path, None), data, max(step, STEPS))
