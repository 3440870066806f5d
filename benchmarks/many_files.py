"""Time ``k2t convert --out-dir`` on many small files against one Python loop over ``k2t.convert``.

``python benchmarks/many_files.py FOLDER [--files 200] [--jobs 2] [--json FILE]``: copies of the
smallest ``.h5`` files of a folder; the loop runs in a process of its own, as a script does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import K2TError

LOOP = """
import sys
from pathlib import Path
import keras2torch_birnn as k2t
models, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
for model in sorted(models.iterdir()):
    k2t.save(k2t.convert(model), out / f"{model.stem}.pt")
"""


def collect(folder: Path, count: int, into: Path) -> int:
    """Copy small models that can be converted, under new names until there are enough."""
    candidates = sorted(folder.rglob("*.h5"), key=lambda path: (path.stat().st_size, path))
    good: list[Path] = []
    for file in candidates:
        if len(good) == min(count, 40):
            break
        try:
            k2t.convert(file)
        except K2TError:
            continue
        good.append(file)
    for number in range(count):
        shutil.copyfile(good[number % len(good)], into / f"model_{number:03}.h5")
    return len(good)


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    times: dict[str, list[float]] = {"loop": [], "k2t --jobs 1": [], f"k2t --jobs {given.jobs}": []}
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        models.mkdir()
        different = collect(given.folder, given.files, models)
        k2t_command = [sys.executable, "-m", "keras2torch_birnn", "convert", str(models)]
        for number in range(given.rounds):
            out = [Path(name) / f"{number}-{which}" for which in range(3)]
            times["loop"].append(seconds([sys.executable, "-c", LOOP, str(models), str(out[0])]))
            for jobs, target in ((1, out[1]), (given.jobs, out[2])):
                options = ["--out-dir", str(target), "--jobs", str(jobs)]
                times[f"k2t --jobs {jobs}"].append(seconds([*k2t_command, *options]))
            assert all(len(list(one.iterdir())) == given.files for one in out)
    medians = {which: statistics.median(found) for which, found in times.items()}
    for which, median in medians.items():
        print(f"{which:14} {median:6.1f} s  {median / medians['loop']:.2f} of the loop")
    if given.json:
        facts = {
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "files": given.files,
            "different": different,
            "seconds": times,
        }
        given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
