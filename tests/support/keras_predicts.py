"""Script that lets an installed Keras load models and predict, for ``written_models.py``.

    python keras_predicts.py PACKAGE FOLDER

PACKAGE: keras, tf_keras or tf.keras. FOLDER: with a folder for each case, in which ``model.*`` is
the model, and ``case.npz`` its inputs (in_0, ...) and outputs (out_0, ...). Older Pythons run it.
"""

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

ABSOLUTE, RELATIVE = 1e-5, 1e-4


def load(package, case):
    """Load the model of a case."""
    (path,) = [p for p in case.iterdir() if p.name.partition(".")[0] == "model"]
    models = importlib.import_module(package + ".models")
    version = getattr(importlib.import_module(package), "__version__", "")
    options = {} if version.startswith("1.") else {"compile": False}  # Keras 1 always compiles
    return models.load_model(str(path), **options)


def call(model, inputs):
    """Compute the outputs of a model."""
    given = inputs[0] if len(inputs) == 1 else inputs
    wanted = getattr(model, "_inputs_struct", None)  # of Keras 3
    if isinstance(wanted, dict):
        given = {name: inputs[number] for number, name in enumerate(sorted(wanted))}
    import tensorflow as tf

    if tf.__version__.startswith("1."):
        found = model.predict(given, batch_size=len(inputs[0]))
    else:
        found = model(given)
    return [np.asarray(y) for y in flat(found)]


def flat(found):
    """List the tensors of nested outputs."""
    if isinstance(found, dict):
        found = [found[name] for name in sorted(found)]
    if not isinstance(found, (list, tuple)):
        return [found]
    return [y for one in found for y in flat(one)]


def predict(package, case):
    """Load the model of a case and predict; return the worst error in units of the tolerance."""
    importlib.import_module(package + ".backend").clear_session()
    data = np.load(str(case / "case.npz"))
    names = (f"{kind}_{at}" for kind in ("in", "out") for at in range(len(data.files)))
    arrays = {name: data[name] for name in names if name in data.files}
    inputs = [value for name, value in arrays.items() if name.startswith("in")]
    wanted = [value for name, value in arrays.items() if name.startswith("out")]
    got = call(load(package, case), inputs)
    shapes = [[y.shape for y in one] for one in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs {shapes[0]}, wanted {shapes[1]}")
    return max(map(largest, got, wanted))


def largest(got, wanted):
    """Return the largest error in units of the tolerance; NaN equals NaN alone."""
    got, wanted = got.astype("float64"), wanted.astype("float64")
    error = np.abs(got - wanted) / (ABSOLUTE + RELATIVE * np.abs(wanted))
    error = np.where(np.isnan(got) & np.isnan(wanted) | (got == wanted), 0.0, error)
    return float("inf") if np.isnan(error).any() else float(error.max())


def main():
    """Print a line for each case: its name, and the error or what went wrong."""
    given, folder = sys.argv[1:]
    package = {"tf.keras": "tensorflow.keras"}.get(given, given)
    for case in sorted(Path(folder).iterdir()):
        try:
            print(case.name, predict(package, case), flush=True)
        except Exception as error:
            text = str(error)[:300].replace("\n", " ")
            print(case.name, "inf", type(error).__name__, text, flush=True)


if __name__ == "__main__":
    main()
