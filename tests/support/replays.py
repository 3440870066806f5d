"""Training as the Keras of a compiled fixture did it, and comparisons with what that recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from compiled_fixtures import (
    BATCHES,
    ROWS,
    Recorded,
    Row,
    expected_state,
    recorded,
    unpack,
    unpack_checkpoint,
)

import keras2torch_birnn as k2t

BEFORE, STEPS = 5, 20  # steps before the file was saved, and after it
Source = tuple[Path, Path | None]  # a model, and its configuration if that is in a file of its own
# Both compute in float64; or in float32, whose numbers have 24 bits.
TOLERANCES = {"float64": 1e-12, "float32": 5e-6}
# Tolerances of losses and weights of 20 steps that amplify a rounding. Initial weights that differ
# by one unit in the last place become weights that differ by 2e-10 (loss_mape: saturated gates of
# weights up to 24), or losses that differ by 0.5 to 4e-11 (saturated: losses up to 13; in the first
# steps they differ from Keras' by 1e-15, in the 20th by 2e-11), or in float32 by 1.5e-5
# (single_adafactor: it divides each gradient by its size, however small that is).
AMPLIFIED = {
    "keras-2.3.1/saturated": (1e-11, 1e-11),
    "keras-3.15.1-torch/saturated": (1e-4, 1e-4),
    "keras-3.15.1/loss_mape": (1e-12, 1e-9),
    "keras-3.15.1/single_adafactor": (5e-6, 3e-5),
    "tf_keras-2.21.0/loss_mape": (1e-12, 1e-9),
}
AFTER_200 = 1e-10
# Likewise of 200 steps: one unit in the last place moves the weights by 0.5 to 4e-10.
AMPLIFIED_200 = {"keras-3.5.0/adamw": 1e-9}
# These compute the loss of a float64 model, and so its gradient, in float32.
LOSS_IN_FLOAT32 = {"tf.keras-2.4.0": 5e-7, "keras-3.15.1-torch": 5e-6}
# Keys of the files that Keras saved in between, and after how many steps.
RESUMED = {"step5": 5, "step100": 100}
# Of all files of a case, one is followed to the end: that with files of later steps.
FOLLOWED = {
    row["npz"]: name
    for name, row in sorted(ROWS.items(), key=lambda one: any(map(one[1].get, RESUMED)))
}
GOES_ON = 15  # steps from such a file, which must hold what the training before it has got to


def tolerances_of(row: Row) -> tuple[float, float]:
    """Return the tolerance of losses, and that of weights."""
    near = max(TOLERANCES[row["floats"]], LOSS_IN_FLOAT32.get(row["label"], 0.0))
    return AMPLIFIED.get(f"{row['label']}/{row['case']}", (near, near))


def train(state: k2t.Training, data: Recorded, first: int, steps: int) -> list[float]:
    """Train as Keras' ``fit`` does, and return the losses."""
    weights = data.row["class_weights"]
    options = {"class_weight": {int(k): v for k, v in weights.items()}} if weights else {}
    batches = []
    for number in range(BATCHES):
        inputs, targets = data.inputs(number), data.targets(number)
        facts = options | {
            "sample_weight": data.sample_weight(number),
            "mask": k2t.output_mask(state.model, *inputs),
        }
        batches.append((inputs, targets if len(targets) > 1 else targets[0], facts))
    losses = []
    state.model.train()
    for step in range(first, first + steps):
        inputs, wanted, facts = batches[step % BATCHES]
        state.optimizer.zero_grad()
        loss = state.loss(state.model(*inputs), wanted, **facts) + state.penalty()
        loss.backward()
        state.optimizer.step()
        state.constrain_()
        losses.append(loss.item())
    return losses


def check_weights(state: Any, source: Source, data: Recorded, at: str, tolerance: float) -> None:
    """Compare the trained model with the weights of Keras."""
    if data.row["container"] in ("savedmodel", "checkpoint"):  # whose weights have no names here
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
    assert state.optimizer.iterations == (0 if is_uncounted(row) else BEFORE)
    return state, (path, config)


def follow(name: str, folder: Path, steps: int) -> None:
    """Train a file for these steps, and compare all that Keras recorded up to there.

    Losses of every step, weights after 20 and 200, and files that Keras saved in between. Such a
    file must hold what the training has got to, and goes on from there as well.
    """
    row = ROWS[name]
    data = recorded(row)
    state, source = opened(row, folder)
    early = tolerances_of(row)
    late = max(AFTER_200, 20 * LOSS_IN_FLOAT32.get(row["label"], 0.0))
    late = AMPLIFIED_200.get(f"{row['label']}/{row['case']}", late)
    check_weights(state, source, data, "w0", 0.0)
    stops = {STEPS, steps} | {step for key, step in RESUMED.items() if row.get(key)}
    done = 0
    for stop in sorted(one for one in stops if one <= steps):
        near, of_weights = early if stop <= STEPS else (late, late)
        losses = train(state, data, done, stop - done)
        np.testing.assert_allclose(losses, data.losses[done:stop], atol=near, rtol=near)
        if stop in (STEPS, row["steps"]):
            check_weights(state, source, data, f"w{stop}", of_weights)
        for key in (key for key, step in RESUMED.items() if step == stop and row.get(key)):
            check_resumed(state, data, unpack(row[key], folder), near)
        done = stop


def check_resumed(state: Any, data: Recorded, path: Path, tolerance: float) -> None:
    """Compare a file of a later step with the training up to it, and go on from the file."""
    again = k2t.training(path, dtype=data.row["floats"])
    counted = 0 if is_uncounted(data.row) else BEFORE
    first = state.optimizer.iterations - counted
    assert again.optimizer.iterations == (first + counted if counted else 0)
    for (key, wanted), (_, found) in zip(numbers(state), numbers(again), strict=True):
        np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=tolerance, err_msg=key)
    losses, wanted = train(again, data, first, GOES_ON), data.losses[first : first + GOES_ON]
    np.testing.assert_allclose(losses, wanted, atol=tolerance, rtol=tolerance)


def numbers(state: Any) -> list[tuple[str, Any]]:
    """Return all that a training is at: the model's tensors, its slots, the optimizer's numbers."""
    slots = [
        (f"{name}/{slot}", value)
        for name, param in state.model.named_parameters()
        if param.requires_grad
        for slot, value in sorted(state.optimizer.state[param].items())
    ]
    shared = sorted(state.optimizer.param_groups[0]["shared"].items())
    rate = ("rate", state.optimizer.learning_rate)
    return [*state.model.state_dict().items(), *slots, *shared, rate]
