"""The Keras file of a stack of Bidirectional layers with random weights.

``python -m keras2torch_birnn.cli.bench.stack FILE.h5 'JSON of a Stack'``: a child process, as
h5py runs in no other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.schema import CELL_GATES

# --rnn -> Keras' class
CLASSES = {"lstm": "LSTM", "gru": "GRU", "rnn": "SimpleRNN"}
WRITER = "3.15.1"


@dataclass(frozen=True)
class Stack:
    """Layers of one cell, merged alike. masked: a Masking layer reads the inputs first."""

    rnn: str
    merge: str
    layers: int
    features: int
    units: int
    gate: str = "sigmoid"
    reset_after: bool = True
    masked: bool = False

    @property
    def widths(self) -> list[int]:
        """Width of the input of each layer."""
        out = self.units * (2 if self.merge == "concat" else 1)
        return [self.features, *[out] * (self.layers - 1)]


def write_stack(stack: Stack, file: Path) -> None:
    """Write the stack as a Keras 3 file, in a child process."""
    subprocess.run([sys.executable, "-m", __name__, file, json.dumps(asdict(stack))], check=True)


def make_architecture(stack: Stack) -> dict[str, Any]:
    """Describe the stack as ``model.to_json()`` does."""
    cell: dict[str, Any] = {"units": stack.units, "return_sequences": True}
    if stack.rnn != "rnn":
        cell["recurrent_activation"] = stack.gate
    if stack.rnn == "gru":
        cell["reset_after"] = stack.reset_after
    layers = [_layer("InputLayer", batch_shape=[None, None, stack.features], name="x")]
    if stack.masked:
        layers.append(_layer("Masking", mask_value=0.0, name="masking"))
    for number in range(stack.layers):
        inner = _layer(CLASSES[stack.rnn], **cell, name=f"cell_{number}")
        name = f"layer_{number}"
        layers.append(_layer("Bidirectional", merge_mode=stack.merge, layer=inner, name=name))
    return {**_layer("Sequential", layers=layers, name="stack"), "module": "keras"}


def _layer(class_name: str, **config: Any) -> dict[str, Any]:
    named = {"class_name": class_name, "registered_name": None}
    return {"module": "keras.layers", **named, "config": {**config, "dtype": "float32"}}


def main(file: str, text: str) -> None:
    """Write the file, with biases that are not zero."""
    import h5py

    stack, rng = Stack(**json.loads(text)), np.random.default_rng(0)
    gates = CELL_GATES[CLASSES[stack.rnn]] * stack.units
    two = stack.rnn == "gru" and stack.reset_after
    with h5py.File(file, "w") as made:
        group = made.create_group("model_weights")
        for place in (made, group):
            place.attrs.update({"keras_version": WRITER, "backend": "tensorflow"})
        made.attrs["model_config"] = json.dumps(make_architecture(stack))
        group.attrs["layer_names"] = [f"layer_{number}" for number in range(stack.layers)]
        for number, width in enumerate(stack.widths):
            shapes = {
                "kernel": (width, gates),
                "recurrent_kernel": (stack.units, gates),
                "bias": (2, gates) if two else (gates,),
            }
            layer = group.create_group(f"layer_{number}")
            names = [f"{half}/{one}:0" for half in ("forward", "backward") for one in shapes]
            layer.attrs["weight_names"] = names
            for name, shape in zip(names, [*shapes.values()] * 2, strict=True):
                layer[name] = (rng.normal(size=shape) * stack.units**-0.5).astype("f4")


if __name__ == "__main__":
    main(*sys.argv[1:])
