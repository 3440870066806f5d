"""Load compiled models with an installed Keras, and print the losses of their next steps.

python keras_trains_on.py PACKAGE FIRST MODEL BATCHES.npz [MODEL BATCHES.npz ...]
python keras_trains_on.py PACKAGE pack FOLDER MODEL [MODEL ...]

MODEL may be the prefix of a TensorFlow checkpoint in a folder with an ``arch.json`` that says what
was compiled; TensorFlow restores it, slots included. ``pack`` writes such folders of other files,
FOLDER/0, FOLDER/1, ..., as ``docs/training.md`` says.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

STEPS, CONFIG = 3, "arch.json"


def write_checkpoint(keras: Any, source: str, folder: Path) -> None:
    """Write a model and its optimizer as a checkpoint, and what was compiled as JSON."""
    import tensorflow as tf

    model = keras.models.load_model(source)
    folder.mkdir(parents=True)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "ckpt"))
    arch = json.loads(model.to_json())
    options = {
        name: float(value) if isinstance(value, np.floating) else value
        for name, value in model.optimizer.get_config().items()
    }
    optimizer = {"class_name": type(model.optimizer).__name__, "config": options}
    losses = model.loss if isinstance(model.loss, list) else [model.loss]
    names = [one if isinstance(one, str) else one.__name__ for one in losses]
    loss = names if isinstance(model.loss, list) else names[0]
    arch["training_config"] = {"optimizer_config": optimizer, "loss": loss}
    (folder / CONFIG).write_text(json.dumps(arch))


def restored(keras: Any, prefix: Path) -> Any:
    """Return a compiled model with all numbers of a checkpoint."""
    import tensorflow as tf

    arch = json.loads((prefix.parent / CONFIG).read_text())
    compiled = arch.pop("training_config")
    model = keras.models.model_from_json(json.dumps(arch))
    described = compiled["optimizer_config"]
    newer = described["config"].get("is_legacy_optimizer") is False
    kinds = keras.optimizers if newer else keras.optimizers.legacy
    optimizer = getattr(kinds, described["class_name"]).from_config(described["config"])
    model.compile(optimizer=optimizer, loss=compiled["loss"])
    if newer:
        optimizer.build(model.trainable_variables)
    else:
        optimizer._create_all_weights(model.trainable_variables)
    status = tf.train.Checkpoint(model=model, optimizer=optimizer).restore(str(prefix))
    status.assert_existing_objects_matched()
    return model


def train(keras: Any, path: str, npz: str, first: int) -> list[float]:
    """Return the losses of the next steps of a file."""
    prefix = Path(path)
    is_checkpoint = prefix.with_name(prefix.name + ".index").exists()
    model = restored(keras, prefix) if is_checkpoint else keras.models.load_model(path)
    model.run_eagerly = True
    losses = []
    with np.load(npz) as data:
        outputs = len({name for name in data.files if name[0] == "y"}) // 3
        for step in range(first, first + STEPS):
            at = step % 3
            x, targets = data[f"x0_{at}"], [data[f"y{n}_{at}"] for n in range(outputs)]
            x = x if x.dtype.kind == "i" else x.astype("float64")
            targets = [y if y.dtype.kind == "i" else y.astype("float64") for y in targets]
            model.reset_metrics()
            one_or_all = targets if outputs > 1 else targets[0]
            losses.append(float(np.ravel(model.train_on_batch(x, one_or_all))[0]))
    return losses


def main() -> None:
    """Print a line of losses for each model, or write checkpoints."""
    package, first, *rest = sys.argv[1:]
    keras = importlib.import_module(package)
    keras.backend.set_floatx("float64")
    if first == "pack":
        for number, source in enumerate(rest[1:]):
            write_checkpoint(keras, source, Path(rest[0], str(number)))
        return
    for at in range(0, len(rest), 2):
        path, npz = rest[at : at + 2]
        print(*map(repr, train(keras, path, npz, int(first))), flush=True)


if __name__ == "__main__":
    main()
