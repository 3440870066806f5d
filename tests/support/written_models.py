"""Trained models in Keras' own files, with what torch computes, for ``keras_predicts.py``.

python written_models.py FOLDER FIXTURE...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from specs import FIXTURES
from trained import train

import keras2torch_birnn as k2t
from keras2torch_birnn.golden import origin
from keras2torch_birnn.running import run


def write_case(name: str, folder: Path) -> None:
    """Train a fixture, write it back into ``folder``, and note what torch computes with it."""
    folder.mkdir(parents=True)
    source = FIXTURES / name
    out = folder / f"model{source.suffix}"
    model = train(k2t.convert(source))
    inputs = [x.numpy() for x in origin(model).golden.inputs]
    k2t.write_back(model, source, out)
    outputs = run(model, tuple(map(torch.from_numpy, inputs)))
    arrays = {f"in_{i}": x for i, x in enumerate(inputs)}
    arrays |= {f"out_{i}": y.numpy() for i, y in enumerate(outputs)}
    np.savez(folder / "case.npz", **arrays)


if __name__ == "__main__":
    for given in sys.argv[2:]:
        write_case(given, Path(sys.argv[1]) / given.replace("/", "_"))
