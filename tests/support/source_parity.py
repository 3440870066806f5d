"""Compare generated source with the converted model: it runs in a process that lacks this package.

``prepare`` writes a model, its batches and the converted model's outputs and gradients to a folder;
``source_child.py`` runs all models of a folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import source_child
import torch
from safetensors.torch import save_file
from torch import nn
from warm_process import run_script

from keras2torch_birnn.exporting.source.write_source import SourceFiles, write_source
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import find_float_dtype, move_inputs, run
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.spec import Array, ModelSpec

CHILD = Path(__file__).with_name("source_child.py")
RANDOM = ("GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization")
STEPS = 7


def batches(spec: ModelSpec, own: Sequence[Array]) -> Iterator[tuple[Array, ...]]:
    """The file's own batch, then (5, T), (1, T), (4, T + 5), (2, 1), as far as the file has them.

    Rows are full, right-padded, left-padded, gappy and empty where a mask begins at an input.
    """
    yield tuple(own)
    steps = next((x.shape[1] for x in own if x.ndim > 1), STEPS)
    for rows, length in ((slice(0, 5), steps), (slice(2, 3), steps), (slice(1, 5), steps + 5)):
        yield tuple(x[rows] for x in draw_inputs(spec, steps=length, seed=length))
    yield tuple(x[:2] for x in draw_inputs(spec, steps=1, seed=3))


def outputs(model: nn.Module, inputs: Sequence[Array]) -> list[Array] | None:
    """Outputs of the converted model; None where it does not take the batch."""
    try:
        found = run(model, tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return [y.numpy() for y in found]


def draws(spec: ModelSpec) -> bool:
    """Tell whether training draws random numbers."""
    return any(
        layer.class_name in RANDOM
        or "Dropout" in layer.class_name
        or layer.config.get("dropout")
        or layer.config.get("recurrent_dropout")
        for layer in spec.root.walk()
    )


def gradients(model: nn.Module, inputs: Sequence[Array]) -> dict[str, Array]:
    """Gradients of the converted model, as ``source_child`` has those of the source.

    None where torch has none: a group normalization with one of its two parameters, in torch 2.13.
    """
    copy = deepcopy(model)
    given = move_inputs(copy, tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs))
    loss = source_child.training_loss(copy, list(given))
    try:
        return source_child.gradients(copy, loss)
    except RuntimeError:
        return {}


def prepare(
    spec: ModelSpec, own: Sequence[Array], folder: Path, name: str, *, train: bool = True
) -> SourceFiles:
    """Write a model as ``name.py`` with all that the child compares; refused as by the export."""
    model = build(spec)
    source = write_source(model, spec)
    (folder / f"{name}.py").write_text(source.text, encoding="utf-8")
    save_file(dict(source.tensors), folder / f"{name}.safetensors")
    arrays: dict[str, Any] = {}
    for number, batch in enumerate(batches(spec, own)):
        wanted = outputs(model, batch)
        if wanted is not None:
            arrays |= {f"in_{number}_{i}": x for i, x in enumerate(batch)}
            arrays |= {f"out_{number}_{i}": y for i, y in enumerate(wanted)}
    if train and not draws(spec):
        found = gradients(model, own)
        arrays |= {f"grad {source.names[key]}": value for key, value in found.items()}
    arrays["double"] = np.array(find_float_dtype(model) == torch.float64)
    np.savez(folder / f"{name}.npz", **arrays)
    return source


def run_child(folder: Path) -> dict[str, list[str]]:
    """Run all models of a folder; name -> what is wrong with it."""
    done = run_script(CHILD, folder, folder=folder)
    assert done.code == 0, done.err
    found: dict[str, list[str]] = json.loads(done.out.splitlines()[-1])
    return found
