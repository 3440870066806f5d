"""Run an exported file in a process of its own, with limits: it may be anybody's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn import limits
from keras2torch_birnn.errors import printable
from keras2torch_birnn.spec import Array

_CHILD = Path(__file__).with_name("runtime_child.py")


def run_exported(path: Path, inputs: Sequence[Array], runtime: str = "") -> tuple[Array, ...] | str:
    """Run the file on these inputs; return its outputs, or the reason why there are none.

    inputs: in Keras' order. runtime: of a target that has several, "" for its first.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        named: dict[str, Any] = {f"in_{i}": np.asarray(x) for i, x in enumerate(inputs)}
        np.savez(given, **named)
        job = {
            "import_from": [str(Path(__file__).parents[2]), *filter(None, sys.path)],
            "file": os.fspath(path.resolve()),
            "runtime": runtime,
            "inputs": str(given),
            "outputs": str(found),
            "memory": limits.MAX_EXPORTED_MEMORY + 8 * path.stat().st_size,
            "written": limits.MAX_EXPORTED_OUTPUT,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(_CHILD), json.dumps(job)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limits.MAX_EXPORTED_SECONDS,
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not finish in {limits.MAX_EXPORTED_SECONDS} s"
        if done.returncode or not found.exists():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            return printable(lines[-1] if lines else f"it ended with code {done.returncode}")
        try:
            with np.load(found) as data:
                return tuple(data[f"out_{i}"] for i in range(len(data.files)))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile):
            return "its outputs cannot be read"
