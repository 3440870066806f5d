"""Script: TensorFlow restores checkpoints into which k2t wrote trained slots, and trains on.

    python restoring.py PYTHON PACKAGE LABEL [PATTERN]

PYTHON has the Keras of LABEL (``tf.keras-2.15.0``, ``tf_keras-2.21.0``), which is imported as
PACKAGE. Of every optimizer that was recorded for it, that Keras writes a checkpoint at step 5; k2t
trains two steps and writes weights and slots into it; TensorFlow restores it and trains three more,
whose losses are compared with the recorded ones. Run it in the repository, with
``tests/support:tests`` in PYTHONPATH. Ends with 1 if a loss is further away than 1e-11.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import keras_trains_on
import numpy as np
from compiled_fixtures import COMPILED, ROWS, recorded, unpack
from parsing_here import parsing_here
from replays import train

import keras2torch_birnn as k2t

STEPS, CLOSE = 2, 1e-11


def names_of(label: str, pattern: str) -> list[str]:
    """Return one file of every optimizer with a case of its own."""
    found: dict[str, str] = {}
    for name, row in ROWS.items():
        kept = row["container"] in ("keras", "h5") and row["floats"] == "float64"
        plain = row["layers"] is None and not row["sample_weights"] and not row["class_weights"]
        matches = row["label"] == label and re.search(pattern, row["case"])
        if matches and kept and plain and not row["case"].startswith("loss"):
            found.setdefault(row["case"], name)
    return list(found.values())


def run(python: str, *arguments: str) -> list[str]:
    """Run the Keras; return what it printed."""
    done = subprocess.run(
        [python, keras_trains_on.__file__, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "0", "PYTHONPATH": ""},
    )
    return done.stdout.splitlines()


def main() -> int:
    """Print how far the losses of every optimizer are from the recorded ones."""
    python, package, label, *pattern = sys.argv[1:]
    names, furthest = names_of(label, *pattern or [""]), 0.0
    with tempfile.TemporaryDirectory() as folder, parsing_here():
        sources, pairs = [], []
        for number, name in enumerate(names):
            (place := Path(folder, f"source{number}")).mkdir()
            sources.append(str(unpack(ROWS[name]["file"], place)))
        run(python, package, "pack", f"{folder}/packed", *sources)
        for number, name in enumerate(names):
            packed, new = Path(folder, "packed", str(number)), Path(folder, f"new{number}")
            prefix, config = packed / "ckpt-1", packed / keras_trains_on.CONFIG
            state = k2t.training(prefix, config=config, dtype="float64")
            train(state, recorded(ROWS[name]), 0, STEPS)
            k2t.write_back(state.model, prefix, new, optimizer=state.optimizer, config=config)
            (new / keras_trains_on.CONFIG).write_bytes(config.read_bytes())
            pairs += [str(new / "ckpt-1"), str(COMPILED / ROWS[name]["npz"])]
        lines = run(python, package, str(STEPS), *pairs)[-len(names) :]
        for name, line in zip(names, lines, strict=True):
            losses = np.array(line.split(), dtype=float)
            wanted = recorded(ROWS[name]).losses[STEPS : STEPS + keras_trains_on.STEPS]
            away = float(np.max(np.abs(losses - wanted) / np.abs(wanted)))
            print(f"{away:.1e} {name}", flush=True)
            furthest = max(furthest, away)
    return int(furthest > CLOSE)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
