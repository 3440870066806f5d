"""Run SavedModels in the installed TensorFlow: a child process.

Reads one JSON line a model, ``{"how", "model", "given", "found"}``: "graph" runs the functions that
the writer traced, "keras" lets tf_keras build the layers again. ``given``: an .npz with the inputs
by the names of the input layers; the outputs are written to ``found``. Answers each with a line.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras


def main() -> None:
    """Answer until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # TensorFlow prints
    for line in sys.stdin:
        task = json.loads(line)
        with np.load(task["given"]) as data:
            inputs = {name: data[name] for name in data.files}
        try:
            outputs = RUN[task["how"]](task["model"], inputs)
            named: dict[str, Any] = {f"out_{i}": np.asarray(y) for i, y in enumerate(outputs)}
            np.savez(task["found"], **named)
            error = ""
        except Exception as failure:  # whatever TensorFlow raises is the answer
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps(error), file=answers, flush=True)


def run_graph(path: str, inputs: dict[str, Any]) -> list[Any]:
    """Call the function that is served; of several outputs, the order is not known."""
    served = tf.saved_model.load(path).signatures["serving_default"]
    kinds = {name: one.dtype for name, one in served.structured_input_signature[1].items()}
    return list(served(**{n: tf.constant(x, kinds[n]) for n, x in inputs.items()}).values())


def run_layers(path: str, inputs: dict[str, Any]) -> list[Any]:
    """Call the model that tf_keras loads."""
    values = [tf.constant(x) for x in inputs.values()]
    model = tf_keras.models.load_model(path, compile=False)
    return list(tf.nest.flatten(model(values[0] if len(values) == 1 else values, training=False)))


RUN = {"graph": run_graph, "keras": run_layers}

if __name__ == "__main__":
    main()
