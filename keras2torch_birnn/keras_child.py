"""Runs a model in the live Keras. A script for a child process: nothing of ours is imported.

``python keras_child.py PACKAGE MODEL INPUTS.npz OUTPUTS.npz [ARCH.json]``; PACKAGE is ``keras`` or
``tf_keras``. Writes out_0, out_1, ... and the version.
"""

import sys

import numpy as np


def main(package, model_path, inputs, outputs, config=None):
    """Load, predict once, write."""
    if package == "tf_keras":
        import tf_keras as keras
    else:
        import keras
    if config is None:
        model = keras.models.load_model(model_path, compile=False)
    else:
        with open(config, encoding="utf-8") as file:
            model = keras.models.model_from_json(file.read())
        model.load_weights(model_path)
    with np.load(inputs) as data:
        given = [data[f"in_{i}"] for i in range(len(data.files))]
    result = model(given[0] if len(given) == 1 else given, training=False)
    flat = _flat(result)
    np.savez(
        outputs,
        version=np.array(keras.__version__),
        **{f"out_{i}": np.asarray(value) for i, value in enumerate(flat)},
    )


def _flat(result):
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in _flat(part)]
    return [result]


if __name__ == "__main__":
    main(*sys.argv[1:])
