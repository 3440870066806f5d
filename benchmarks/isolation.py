"""Measure the cost of a process of its own for the HDF5 library in ``k2t convert``.

    python benchmarks/isolation.py [MODEL] [--rounds 11] [--out RESULT.json]

"together" does the same work in one process: the child's own code answers the same questions about
the same file, h5py is imported there, nothing is limited. The two ways take turns, so that a slow
moment of the machine hits both. Seconds of computing are those of all processes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from fixture_files import FIXTURES

SMALL = FIXTURES / "keras-3.15.1" / "stack_same_class.h5"
APART = "from keras2torch_birnn.cli import main; main()"
TOGETHER = """
import json
from keras2torch_birnn.readers.hdf5 import parser_child, parser_process

class Together:
    def __init__(self, window):
        self.window, self.index, self.returncode = window, None, 0
        self.stdin = self.stdout = None
    def kill(self):
        pass
    def wait(self):
        return 0

def ask(self, request):
    child, limits = self._process, parser_process._LIMITS
    if request is None:
        import h5py
        fd, window = child.window.file.fileno(), child.window
        opened = parser_child.InheritedFile(fd, window.offset, window.size)
        child.index = parser_child.Index(h5py, h5py.File(opened, "r"), limits)
        return json.dumps([{"is": "open"}]).encode() + b"\\n"
    given = json.loads(json.dumps(request))
    return json.dumps(parser_child.answer(child.index, given, limits)).encode() + b"\\n"

parser_process._start = Together
parser_process.ParserProcess._write_and_read = ask
from keras2torch_birnn.cli import main
main()
"""
WAYS = {"apart": APART, "together": TOGETHER}


def measured(code: str, model: Path) -> dict[str, float]:
    """Run one conversion: seconds by the clock and of computing, peak MB of the main process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.pt"
        started = time.perf_counter()
        running = subprocess.Popen(
            [sys.executable, "-c", code, "convert", str(model), str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert running.stderr is not None
        said = running.stderr.read().decode()
        _, status, usage = os.wait4(running.pid, 0)
        clock = time.perf_counter() - started
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode or not out.exists():
            raise SystemExit(said)
    computed = usage.ru_utime + usage.ru_stime
    return {"clock": clock, "computing": computed, "peak_mb": usage.ru_maxrss / 1000}


def summed(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return median, least and all of each measure."""
    return {
        key: {
            "median": round(statistics.median(row[key] for row in rows), 4),
            "least": round(min(row[key] for row in rows), 4),
            "all": [round(row[key], 4) for row in rows],
        }
        for key in rows[0]
    }


def main() -> None:
    """Measure turn by turn, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=SMALL)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    for code in WAYS.values():
        measured(code, given.model)  # what is read from the disk for the first time does not count
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            rows[way].append(measured(WAYS[way], given.model))
    found = {way: summed(some) for way, some in rows.items()}
    ratios = {
        key: {
            which: round(found["apart"][key][which] / found["together"][key][which], 3)
            for which in ("median", "least")
        }
        for key in ("clock", "computing")
    }
    result = {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_at_start": round(load, 2),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "h5py")},
        },
        "model": given.model.name,
        "model_bytes": given.model.stat().st_size,
        "rounds": given.rounds,
        "apart over together": ratios,
        "results": found,
    }
    for way, values in found.items():
        shown = ", ".join(f"{key} {value['median']:.2f}" for key, value in values.items())
        print(f"{way}: {shown} (medians)")
    print(f"apart over together: {ratios}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
