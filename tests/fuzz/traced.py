"""List the files, sockets and programs that a conversion touches, by strace (Linux).

    cd tests && python -m fuzz.traced --out /tmp/traced.json

One good file, and one that names a system file in every way that HDF5 and Keras offer: external
storage, a link to another file, a vocabulary, a custom object, a Lambda.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from commands import OLD, changed_h5

SECRET = "/etc/hostname"
# Where the interpreter, the libraries and the system's own tables live -> what they are called here
_KNOWN = (
    (sysconfig.get_path("purelib"), "Python packages"),
    (sysconfig.get_path("stdlib"), "Python's own library"),
    (sys.prefix, "the Python environment"),
    (sys.base_prefix, "the Python installation"),
    (str(Path(__file__).parent.parent.parent), "this package"),
    ("/proc", "/proc"),
    ("/sys", "/sys"),
    ("/dev/null", "/dev/null"),
    ("/dev/urandom", "/dev/urandom"),
)
_SYSTEM = re.compile(r"/(lib|lib64|usr/lib|usr/lib64|usr/local/lib|usr/share|etc/ld\.so|nix)")
_OPENED = re.compile(r"open(?:at)?\((?:AT_FDCWD, )?\"([^\"]*)\", (\S+?)[,)].* = (-?\d+)")
_CALL = re.compile(r"^(?:\[pid +\d+\] |\d+ +)?(\w+)\(")


def hostile(path: Path) -> Path:
    """A model that reaches for ``SECRET`` wherever it can."""

    def reach(file: h5py.File) -> None:
        model = json.loads(file.attrs["model_config"])
        layers = model["config"]["layers"] if isinstance(model["config"], dict) else model["config"]
        layers += [
            {"class_name": "StringLookup", "config": {"name": "a", "vocabulary": SECRET}},
            {
                "class_name": "StringLookup",
                "config": {"name": "b", "vocabulary": "http://127.0.0.1"},
            },
            {"class_name": "TFSMLayer", "config": {"name": "c", "filepath": "/etc"}},
            {"class_name": "Lambda", "config": {"name": "d", "function": ["4wEAAAA=", None, None]}},
            {"class_name": "os>system", "config": {"name": "e", "command": "id"}},
        ]
        file.attrs["model_config"] = json.dumps(model)
        file["model_weights/outside"] = h5py.ExternalLink(SECRET, "/")
        file["model_weights"].create_dataset("file", (4,), "u1", external=[(SECRET, 0, 4)])

    return changed_h5(OLD, path, reach)


def hostile_weights(path: Path) -> Path:
    """A good architecture, one weight of which is stored in ``SECRET``."""

    def reach(file: h5py.File) -> None:
        group = file["model_weights"]
        layer = next(n for n in group if len(group[n].attrs.get("weight_names", ())))
        name = group[layer].attrs["weight_names"][0]
        found = group[layer][name]
        shape = found.shape
        del group[layer][name]
        size = int(np.prod(shape)) * 4
        group[layer].create_dataset(name, shape, "f4", external=[(SECRET, 0, size)])

    return changed_h5(OLD, path, reach)


def traced(model: Path, out: Path) -> dict[str, Any]:
    """Convert under strace and sum up what was asked of the kernel."""
    k2t = str(Path(sys.executable).with_name("k2t"))
    log = out.parent / "log"
    calls = "trace=%file,%network,%process"
    command = ["strace", "-ff", "-qq", "-s", "300", "-e", calls, "-o", str(log)]
    done = subprocess.run(
        [*command, k2t, "convert", str(model), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    opened: Counter[str] = Counter()
    others: set[str] = set()
    names: Counter[str] = Counter()
    programs: set[str] = set()
    lines: list[str] = []
    for part in log.parent.glob("log.*"):  # one for each thread and process
        lines += part.read_text(encoding="utf-8", errors="replace").splitlines()
        part.unlink()
    for line in lines:
        call = _CALL.match(line)
        names[call[1] if call else "other"] += 1
        if call and call[1] == "execve" and " = -1 " not in line:
            programs.add(_shown(line.split('"')[1], out))
        found = _OPENED.search(line)
        if found and int(found[3]) >= 0:
            place = next((what for root, what in _KNOWN if found[1].startswith(root)), "")
            place = place or ("system libraries" if _SYSTEM.match(found[1]) else "")
            opened[place or "listed below"] += 1
            if not place:
                others.add(f"{_shown(found[1], out)} ({found[2].split('|')[0]})")
    network = ("socket", "connect", "bind", "sendto", "recvfrom", "accept", "listen")
    return {
        "code": done.returncode,
        "said": [_shown(line, out) for line in done.stderr.splitlines()],
        "opened": dict(opened.most_common()),
        "opened elsewhere": sorted(others),
        "programs": sorted(programs),
        "network calls": {name: names[name] for name in network if names[name]},
        "the secret was opened": any(SECRET in line for line in others),
    }


def _shown(text: str, out: Path) -> str:
    text = re.sub(r"\.k2t-[0-9a-f]+", ".k2t-RANDOM", text.replace(str(out.parent), "FOLDER"))
    return text.replace(sys.prefix, "ENVIRONMENT").replace(sys.base_prefix, "PYTHON")


def main() -> None:
    """Trace the three conversions and write the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default="not given")
    given = parser.parse_args()
    result: dict[str, Any] = {"commit": given.commit}
    with tempfile.TemporaryDirectory() as folder:
        good = Path(shutil.copy(OLD, Path(folder) / "good.h5"))
        for name, model in (
            ("good", good),
            ("hostile architecture", hostile(Path(folder) / "hostile.h5")),
            ("hostile weights", hostile_weights(Path(folder) / "weights.h5")),
        ):
            result[name] = traced(model, Path(folder) / f"{model.stem}.pt")
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
