"""``k2t.training`` goes on as real Keras did from the same file: losses of the next steps.

Every fourth file of ``fixtures/compiled`` is trained; ``K2T_ALL_COMPILED=1`` trains all of them.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import FIXTURES
from torch import Tensor

import keras2torch_birnn as k2t

FOLDER = FIXTURES / "compiled"
MANIFEST = FOLDER / "manifest.json"
FILES = json.loads(MANIFEST.read_text(encoding="utf-8"))["files"] if MANIFEST.exists() else []
ALL = bool(os.environ.get("K2T_ALL_COMPILED"))
# Nadam of tf.keras 2.11 and later loses its running product in its own files.
LOST = [row for row in FILES if row["optimizer"] == "Nadam" and row["flavour"] == "new"]
ROWS = [
    row for row in FILES if row not in LOST and (ALL or zlib.crc32(row["file"].encode()) % 4 == 0)
]
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}


def unpack(row: dict[str, Any], folder: Path) -> tuple[Path, Path | None]:
    """Return the model of a row, and its architecture if that is a file of its own."""
    packed = FOLDER / row["file"]
    if packed.suffix == ".gz":
        path = folder / packed.stem
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        return path, None
    if packed.suffix == ".xz":
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        (path,) = folder.iterdir()
        found = path / "arch.json"
        return (path / "ckpt-1", found) if found.exists() else (path, None)
    return packed, None


def is_uncounted(row: dict[str, Any]) -> bool:
    """Keras 2.2 saves the count of steps only where it makes a difference to the rule."""
    return row["label"] == "keras-2.2.4" and row["optimizer"] in ("RMSprop", "Adagrad", "Adadelta")


def tensor(values: Any, floats: str) -> Tensor:
    found = torch.from_numpy(values)
    return found.to(getattr(torch, floats)) if found.is_floating_point() else found


def train(state: k2t.Training, row: dict[str, Any], data: Any, steps: int) -> list[float]:
    """Train on the recorded batches; return the loss of each step."""
    losses: list[float] = []
    classes = row["class_weights"] and {int(key): one for key, one in row["class_weights"].items()}
    for step in range(steps):
        batch = step % 3
        x = tensor(data[f"x0_{batch}"], row["floats"])
        targets = [
            tensor(data[f"y{number}_{batch}"], row["floats"])
            for number in range(len(row["losses"]))
        ]
        weights = tensor(data[f"s_{batch}"], row["floats"]) if row["sample_weights"] else None
        state.optimizer.zero_grad()
        mask = k2t.output_mask(state.model, x)
        loss = state.loss(
            state.model(x),
            targets if len(targets) > 1 else targets[0],
            sample_weight=weights,
            mask=mask,
            class_weight=classes,
        )
        total = loss + state.penalty()
        total.backward()
        state.optimizer.step()
        state.constrain_()
        losses.append(total.item())
    return losses


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_the_losses_of_the_next_steps_are_those_of_keras(
    row: dict[str, Any], tmp_path: Path
) -> None:
    path, config = unpack(row, tmp_path)
    if config is not None:  # a checkpoint holds weights and slots, but not what was compiled
        with pytest.raises(k2t.UnsupportedOptionError, match="holds no compiled training"):
            k2t.training(path, config=config)
        return
    data = np.load(FOLDER / row["npz"])
    state = k2t.training(path)
    assert state.optimizer.iterations == (0 if is_uncounted(row) else 5)
    losses = train(state, row, data, 20)
    np.testing.assert_allclose(
        losses, data["losses"][:20], rtol=TOLERANCE[row["floats"]], atol=TOLERANCE[row["floats"]]
    )
