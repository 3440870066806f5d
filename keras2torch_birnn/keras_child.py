"""Runs a model in the live Keras. A script for a child process: nothing of ours is imported.

``python keras_child.py PACKAGE MODEL INPUTS.npz OUTPUTS.npz [ARCH.json]``; PACKAGE is ``keras`` or
``tf_keras``. Writes out_0, out_1, ... and the version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(
    package: str, model_path: str, inputs: str, outputs: str, config: str | None = None
) -> None:
    """Load, predict once, write."""
    if package == "tf_keras":
        import tf_keras as keras
    else:
        import keras
    if config is None:
        model = keras.models.load_model(model_path, compile=False)
    else:
        model = keras.models.model_from_json(Path(config).read_text(encoding="utf-8"))
        model.load_weights(model_path)
    with np.load(inputs) as data:
        given = [data[f"in_{i}"] for i in range(len(data.files))]
    result = model(given[0] if len(given) == 1 else given, training=False)
    named: dict[str, Any] = {f"out_{i}": np.asarray(y) for i, y in enumerate(_flat(result))}
    np.savez(outputs, version=np.array(keras.__version__), **named)


def _flat(result: Any) -> list[Any]:
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in _flat(part)]
    return [result]


if __name__ == "__main__":
    main(*sys.argv[1:])
