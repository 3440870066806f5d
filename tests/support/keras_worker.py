"""Build, fill, run and save graphs with the Keras that is installed. A child process: see ``live``.

``python keras_worker.py LABEL FOLDER``: reads one Python literal a line, ``{"name", "graph",
"kind"}``, and answers each with one: ``{"file", "error"}``. The inputs and outputs lie beside the
file, as with fixtures.
"""

from __future__ import annotations

import ast
import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "fixtures"))
import generate
import generate_tensorflow
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
    model = graphs.build(keras, with_slices(task["graph"]))
    generate.random_weights(keras, model, case)
    (values,) = generate.inputs(case)
    outputs = keras.run(model, values)
    path = save(keras, model, folder / task["name"], task["kind"])
    named = {f"in_{i}": value for i, value in enumerate(graphs.flat(values))}
    named |= {f"out_{i}": value for i, value in enumerate(outputs)}
    np.savez(path.with_name("random.npz"), **named)
    del model
    gc.collect()
    return path.relative_to(folder).as_posix()


def with_slices(value: Any) -> Any:
    """Return a graph with slices in the place of what stands for them (``random_graphs``)."""
    if isinstance(value, dict):
        return {key: with_slices(part) for key, part in value.items()}
    if isinstance(value, tuple) and value[:1] == ("part",):
        return slice(*value[1:])
    if isinstance(value, list | tuple):
        return type(value)(with_slices(part) for part in value)
    return value


def save(keras: Any, model: Any, folder: Path, kind: str) -> Path:
    """Save a model in a new folder, which has ``arch.json`` if the model's file lacks it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if kind in generate.SUFFIX:
        path = folder / ("model" + generate.SUFFIX[kind])
        text = keras.save(model, str(path), kind)
        if text is not None:
            (folder / "arch.json").write_text(text, encoding="utf-8")
        return path
    path = folder / "model"
    generate_tensorflow.SAVE[kind](keras, model, str(path))
    inside = generate_tensorflow.MODEL[kind]
    return path / inside if inside else path


if __name__ == "__main__":
    main(*sys.argv[1:])
