"""``python -m benchmarks NAME``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

# With a ``main`` of their own, one line of help each; the others are ``tasks.TASKS``.
SCRIPTS = {
    "convert": "Time `k2t convert` and its peak memory, against `import torch` and Keras.",
    "gpu": "Run what needs a CUDA device: parity of every layer, times.",
}


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that is named first."""
    name, *options = arguments or ["--help"]
    if name in SCRIPTS:
        # Torch is not imported for all: what a process starts has a peak memory of at least its.
        import_module(f"benchmarks.{name}").main(options)
        return
    from benchmarks import run, tasks

    if name in tasks.TASKS:
        run.main(name, options)
        return
    told = {n: (make.__doc__ or "").splitlines()[0] for n, make in tasks.TASKS.items()} | SCRIPTS
    lines = [f"  {one:10} {line}" for one, line in told.items()]
    usage = "\n".join(["usage: python -m benchmarks NAME [options | --help]", *lines])
    if name not in ("-h", "--help"):
        sys.exit(f"{usage}\n\nno benchmark is named {name}")
    print(usage)


if __name__ == "__main__":
    main(sys.argv[1:])
