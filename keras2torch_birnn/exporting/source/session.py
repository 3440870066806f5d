"""Run a generated module. Works where this package cannot be imported: nothing here needs it."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def flat(output: Any) -> Iterator[Any]:
    """Yield all tensors of an output, in order."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        for part in output:
            yield from flat(part)
    else:
        yield output


def open_module(path: Path) -> Callable[[Sequence[Any]], list[Any]]:
    """Execute a module, and return a function that loads its weights and runs it on arrays."""
    import torch

    load = runpy.run_path(str(path))["load"]

    def session(arrays: Sequence[Any]) -> list[Any]:
        model = load()  # anew: a stateful model keeps states from batch to batch
        floats = (t.dtype for t in model.state_dict().values() if t.is_floating_point())
        kind = next(floats, torch.float32)
        inputs = map(torch.from_numpy, arrays)
        with torch.no_grad():
            output = model(*(x.to(kind) if x.is_floating_point() else x for x in inputs))
        return [y.numpy() for y in flat(output)]

    return session
