"""Build, fill, run and save graphs with the Keras that is installed. A child process: see ``live``.

``python keras_worker.py LABEL FOLDER``: reads one Python literal a line, ``{"name", "graph",
"kind"}``, and answers each with one: ``{"file", "error"}``. The inputs and outputs lie beside the
file, as with fixtures.
"""

from __future__ import annotations

import ast
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "fixtures"))
import generate
import graphs


def main(label: str, folder: str) -> None:
    """Answer until the input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # Keras prints
    keras = generate.Keras(label)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        task = ast.literal_eval(line)
        try:
            answer = {"file": written(keras, task, Path(folder)), "error": ""}
        except Exception as error:  # whatever Keras raises is the answer
            answer = {"file": "", "error": generate.first_line(error)}
        print(repr(answer), file=answers, flush=True)


def written(keras: Any, task: dict[str, Any], folder: Path) -> str:
    """Write one model to a file, and compute its outputs."""
    case = {**task, "layers": [], "scale": 0.4, "tags": []}
    keras.clear()
    model = graphs.build(keras, task["graph"])
    generate.random_weights(keras, model, case)
    (values,) = generate.inputs(case)
    outputs = keras.run(model, values)
    path = folder / (task["name"] + generate.SUFFIX[task["kind"]])
    keras.save(model, str(path), task["kind"])
    named = {f"in_{i}": value for i, value in enumerate(graphs.flat(values))}
    named |= {f"out_{i}": value for i, value in enumerate(outputs)}
    np.savez(folder / (task["name"] + ".npz"), **named)
    del model
    gc.collect()
    return path.name


if __name__ == "__main__":
    main(*sys.argv[1:])
