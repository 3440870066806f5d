"""Child side of ``child_process``: run one exported file on several batches. Limits first."""

from __future__ import annotations

import json
import sys
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


def main(job: dict[str, Any]) -> None:
    """Run the job that ``child_process`` describes."""
    limit_resources(job["memory"], job["written"])
    sys.path[:] = list(dict.fromkeys([*job["import_from"], *sys.path]))
    import numpy as np

    from keras2torch_birnn.exporting import find_target

    with np.load(job["inputs"]) as data:
        batches: list[list[Any]] = [[] for _ in range(job["batches"])]
        for name in data.files:  # in the order in which they were written
            batches[int(name.partition("_")[0])].append(data[name])
    path = Path(job["file"])
    session = find_target(path).load().open(path)
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
