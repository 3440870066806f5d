"""Child of ``source_parity``: run generated modules where keras2torch_birnn cannot be imported."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ATOL, RTOL = 1e-5, 1e-4


def flat(output: Any) -> Iterator[torch.Tensor]:
    """All tensors of an output, in order."""
    if isinstance(output, torch.Tensor):
        yield output
        return
    for part in output.values() if isinstance(output, dict) else output:
        yield from flat(part)


def differs(got: Any, wanted: Any, rtol: float = RTOL) -> str:
    """Say how two arrays differ; empty if they agree."""
    if got.shape != wanted.shape:
        return f"shape {got.shape}, not {wanted.shape}"
    if np.allclose(got, wanted, rtol=rtol, atol=ATOL, equal_nan=True):
        return ""
    return f"off by {np.nanmax(np.abs(got.astype(float) - wanted.astype(float))):.2e}"


def problems(path: Path) -> Iterator[str]:
    """Yield what is wrong with one module."""
    space = runpy.run_path(str(path))
    model = space["load"]()
    data = dict(np.load(path.with_suffix(".npz")))
    kind = torch.float64 if data.pop("double") else torch.float32

    def batch(number: int) -> list[torch.Tensor]:
        arrays = [data[f"in_{number}_{i}"] for i in range(999) if f"in_{number}_{i}" in data]
        given = [torch.from_numpy(x) for x in arrays]
        return [x.to(kind) if x.is_floating_point() else x for x in given]

    count = 0
    for number in range(9):
        wanted = [data[f"out_{number}_{i}"] for i in range(999) if f"out_{number}_{i}" in data]
        if not wanted:
            continue
        count += 1
        if hasattr(model, "reset_states"):
            model.reset_states()
        with torch.no_grad():
            got = [y.numpy() for y in flat(model(*batch(number)))]
        if len(got) != len(wanted):
            yield f"{len(got)} outputs, not {len(wanted)}"
        for i, (y, right) in enumerate(zip(got, wanted, strict=False)):
            if said := differs(y, right):
                yield f"batch {number}, output {i}: {said}"
    if not count:
        yield "nothing was compared"
    grads = {key[5:]: value for key, value in data.items() if key.startswith("grad ")}
    if grads:
        yield from wrong_gradients(model, batch(0), grads)


def training_loss(model: Any, inputs: list[torch.Tensor]) -> Any:
    """A weighted sum of the outputs in training mode; 0.0 if none of them has a gradient."""
    model.train()
    if hasattr(model, "reset_states"):
        model.reset_states()
    loss: Any = 0.0
    for y in flat(model(*inputs)):
        if y.requires_grad:
            loss = loss + (y * torch.cos(torch.arange(y.numel()).reshape(y.shape))).sum()
    return loss


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    """Gradients of the training loss by the name of their parameter."""
    if isinstance(loss, torch.Tensor):
        loss.backward()
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def wrong_gradients(
    model: Any, inputs: list[torch.Tensor], wanted: dict[str, Any]
) -> Iterator[str]:
    """Yield the gradients in training mode that differ."""
    got = gradients(model, training_loss(model, inputs))
    for name in sorted(got.keys() | wanted.keys()):
        zero = np.zeros(())
        a, b = got.get(name, zero), wanted.get(name, zero)
        largest = max(np.abs(b).max(initial=0), 1.0)
        scaled_a, scaled_b = np.broadcast_arrays(a / largest, b / largest)
        if said := differs(scaled_a, scaled_b, 1e-3):
            yield f"gradient of {name}: {said}"


def main(folder: Path) -> None:
    """Run every module of the folder and print what is wrong with it as JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.modules.update({"keras2torch_birnn": None})  # an import of it fails
    found = {}
    for path in sorted(folder.glob("*.py")):
        try:
            found[path.stem] = list(problems(path))
        except Exception as error:
            found[path.stem] = [f"{type(error).__name__}: {error}"[:300]]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
