"""Training goes on as in the Keras that wrote the file: losses and weights of the next steps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_fixtures import (
    BATCHES,
    COMPILED,
    ROWS,
    Recorded,
    Row,
    expected_state,
    recorded,
    unpack,
)
from sampling import rest_thorough

import keras2torch_birnn as k2t

BEFORE, STEPS, CLOSE = 5, 20, 1e-5
RULES = ("Adam", "AdamW", "SGD", "RMSprop")
# What a note says of a training that is not Keras' own. A weight decay is: only its notes differ.
OTHERWISE = ("follows", "is divided by", "moving averages", "batches' gradients", "one by one")
OTHERWISE += ("leaves them out",)
OVER_ALL = "averages over all, with 0 at masked ones"
# Gates that are saturated amplify the rounding of a loss that Keras computes in float32.
AMPLIFIED = {"keras-3.15.1-torch/saturated.h5": 1e-3}


def is_read(row: Row) -> bool:
    """Tell whether a file is one whose optimizer's state is read."""
    return row["container"] in ("h5", "keras") and row["optimizer"] in RULES


FILES = [name for name, row in ROWS.items() if is_read(row)]
# A file of each optimizer and each kind of model, of each Keras.
KEPT = list(
    {
        (row["label"], row["optimizer"], row["kind"]): name
        for name, row in ROWS.items()
        if name in FILES
    }.values()
)


def train(state: k2t.Training, data: Recorded, steps: int) -> list[float]:
    """Train as Keras' ``fit`` does, and return the losses."""
    assert state.loss is not None
    losses = []
    for step in range(steps):
        inputs, targets = data.inputs(step % BATCHES), data.targets(step % BATCHES)
        weight, mask = data.sample_weight(step % BATCHES), state.output_mask(*inputs)
        if any(OVER_ALL in note for note in state.notes):  # which a sample weight does
            assert isinstance(mask, torch.Tensor)
            weight, mask = (mask if weight is None else mask * weight), None
        state.optimizer.zero_grad()
        loss = state.loss(
            state.model(*inputs),
            targets if len(targets) > 1 else targets[0],
            sample_weight=weight,
            mask=mask,
        )
        loss = loss + state.penalty()
        loss.backward()
        state.optimizer.step()
        state.constrain_()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", rest_thorough(FILES, KEPT))
def test_the_next_steps_are_those_of_keras_or_a_note_says_why_not(
    name: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    state = k2t.training(unpack(row["file"], tmp_path), dtype=row["floats"])
    if state.loss is None:
        assert any(note.startswith("state.loss is None: ") for note in state.notes)
        return
    data = recorded(row)
    losses = train(state, data, STEPS)
    close = AMPLIFIED.get(name, CLOSE)
    found = state.model.state_dict()
    largest = max(
        float(np.abs(found[key].numpy() - value).max())
        for key, value in expected_state(row, "w20").items()
    )
    largest = max(largest, float(np.abs(losses - data.losses[:STEPS]).max()))
    assert largest < close or any(words in note for note in state.notes for words in OTHERWISE)


@pytest.mark.parametrize("name", [name for name in FILES if ROWS[name]["step5"]])
def test_a_file_of_a_later_step_holds_what_the_training_has_got_to(
    name: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    (tmp_path / "later").mkdir()
    state, later = (
        k2t.training(unpack(row[key], folder), dtype=row["floats"])
        for key, folder in (("file", tmp_path), ("step5", tmp_path / "later"))
    )
    if state.loss is None or any(words in n for n in state.notes for words in OTHERWISE):
        return
    train(state, recorded(row), BEFORE)
    named = zip(state.model.named_parameters(), later.model.parameters(), strict=True)
    for (key, one), other in named:
        torch.testing.assert_close(one, other, rtol=CLOSE, atol=CLOSE, msg=key)
        held = later.optimizer.state[other]
        for slot, value in state.optimizer.state[one].items():
            torch.testing.assert_close(value, held[slot], rtol=CLOSE, atol=CLOSE, msg=key)


def test_no_file_is_left_out_of_the_manifest() -> None:
    keys = ("file", "npz", "step5")
    known = {row[key] for row in ROWS.values() for key in keys if row.get(key)}
    assert {p.relative_to(COMPILED).as_posix() for p in COMPILED.glob("*/*")} == known
    for row in ROWS.values():
        for key, wanted in row["sha256"].items():
            content = (COMPILED / row[key]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == wanted, row[key]
