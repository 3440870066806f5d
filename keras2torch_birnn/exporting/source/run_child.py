"""Child of ``files.run_source``: load one generated module and run it on one batch."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
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


class Absent:
    """Finder by which every import of this package fails, wherever it is installed."""

    def find_spec(self, name: str, path: Any, target: Any = None, /) -> None:
        """Refuse the package, leave all else to the other finders."""
        if name.partition(".")[0] == "keras2torch_birnn":
            raise ModuleNotFoundError(f"{name} must not be needed")


def main(job: list[str]) -> None:
    """Run the module at the first path on the arrays of the second; write them to the third."""
    import numpy as np
    import torch

    sys.meta_path.insert(0, Absent())
    module, given, found = job
    model = runpy.run_path(module)["load"]()
    floats = (t.dtype for t in model.state_dict().values() if t.is_floating_point())
    kind = next(floats, torch.float32)
    with np.load(given) as data:
        inputs = [torch.from_numpy(data[f"in_{i}"]) for i in range(len(data.files))]
    with torch.no_grad():
        output = model(*(x.to(kind) if x.is_floating_point() else x for x in inputs))
    named: dict[str, Any] = {f"out_{i}": y.numpy() for i, y in enumerate(flat(output))}
    np.savez(found, **named)


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"{text[:2000]}\n")
        sys.exit(1)
