"""The compiled fixtures: models that Keras trained in part, and what it does in the next steps."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import changed_h5, changed_keras
from specs import FIXTURES
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.spec import Array

COMPILED = FIXTURES / "compiled"
Row = Mapping[str, Any]
MANIFEST: Mapping[str, Any] = json.loads((COMPILED / "manifest.json").read_text("utf-8"))
ROWS: Mapping[str, Row] = {
    f"{row['label']}/{row['case']}.{row['container']}": row for row in MANIFEST["files"]
}
BATCHES = 3


def unpack(name: str, folder: Path) -> Path:
    """Copy or unpack a fixture into a folder, where it may be changed; return the model's path."""
    file = COMPILED / name
    if file.suffix != ".tar":
        return Path(shutil.copy(file, folder))
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
        return folder / archive.getnames()[0].partition("/")[0]


def unpack_checkpoint(row: Row, folder: Path) -> tuple[Path, Path]:
    """Unpack a checkpoint; return its prefix, and its architecture with what was compiled.

    Keras wrote that into the SavedModel of the same case.
    """
    inside = unpack(row["file"], folder)
    saved = ROWS[f"{row['label']}/{row['case']}.savedmodel"]
    with open_container(unpack(saved["file"], folder)) as container:
        compiled = container.compiled(None)
    config = json.loads((inside / "arch.json").read_text("utf-8"))
    (inside / "compiled.json").write_text(json.dumps({**config, "training_config": compiled}))
    return inside / "ckpt-1", inside / "compiled.json"


@dataclass(frozen=True)
class Variable:
    """A weight or slot as Keras names it; ``shape``: in Keras."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Recorded:
    """A record of Keras' steps with a model: batches, losses, weights and slots."""

    row: Row
    arrays: Mapping[str, Array]

    @property
    def dtype(self) -> torch.dtype:
        """The float dtype of the model."""
        return torch.float64 if self.row["floats"] == "float64" else torch.float32

    @property
    def losses(self) -> Array:
        """The loss of every step."""
        return self.arrays["losses"]

    def _tensors(self, letter: str, step: int) -> list[Tensor]:
        names = sorted(
            n for n in self.arrays if n.startswith(letter) and n.endswith(f"_{step % BATCHES}")
        )
        found = [torch.from_numpy(self.arrays[name]) for name in names]
        return [t.to(self.dtype) if t.is_floating_point() else t for t in found]

    def inputs(self, step: int) -> list[Tensor]:
        """Return the inputs of a step."""
        return self._tensors("x", step)

    def targets(self, step: int) -> list[Tensor]:
        """Return the targets of a step, one for each output."""
        return self._tensors("y", step)

    def sample_weight(self, step: int) -> Tensor | None:
        """Return the weights of rows, or of steps of rows."""
        found = self._tensors("s", step) if self.row["sample_weights"] else []
        return found[0] if found else None

    def split(self, kind: str, name: str) -> list[tuple[Variable, Array]]:
        """Return ``weights`` or ``slots`` with their values, such as ``w20`` or ``o0``."""
        found, at, flat = [], 0, self.arrays[name]
        for path, shape, _ in json.loads(str(self.arrays[kind])):
            size = int(np.prod(shape))
            found.append((Variable(path, tuple(shape)), flat[at : at + size].reshape(shape)))
            at += size
        assert at == len(flat)
        return found


def recorded(row: Row) -> Recorded:
    """Read what Keras did with a model."""
    return Recorded(row, _arrays(row["npz"]))


@cache
def _arrays(name: str) -> Mapping[str, Array]:
    with np.load(COMPILED / name) as data:
        return {key: data[key] for key in data.files}


def expected_state(row: Row, at: str) -> dict[str, Array]:
    """Return the weights of Keras (``w0``, ``w20``) as the tensors of the converted model.

    Without the counts of batches, which are in no Keras file.
    """
    flat = np.concatenate([[0.0], recorded(row).arrays[at]])
    return {name: flat[numbers] for name, numbers in _numbers(_architecture(row)).items()}


def _architecture(row: Row) -> tuple[Any, ...]:
    """Return what the models of two rows share if they have the same weights in the same order."""
    facts = ("label", "container", "kind", "layers", "floats")
    return (*(row[one] for one in facts), len(row["losses"]))


@cache
def _numbers(architecture: tuple[Any, ...]) -> dict[str, Array]:
    """Convert a model whose weights are 1, 2, 3, ...: what is in each place of its tensors.

    0 is in no weight: zeros of torch, which has a bias that Keras does not have.
    """
    rows = [row for row in ROWS.values() if _architecture(row) == architecture]
    row, old = next((row, values) for row in rows if _all_differ(values := _weights_before(row)))
    ends = np.cumsum([one.size for one in old])
    new = [
        (np.arange(end - one.size, end) + 1.0).reshape(one.shape)
        for one, end in zip(old, ends, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = unpack(row["file"], Path(folder))
        numbered = write_with(source, old, new, Path(folder) / f"numbered{source.suffix}")
        state = k2t.convert(numbered, dtype=row["floats"]).state_dict()
    return {
        name: tensor.numpy().astype(int)
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def _weights_before(row: Row) -> list[Array]:
    return [value for _, value in recorded(row).split("weights", "w0")]


def _all_differ(arrays: Sequence[Array]) -> bool:
    return len({one.tobytes() for one in arrays}) == len(arrays)


def write_with(path: Path, old: Sequence[Array], new: Sequence[Array], out: Path) -> Path:
    """Write a copy of an HDF5 or ``.keras`` file in which each of the old arrays is a new one."""
    if path.suffix == ".h5":
        return changed_h5(path, out, lambda file: _exchange(file["model_weights"], old, new))
    return changed_keras(path, out, lambda _, file: _exchange(file["layers"], old, new))


def _exchange(group: Any, old: Sequence[Array], new: Sequence[Array]) -> None:
    """Put new values where the old ones are; every array is one of the old ones, which differ."""
    datasets: list[Any] = []
    group.visititems(lambda _, one: datasets.append(one) if hasattr(one, "shape") else None)
    for one in datasets:
        values = one[()]
        (at,) = [i for i, value in enumerate(old) if np.array_equal(value, values)]
        one[...] = new[at]
