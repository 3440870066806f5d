"""Measure how ``k2t convert`` grows with the number of layers, and what HDF5 isolation costs.

    python benchmarks/growth.py [--rounds 3] [--out RESULT.json]

Growth: models of 10 to 5,000 layers. Seconds of computing, less those of ``import torch``, per
layer: the same for all sizes if the work is linear. Isolation: a small file is converted as always,
and with the HDF5 library inside k2t's own process, which is there for this comparison only; the two
take turns. Every command is a process of its own; see ``convert.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from convert import IMPORT_TORCH, K2T, SYNTHETIC, machine, round_robin
from fixture_files import FIXTURES

SERIES: dict[str, tuple[int, ...]] = {
    "chain": (10, 100, 1000, 2500, 5000),
    "functional": (10, 100, 1000, 2500, 5000),
    "inner": (10, 100, 1000, 2500, 5000),
    "recurrent": (10, 100, 500, 1000),
}
# The questions of ``ParserProcess``, answered without a process.
NOT_ISOLATED = """
import h5py
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process, store as hdf5
limits = parser_process._LIMITS
class InProcess:
    def __init__(self, window):
        given = parser_child.InheritedFile(window.file.fileno(), window.offset, window.size)
        self.index = parser_child.Index(h5py, h5py.File(given, "r"), limits)
    def ask(self, question, paths, *more):
        request = {"ask": question, "paths": list(paths), "more": more}
        return [reply["is"] for reply in parser_child.answer(self.index, request, limits)]
    def close(self):
        pass
hdf5.ParserProcess = InProcess
from keras2torch_birnn.cli import main; main()
"""
SMALL = FIXTURES / "tf.keras-2.15.0" / "stack_same_class.h5"


def convert(code: str, model: Path, out: Path) -> list[str]:
    """Return the command line of one conversion."""
    return [sys.executable, "-c", code, "convert", str(model), str(out), "--force"]


def growth(folder: Path, kind: str, rounds: int) -> dict[str, Any]:
    """Measure conversions by size, the cost of a layer at each size, and the growth's exponent."""
    sizes = SERIES[kind]
    commands = {"import torch": [sys.executable, "-c", IMPORT_TORCH]}
    for size in sizes:
        path = folder / f"{kind}-{size}.h5"
        subprocess.run([sys.executable, str(SYNTHETIC), kind, str(size), str(path)], check=True)
        commands[str(size)] = convert(K2T, path, folder / "out.pt")
    results = round_robin(commands, rounds)
    base = results["import torch"]["cpu_seconds"]["median"]
    above = {size: results[str(size)]["cpu_seconds"]["median"] - base for size in sizes}
    # Between the two largest sizes: what is done once for a model falls out.
    first, *_, before, last = sizes
    slope = math.log(
        (above[last] - above[first]) / (above[before] - above[first]),
        (last - first) / (before - first),
    )
    return {
        "sizes": list(sizes),
        "cpu_seconds_above_import_torch": {str(n): round(t, 3) for n, t in above.items()},
        "milliseconds_per_layer_added": {
            f"{a} to {b}": round(1e3 * (above[b] - above[a]) / (b - a), 3)
            for a, b in pairwise(sizes)
        },
        "exponent": round(slope, 3),
        "results": results,
    }


def isolation(folder: Path, rounds: int) -> dict[str, Any]:
    """Convert a small file with and without a process for the HDF5 library."""
    results = round_robin(
        {
            "isolated": convert(K2T, SMALL, folder / "a.pt"),
            "not isolated": convert(NOT_ISOLATED, SMALL, folder / "b.pt"),
        },
        rounds,
    )
    ratios = {}
    for key in ("seconds", "cpu_seconds"):
        pairs = zip(
            results["isolated"][key]["all"], results["not isolated"][key]["all"], strict=True
        )
        one, other = (results[name][key] for name in ("isolated", "not isolated"))
        ratios[key] = {
            "of_medians": round(one["median"] / other["median"], 3),
            "of_fastest": round(one["least"] / other["least"], 3),
            "median_of_rounds": round(statistics.median(a / b for a, b in pairs), 3),
        }
    return {"model": SMALL.name, "rounds": rounds, "ratios": ratios, "results": results}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--isolation-rounds", type=int, default=15)
    day = datetime.datetime.now(datetime.timezone.utc).date()
    results = Path(__file__).parents[1] / "build" / f"growth-{day}.json"
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    about: dict[str, Any] = {"date": str(day), "machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        about["isolation"] = isolation(Path(name), options.isolation_rounds)
        print("isolated / not isolated:", json.dumps(about["isolation"]["ratios"]))
        about["growth"] = {}
        for kind in SERIES:
            about["growth"][kind] = found = growth(Path(name), kind, options.rounds)
            shown = ", ".join(
                f"{n}: {t:.2f} s" for n, t in found["cpu_seconds_above_import_torch"].items()
            )
            print(f"{kind}: {shown}; exponent {found['exponent']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
