"""Run a model in live Keras: a script for a child process that imports nothing of this package.

``python keras_child.py PACKAGE MODEL INPUTS.npz OUTPUTS.npz [ARCH.json]``; PACKAGE is ``keras`` or
``tf_keras``. Writes out_0, out_1, ..., the version, and the dtypes that it computes in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(
    package: str, model_path: str, inputs: str, outputs: str, config: str | None = None
) -> None:
    """Load the model, predict once, and write the outputs."""
    model = load_model(package, model_path, config)
    with np.load(inputs) as data:
        given = [data[f"in_{i}"] for i in range(len(data.files))]
    result = model(given[0] if len(given) == 1 else given, training=False)
    named: dict[str, Any] = {f"out_{i}": plain(y) for i, y in enumerate(_flat(result))}
    version = sys.modules[package].__version__
    kinds = sorted({str(layer.compute_dtype) for layer in model._flatten_layers()})
    np.savez(outputs, version=np.array(version), kinds=np.array(kinds), **named)


def plain(output: Any) -> Any:
    """Convert an output to an array that NumPy can write: NumPy has no bfloat16."""
    array = np.asarray(output)
    exact = array.dtype.kind in "biu" or array.dtype == np.float64
    return array if exact else array.astype(np.float32)


def load_model(package: str, model_path: str, config: str | None = None) -> Any:
    """Load a model as the Keras that wrote the file would."""
    if package == "tf_keras":
        import tf_keras as keras
    else:
        import keras
    if config is None and package == "tf_keras" and model_path.endswith(".h5"):
        return _old_model(keras, model_path)
    if config is None:
        return keras.models.load_model(model_path, compile=False)
    model = keras.models.model_from_json(Path(config).read_text(encoding="utf-8"))
    model.load_weights(model_path)
    return model


def _old_model(keras: Any, path: str) -> Any:
    """Build the model from its config with the defaults of its Keras version; load the weights.

    tf_keras has other defaults than the Keras before it, and its CuDNN layers run on a GPU only;
    ``load_weights`` itself converts cuDNN's layout to that of LSTM and GRU.
    """
    import h5py

    with h5py.File(path) as file:
        text = file.attrs["model_config"]
    config = json.loads(text)
    _explicit(config)
    model = keras.models.model_from_json(json.dumps(config))
    model.load_weights(path)
    return model


def _explicit(value: Any) -> None:
    """Write defaults of Keras before tf.keras 2 into every recurrent layer's config, in place."""
    if isinstance(value, dict):
        name, config = value.get("class_name"), value.get("config")
        if name in ("CuDNNGRU", "CuDNNLSTM") and isinstance(config, dict):
            value["class_name"] = name[len("CuDNN") :]
            config["recurrent_activation"] = "sigmoid"
            config["reset_after"] = True
        if value.get("class_name") == "GRU" and isinstance(config, dict):
            config.setdefault("reset_after", False)
        if value.get("class_name") == "LSTM" and isinstance(config, dict):
            config.pop("reset_after", None)
        for inner in value.values():
            _explicit(inner)
    elif isinstance(value, list):
        for inner in value:
            _explicit(inner)


def _flat(result: Any) -> list[Any]:
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in _flat(part)]
    return [result]


if __name__ == "__main__":
    main(*sys.argv[1:])
