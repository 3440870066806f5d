"""Training: the converted model takes the steps that Keras takes, and trains what Keras trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from specs import FIXTURES
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.running import flat

FOLDER = FIXTURES / "training"
# Both compute in float64; or in float32, whose numbers have 24 bits.
TOLERANCES = {"float64": 1e-12, "float32": 5e-6}
# These compute the loss of a float64 model, and so its gradient, in float32.
LOSS_IN_FLOAT32 = {"tf.keras-2.4.0": 5e-7, "keras-3.15.1-torch": 5e-6}
ENTRIES: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())
# Regularizers that are refused when they are needed (``test_penalties.py``).
REFUSED = ("regularized", "orthogonal")
TRAINED = {
    f"{e['label']}/{e['case']}": e
    for e in ENTRIES
    if e["kind"] == "training" and e["case"] not in REFUSED
}
FROZEN = {f"{e['label']}/{e['case']}": e for e in ENTRIES if e["kind"] == "frozen"}
STEPS, BATCHES = 20, 4
FILES = ("before", "after", "npz")


# TensorFlow rounds the momentum of a BatchNormalization to float32, in a float64 model, too.
MOMENTUM_IN_FLOAT32 = 2e-6


def tolerance_of(entry: dict[str, Any]) -> float:
    rounded = entry["case"].startswith("bn_") and not entry["label"].startswith("keras-3")
    return max(
        TOLERANCES[entry["floats"]],
        LOSS_IN_FLOAT32.get(entry["label"], 0.0),
        MOMENTUM_IN_FLOAT32 if rounded else 0.0,
    )


Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "mse": lambda y, target: (y - target).square().mean(dim=-1),
    # of probabilities, as the layer behind a softmax gives them
    "classes": lambda y, target: -y.gather(-1, target[..., None]).squeeze(-1).log(),
}


def test_no_training_file_is_left_out_of_its_manifest() -> None:
    known = {e[key] for e in ENTRIES for key in FILES if key in e}
    found = {p.relative_to(FOLDER).as_posix() for p in FOLDER.glob("*/*")}
    assert found == known
    for entry in ENTRIES:
        for key, wanted in entry["sha256"].items():
            content = (FOLDER / entry[key]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == wanted, entry[key]


def test_both_newest_kerases_have_eighteen_kinds_of_models() -> None:
    for label in ("keras-3.15.1", "tf_keras-2.21.0"):
        assert sum(name.startswith(f"{label}/") for name in TRAINED) >= 18


def mask_of(kind: str | None, x: Tensor) -> Tensor | None:
    """The steps that count in the loss, by what the mask says of the first input."""
    if kind is None:
        return None
    return (x != 0) if kind == "ids" else (x != 0).any(dim=-1)


def loss_of(entry: dict[str, Any], inputs: Sequence[Tensor], ys: Any, targets: Any) -> Tensor:
    """Return the loss of Keras: means over unmasked values, weighted over the outputs."""
    total = torch.zeros((), dtype=ys[0].dtype)
    mask = mask_of(entry["mask"], inputs[0])
    for y, target, weight in zip(
        ys, targets, entry["loss_weights"] or [1.0] * len(ys), strict=True
    ):
        each = LOSSES[entry["loss"]](y, target)
        total = total + weight * (each.mean() if mask is None else each[mask].mean())
    return total


def trained_as_keras(entry: dict[str, Any]) -> tuple[nn.Module, list[float]]:
    """The converted model after the steps of Keras, and the loss of every step."""
    data = np.load(FOLDER / entry["npz"])
    model = k2t.convert(FOLDER / entry["before"], dtype=entry["floats"]).train()
    kind = getattr(torch, entry["floats"])
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learns, float(data["rate"]))

    def part(letter: str, step: int) -> list[Tensor]:
        names = sorted(n for n in data if n[0] == letter and n.endswith(f"_{step % BATCHES}"))
        found = [torch.from_numpy(data[name]) for name in names]
        return [t.to(kind) if t.is_floating_point() else t.long() for t in found]

    losses = []
    for step in range(STEPS):
        if entry["reset_every"] and step % entry["reset_every"] == 0:
            k2t.reset_states(model)
        inputs = part("x", step)
        loss = loss_of(entry, inputs, flat(model(*inputs)), part("y", step))
        loss = loss + k2t.penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        k2t.constrain_(model)
        losses.append(loss.item())
    return model, losses


@pytest.mark.sampled({name: name.split("/") for name in TRAINED})
@pytest.mark.parametrize("name", TRAINED)
def test_twenty_steps_are_those_of_keras(name: str) -> None:
    entry = TRAINED[name]
    tolerance = tolerance_of(entry)
    model, losses = trained_as_keras(entry)
    wanted = np.load(FOLDER / entry["npz"])["losses"]
    np.testing.assert_allclose(losses, wanted, atol=tolerance, rtol=tolerance)
    assert abs(wanted[0] - wanted[-1]) > 1e-3  # something was learned
    after = k2t.convert(FOLDER / entry["after"], dtype=entry["floats"]).state_dict()
    got = model.state_dict()
    assert after.keys() == got.keys()
    for key, value in after.items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(got[key], value, atol=tolerance, rtol=tolerance, err_msg=key)


@pytest.mark.sampled({name: name.split("/") for name in FROZEN})
@pytest.mark.parametrize("name", FROZEN)
def test_what_keras_trains_after_load_model_has_requires_grad(name: str) -> None:
    """The file holds ones in all that its Keras trains, zeros in the rest."""
    entry = FROZEN[name]
    model = k2t.convert(FOLDER / entry["before"])
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, torch.full_like(parameter, float(parameter.requires_grad))), (
            key
        )


@pytest.mark.parametrize(
    ("file", "frozen"),
    [
        ("frozen_layer.h5", {"embedding_1", "batch_normalization_1"}),
        (
            "nested_frozen.h5",
            {f"sequential_2.{n}_1" for n in ("bidirectional", "batch_normalization")},
        ),
    ],
)
def test_layers_that_keras_2_froze_are_frozen(file: str, frozen: set[str]) -> None:
    """The manifest has files of newer generations only."""
    flags: dict[bool, set[str]] = {True: set(), False: set()}
    for name, parameter in k2t.convert(FIXTURES / "keras-2.2.4" / file).named_parameters():
        flags[parameter.requires_grad].add(name.rpartition(".")[0])
    assert flags[False] == frozen
    assert flags[True] and not flags[True] & frozen
