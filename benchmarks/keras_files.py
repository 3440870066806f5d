"""Write the Keras files of ``python -m benchmarks exports`` and convert them by tf2onnx.

    python benchmarks/keras_files.py FOLDER

Needs TensorFlow 2.15 or older with its own Keras, and tf2onnx; this package without torch. Batch
and time are free. A masked case begins with a Masking layer.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import tensorflow
import tf2onnx

from keras2torch_birnn.bench.case import CLASSES, Stack, from_json, layers_of

OPSET = 18  # that of our own files


def build(stack: Stack) -> Any:
    """Build the stack with the weights that every contender has."""
    options: dict[str, Any] = {"return_sequences": True}
    options["recurrent_activation"] = stack.recurrent_activation.removesuffix("_0.2")
    if stack.rnn == "gru":
        options["reset_after"] = stack.reset_after
    x = keras.Input((None, stack.features))
    y = keras.layers.Masking()(x) if stack.masked else x
    made = []
    for _ in range(stack.layers):
        cell = getattr(keras.layers, CLASSES[stack.rnn])(stack.units, **options)
        made.append(keras.layers.Bidirectional(cell, merge_mode=stack.merge))
        y = made[-1](y)
    for layer, spec in zip(made, layers_of(stack), strict=True):
        layer.set_weights([w for half in spec.parts.values() for w in half.weights.values()])
    return keras.Model(x, y)


def main() -> None:
    """Write both files of every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for description in sorted(folder.glob("*.json")):
        stack = from_json(description.read_text(encoding="utf-8"))
        file = description.with_suffix(".h5")
        if file.exists() or not isinstance(stack, Stack):
            continue
        model = build(stack)
        signature = [tensorflow.TensorSpec((None, None, stack.features), name="x")]
        tf2onnx.convert.from_keras(
            model, signature, opset=OPSET, output_path=str(file.with_suffix(".tf2onnx.onnx"))
        )
        model.save(file)
        print(stack.label, flush=True)


if __name__ == "__main__":
    main()
