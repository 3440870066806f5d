"""Script that lets an installed Keras load models and predict, for ``written_models.py``.

    python keras_predicts.py PACKAGE FOLDER [FLOATS]

PACKAGE: keras, tf_keras or tf.keras; for models of TensorFlow.js tensorflowjs, or node, which runs
TensorFlow.js itself from NODE_PATH. FLOATS: float64 for models that compute in it. FOLDER: with a
folder for each case, in which ``model.*`` or ``model`` is the model, ``case.npz`` its inputs (in_0,
...) and outputs (out_0, ...), and ``config.json`` its architecture if the model is a file of
weights or a folder with a checkpoint. Older Pythons run it.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

IN_TFJS = ("tensorflowjs", "node")
ERRORS = {"float32": (1e-5, 1e-4), "float64": (1e-12, 1e-12)}


def load(package, case):
    """Load the model of a case."""
    (path,) = [p for p in case.iterdir() if p.name.partition(".")[0] == "model"]
    if package == "tensorflowjs":
        return importlib.import_module(package).converters.load_keras_model(
            str(path / "model.json")
        )
    models, config = importlib.import_module(package + ".models"), case / "config.json"
    if not config.exists():
        version = getattr(importlib.import_module(package), "__version__", "")
        options = {} if version.startswith("1.") else {"compile": False}  # Keras 1 always compiles
        return models.load_model(str(path), **options)
    model = models.model_from_json(config.read_text())
    if path.is_dir():
        restore(model, str(max(path.glob("*.index")))[: -len(".index")])
    else:
        model.load_weights(str(path))
    return model


def restore(model, prefix):
    """Load a checkpoint of a model, or of an object that holds it as ``model`` or ``net``."""
    import tensorflow as tf

    roots = {name.partition("/")[0] for name, _ in tf.train.list_variables(prefix)}
    held = roots & {"model", "net"}
    if held:
        tf.train.Checkpoint(**{held.pop(): model}).restore(prefix).expect_partial()
    else:
        model.load_weights(prefix).expect_partial()


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


def call_in_javascript(case, inputs):
    """Compute the outputs of a model in TensorFlow.js."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures"))
    import generate_tfjs

    with tempfile.TemporaryDirectory() as scratch:
        return generate_tfjs.outputs_in_javascript(str(case / "model"), [inputs], scratch)


def predict(package, case, floats):
    """Load the model of a case and predict; return the worst error in units of the tolerance."""
    if package not in IN_TFJS:
        importlib.import_module(package + ".backend").clear_session()
    data = np.load(str(case / "case.npz"))
    names = (f"{kind}_{at}" for kind in ("in", "out") for at in range(len(data.files)))
    arrays = {name: data[name] for name in names if name in data.files}
    inputs = [value for name, value in arrays.items() if name.startswith("in")]
    wanted = [value for name, value in arrays.items() if name.startswith("out")]
    if package == "node":
        got = call_in_javascript(case, inputs)
    else:
        got = call(load(package, case), inputs)
    shapes = [[y.shape for y in one] for one in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs {shapes[0]}, wanted {shapes[1]}")
    return max(map(largest, got, wanted, [ERRORS[floats]] * len(got)))


def largest(got, wanted, tolerance):
    """Return the largest error in units of the tolerance; NaN equals NaN alone."""
    got, wanted = got.astype("float64"), wanted.astype("float64")
    absolute, relative = tolerance
    error = np.abs(got - wanted) / (absolute + relative * np.abs(wanted))
    error = np.where(np.isnan(got) & np.isnan(wanted) | (got == wanted), 0.0, error)
    return float("inf") if np.isnan(error).any() else float(error.max())


def main():
    """Print a line for each case: its name, and the error or what went wrong."""
    given, folder, floats = [*sys.argv[1:], "float32"][:3]
    package = {"tf.keras": "tensorflow.keras"}.get(given, given)
    if package not in IN_TFJS:
        importlib.import_module(package + ".backend").set_floatx(floats)
    for case in sorted(Path(folder).iterdir()):
        try:
            print(case.name, predict(package, case, floats), flush=True)
        except Exception as error:
            text = str(error)[:300].replace("\n", " ")
            print(case.name, "inf", type(error).__name__, text, flush=True)


if __name__ == "__main__":
    main()
