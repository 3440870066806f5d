"""Load compiled models with an installed Keras, and print the losses of their next steps.

python keras_trains_on.py PACKAGE FIRST MODEL BATCHES.npz [MODEL BATCHES.npz ...]
"""

from __future__ import annotations

import importlib
import sys

import numpy as np

STEPS = 3


def main() -> None:
    """Print a line of losses for each model."""
    package, first, *pairs = sys.argv[1:]
    keras = importlib.import_module(package)
    keras.backend.set_floatx("float64")
    for path, npz in zip(pairs[::2], pairs[1::2], strict=True):
        model = keras.models.load_model(path)
        model.run_eagerly = True
        losses = []
        with np.load(npz) as data:
            outputs = len({name for name in data.files if name[0] == "y"}) // 3
            for step in range(int(first), int(first) + STEPS):
                at = step % 3
                x, targets = data[f"x0_{at}"], [data[f"y{n}_{at}"] for n in range(outputs)]
                x = x if x.dtype.kind == "i" else x.astype("float64")
                targets = [y if y.dtype.kind == "i" else y.astype("float64") for y in targets]
                model.reset_metrics()
                one_or_all = targets if outputs > 1 else targets[0]
                losses.append(float(np.ravel(model.train_on_batch(x, one_or_all))[0]))
        print(*map(repr, losses), flush=True)


if __name__ == "__main__":
    main()
