"""Child side of ``child_process``: run one exported file on one batch. Limits first."""

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

    path = Path(job["file"])
    with np.load(job["inputs"]) as data:
        inputs = [data[f"in_{i}"] for i in range(len(data.files))]
    outputs = find_target(path).load().run(path, inputs)
    named: dict[str, Any] = {f"out_{i}": y for i, y in enumerate(outputs)}
    np.savez(job["outputs"], **named)


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"{text[:2000]}\n")
        sys.exit(1)
