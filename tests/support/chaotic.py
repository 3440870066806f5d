"""Files of real Keras made chaotic: larger recurrent kernels, and more steps than they forget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
from commands import changed_config, changed_h5
from specs import FIXTURES

STEPS = 211


def chaotic(file: str, folder: Path, *, factor: float = 30.0, steps: int = STEPS) -> Path:
    """A fixture (``.h5``) whose recurrent kernels are so many times as large."""

    def grow(content: h5py.File) -> None:
        def visit(name: str, item: Any) -> None:
            if "recurrent_kernel" in name and isinstance(item, h5py.Dataset):
                item[...] = item[()] * factor

        content.visititems(visit)

    def lengthen(model: dict[str, Any]) -> None:
        for layer in model["config"]["layers"]:
            for key in ("batch_input_shape", "batch_shape"):
                if key in layer["config"]:
                    layer["config"][key][1] = steps

    grown = changed_h5(FIXTURES / file, folder / "grown.h5", grow)
    return changed_config(grown, folder / "chaotic.h5", lengthen)
