"""Script that lets the installed Keras load models and predict, for ``written_models.py``.

    python keras_predicts.py PACKAGE FOLDER

PACKAGE: keras, tf_keras or tf.keras. FOLDER: with a folder for each case, in which ``model.*`` or
``model`` is the model, and ``case.npz`` its inputs (in_0, ...) and outputs (out_0, ...).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np


def predict(models, case):
    """Load the model of a case and predict; return the worst error in units of the tolerance."""
    (path,) = [p for p in case.iterdir() if p.name.partition(".")[0] == "model"]
    model = models.load_model(str(path), compile=False)
    data = np.load(case / "case.npz")
    inputs = [data[f"in_{i}"] for i in range(len(data.files)) if f"in_{i}" in data.files]
    wanted = [data[f"out_{i}"] for i in range(len(data.files)) if f"out_{i}" in data.files]
    got = model(inputs[0] if len(inputs) == 1 else inputs)
    got = [np.asarray(y) for y in (got if isinstance(got, (list, tuple)) else [got])]
    if len(got) != len(wanted):
        return float("inf")
    errors = [np.abs(a - b) / (1e-5 + 1e-4 * np.abs(b)) for a, b in zip(got, wanted, strict=True)]
    return max(float(e.max()) for e in errors)


def main():
    """Print a line for each case: its name, and the error or what went wrong."""
    package = {"tf.keras": "tensorflow.keras"}.get(sys.argv[1], sys.argv[1])
    models = importlib.import_module(package + ".models")
    for case in sorted(Path(sys.argv[2]).iterdir()):
        try:
            print(case.name, predict(models, case), flush=True)
        except Exception as error:
            print(case.name, "inf", type(error).__name__, str(error)[:300].replace("\n", " "))


if __name__ == "__main__":
    main()
