"""Run k2t on a folder of files that crash HDF5 libraries, and write down how each run ended.

    git clone https://github.com/HDFGroup/cve_hdf5
    cd tests && python -m fuzz.reproducers ../cve_hdf5/cvefiles --out /tmp/reproducers.json

Such files are never part of this repository. ``inspect`` and ``convert`` run as users run them;
``walk`` goes through every group, attribute and array that the readers can reach, which the
commands do not: they stop at once where there is no model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

WALK = """
import sys
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.containers import open_container

ATTRIBUTES = ["model_config", "keras_version", "layer_names", "weight_names", "backend", "name"]
counts = {"groups": 0, "arrays": 0, "refused": 0}
first = ""

def tried(work):
    global first
    try:
        return work()
    except K2TError as error:
        counts["refused"] += 1
        first = first or error.message

def walk(store, group, depth=0):
    counts["groups"] += 1
    tried(lambda: store.attributes(group, ATTRIBUTES))
    for name, kind in (tried(lambda: store.members(group)) or {}).items():
        path = f"{group.rstrip('/')}/{name}"
        if kind == "dataset":
            counts["arrays"] += 1
            tried(lambda: [array.read() for array in store.arrays([path])])
        elif depth < 8 and counts["groups"] < 200:
            walk(store, path, depth + 1)

def start():
    with open_container(sys.argv[1]) as container:
        walk(container.store, "/")

tried(start)
print(counts, first.splitlines()[0] if first else "")
"""


def ended(command: list[str]) -> dict[str, Any]:
    """Run a command to its end: code, time, what it said."""
    started, spent = time.monotonic(), _computed()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    return {
        "code": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(_computed() - spent, 1),
        "error_lines": len(done.stderr.splitlines()),
        "traceback": "Traceback" in done.stderr,
        "said": (done.stderr or done.stdout).strip()[-160:],
    }


def _computed() -> float:
    """Seconds of computing of all commands so far, with what they started."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="not given")
    given = parser.parse_args()
    k2t = str(Path(sys.executable).with_name("k2t"))
    files = sorted(path for path in given.folder.iterdir() if path.suffix != ".md")
    rows: list[dict[str, Any]] = [{"file": path.name} for path in files]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.pt"
        commands = {
            "walk": [sys.executable, "-c", WALK],
            "inspect": [k2t, "inspect"],
            "convert": [k2t, "convert"],
        }
        for what, command in commands.items():
            for path, row in zip(files, rows, strict=True):
                more = [str(out)] if what == "convert" else []
                row[what] = ended([*command, str(path), *more])
                row[what]["said"] = row[what]["said"].replace(f"{path}: ", "")
                assert not list(Path(folder).iterdir()), path
                done = [r[what] for r in rows if what in r]
                table = {
                    "commit": given.commit,
                    "files": len(files),
                    "codes": {
                        w: dict(Counter(str(r[w]["code"]) for r in rows if w in r))
                        for w in commands
                    },
                    "slowest": {
                        unit: {
                            w: max((r[w][unit] for r in rows if w in r), default=0)
                            for w in commands
                        }
                        for unit in ("seconds", "cpu_seconds")
                    },
                    "tracebacks": sum(r[w]["traceback"] for r in rows for w in commands if w in r),
                    "rows": rows,
                }
                if len(done) % 20 == 0 or len(done) == len(files):
                    given.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
