"""``python -m benchmarks NAME``: see ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

# Name -> module, and what it does.
BENCHMARKS = {
    "layers": ("run", "Time two layers, all cells, sizes and masks, against ONNX and Keras."),
    "training": ("run", "Time steps of training of two layers."),
    "models": ("run", "Time whole models: those of fixtures and, with --real, trained ones."),
    "precision": ("run", "Time reduced precision, with the error of each contender."),
    "convert": ("convert", "Time `k2t convert` and its peak memory, against Keras."),
    "gpu": ("gpu", "Run what needs a CUDA device: parity of every layer, times."),
}


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark that is named first."""
    name, *options = arguments or ["--help"]
    if name in BENCHMARKS:
        # Torch is not imported for all: what a process starts has a peak memory of at least its.
        module = BENCHMARKS[name][0]
        given = [name, *options] if module == "run" else options
        import_module(f"benchmarks.{module}").main(given)
        return
    lines = [f"  {one:10} {about}" for one, (_, about) in BENCHMARKS.items()]
    usage = "\n".join(["usage: python -m benchmarks NAME [options | --help]", *lines])
    if name not in ("-h", "--help"):
        sys.exit(f"{usage}\n\nno benchmark is named {name}")
    print(usage)


if __name__ == "__main__":
    main(sys.argv[1:])
