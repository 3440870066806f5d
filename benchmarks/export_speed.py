"""Time our ONNX in ONNX Runtime against that of torch's exporter and of tf2onnx.

    python benchmarks/export_speed.py --keras FOLDER      # writes .h5; needs Keras, too
    python -m tf2onnx.convert --keras FOLDER/NAME.h5 --output FOLDER/NAME.tf2onnx.onnx
    python benchmarks/export_speed.py --folder FOLDER --json out.json

One layer ``Bidirectional`` with random weights at each size. Torch's exporter gets the plain module
(``nn.LSTM``, ``nn.GRU``) and its merge. The median of ``--repeats`` runs, the contenders in turn;
measure on a machine without other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from engine import SHAPES

CELLS = ("LSTM", "GRU")
MERGES = ("concat", "sum", "mul", "ave")


def cases() -> list[tuple[str, str, str, tuple[int, ...]]]:
    """Return name, cell, merge and size of every case."""
    return [
        (f"{cell}_{merge}_{'x'.join(map(str, size))}", cell, merge, size)
        for cell, merge, size in product(CELLS, MERGES, SHAPES)
    ]


def write_keras(folder: Path) -> None:
    """Write every case as a Keras file with free batch and time."""
    import keras

    folder.mkdir(parents=True, exist_ok=True)
    for name, cell, merge, (_, _, features, units) in cases():
        inner = getattr(keras.layers, cell)(units, return_sequences=True)
        x = keras.Input((None, features))
        y = keras.layers.Bidirectional(inner, merge_mode=merge)(x)
        keras.Model(x, y).save(folder / f"{name}.h5")


def by_torch(model: Any, merge: str, example: Any, file: Path) -> None:
    """Export the plain torch module of a converted model's only layer."""
    import torch

    from keras2torch_birnn.rnn.merge import MERGE_MODES

    (layer,) = (m for m in model.modules() if isinstance(m, torch.nn.RNNBase))
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[layer.mode.lower()]
    plain = kind(layer.input_size, layer.hidden_size, bidirectional=True, batch_first=True)
    plain.load_state_dict(layer.state_dict())

    class Merged(torch.nn.Module):
        """The layer and its merge."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn = plain

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return the merged outputs."""
            forward, backward = self.rnn(x)[0].chunk(2, dim=2)
            return MERGE_MODES[merge].combine(forward, backward)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch", 1: "time"}}
        torch.onnx.export(
            Merged().eval(), (example,), file, dynamo=False, input_names=["x"], dynamic_axes=axes
        )


def session(file: Path, threads: int) -> Callable[[Any], Any]:
    """Open a file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    opened = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    return lambda x: opened.run(None, {name: x})[0]


def measure(runs: dict[str, Callable[[Any], Any]], x: Any, repeats: int) -> dict[str, float]:
    """Return each contender's median in milliseconds; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 3):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(x)
            if turn >= 3:
                taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keras", type=Path, help="write the Keras files and stop")
    parser.add_argument("--folder", type=Path, help="where they are")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--like", default="", help="only cases whose name has this in it")
    options = parser.parse_args()
    if options.keras:
        write_keras(options.keras)
        return
    import torch

    import keras2torch_birnn as k2t

    rows = []
    for name, _, merge, (batch, steps, features, _) in cases():
        if options.like not in name:
            continue
        x = np.random.default_rng(0).standard_normal((batch, steps, features), np.float32)
        files = {
            kind: options.folder / f"{name}.{kind}.onnx" for kind in ("k2t", "torch", "tf2onnx")
        }
        model = k2t.convert(options.folder / f"{name}.h5")
        k2t.export(model, files["k2t"])
        by_torch(model, merge, torch.from_numpy(x), files["torch"])
        found = {kind: file for kind, file in files.items() if file.exists()}
        runs = {kind: session(file, options.threads) for kind, file in found.items()}
        outputs = [run(x) for run in runs.values()]
        assert all(np.allclose(outputs[0], y, atol=1e-5, rtol=1e-4) for y in outputs)
        ms = measure(runs, x, options.repeats)
        best = min((value for kind, value in ms.items() if kind != "k2t"), default=float("nan"))
        rows.append({"name": name, "ms": ms, "ratio": ms["k2t"] / best})
        shown = "  ".join(f"{kind} {value:.3f} ms" for kind, value in ms.items())
        print(f"{name:32} {shown}  ratio {rows[-1]['ratio']:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
