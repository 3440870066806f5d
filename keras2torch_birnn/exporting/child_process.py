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
from keras2torch_birnn.exporting import find_target
from keras2torch_birnn.spec import Array

_CHILD = Path(__file__).with_name("runtime_child.py")


def run_exported(
    path: Path, batches: Sequence[Sequence[Array]]
) -> tuple[tuple[Array, ...] | str, ...]:
    """Run a file on several batches; return for each the outputs, or why there are none.

    A batch has the inputs in Keras' order.
    """
    target = find_target(path).load()
    size = sum(file.stat().st_size for file in target.files(path) if file.exists())
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
        named: dict[str, Any] = {
            f"{number}_{place}": np.asarray(x)
            for number, batch in enumerate(batches)
            for place, x in enumerate(batch)
        }
        np.savez(given, **named)
        job = {
            "import_from": [str(Path(__file__).parents[2]), *filter(None, sys.path)],
            "file": os.fspath(path.resolve()),
            "alone": target.alone,
            "batches": len(batches),
            "inputs": str(given),
            "outputs": str(found),
            "memory": limits.MAX_EXPORTED_MEMORY + 8 * size,
            "written": limits.MAX_EXPORTED_OUTPUT,
        }
        reason = _run_child(job, Path(folder)) or ("" if found.exists() else "it wrote no outputs")
        if reason:
            return (printable(reason),) * len(batches)
        try:
            return _read(found, len(batches))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile):
            return ("its outputs cannot be read",) * len(batches)


def _run_child(job: dict[str, Any], folder: Path) -> str:
    """Run the child; return why it failed, empty if it did not."""
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
    if not done.returncode:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return f"it crashed (signal {-done.returncode})"
    if done.returncode >= 0xC0000000:  # the codes of Windows for a crash
        return f"it crashed ({done.returncode:#x})"
    return lines[-1] if lines else f"it ended with code {done.returncode}"


def _read(path: Path, count: int) -> tuple[tuple[Array, ...] | str, ...]:
    with np.load(path) as data:
        results: list[tuple[Array, ...] | str] = []
        for number in range(count):
            if f"{number}_error" in data.files:
                results.append(printable(data[f"{number}_error"].item()))
                continue
            mine = [name for name in data.files if name.startswith(f"{number}_")]
            results.append(tuple(data[f"{number}_{place}"] for place in range(len(mine))))
        return tuple(results)
