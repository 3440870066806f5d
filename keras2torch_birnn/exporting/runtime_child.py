"""Child side of ``child_process``: run one exported file on several batches. Limits first."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


def limit_resources(memory: int, written: int) -> None:
    """Limit the memory that may be filled and the bytes that may be written to a file."""
    if sys.platform == "win32":
        return
    import resource

    for what, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_FSIZE, written)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))


class Absent:
    """Finder by which every import of this package fails, wherever it is installed."""

    def find_spec(self, name: str, path: Any, target: Any = None, /) -> None:
        """Refuse the package, leave all else to the other finders."""
        if name.partition(".")[0] == "keras2torch_birnn":
            raise ModuleNotFoundError(f"{name} must not be needed")


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
    """Execute a Python module, and return a function that loads its weights and runs it."""
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


def open_file(path: Path, *, alone: bool) -> Any:
    """Return a function that runs a file: by its target, or as a module without this package."""
    if alone:
        sys.meta_path.insert(0, Absent())
        return open_module(path)
    from keras2torch_birnn.exporting import find_target

    return find_target(path).load().open(path)


def main(job: dict[str, Any]) -> None:
    """Run the job that ``child_process`` describes."""
    limit_resources(job["memory"], job["written"])
    sys.path[:] = list(dict.fromkeys([*job["import_from"], *sys.path]))
    import numpy as np

    with np.load(job["inputs"]) as data:
        batches: list[list[Any]] = [[] for _ in range(job["batches"])]
        for name in data.files:  # in the order in which they were written
            batches[int(name.partition("_")[0])].append(data[name])
    session = open_file(Path(job["file"]), alone=job["alone"])
    found: dict[str, Any] = {}
    for number, batch in enumerate(batches):
        try:
            outputs = [np.asarray(y) for y in session(batch)]
        except Exception as error:
            found[f"{number}_error"] = np.array(shown(error))
        else:
            found |= {f"{number}_{place}": y for place, y in enumerate(outputs)}
    np.savez(job["outputs"], **found)


def shown(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:2000]


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Exception as error:
        sys.stderr.write(f"{shown(error)}\n")
        sys.exit(1)
