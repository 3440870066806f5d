"""Process of a contender: reads commands on stdin, answers each with one line of JSON.

``python -m keras2torch_birnn.bench.worker MODULE HOW DEVICE FOLDER [memory]``. The folder holds
``case.json`` and, for a model, ``inputs.npz``. First answer: what runs. ``outputs FILE``: write
what was computed; ``run``: compute once, in milliseconds. With ``memory`` the first answer tells
how much the first run takes, beyond what was there before and its outputs, in MB (on Linux).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.bench.case import flat, from_json


def main(module: str, how: str, device: str, folder: str, memory: str = "") -> None:
    """Prepare the case, then answer until stdin ends."""
    # What libraries print on stdout must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        case = from_json(Path(folder, "case.json").read_text(encoding="utf-8"))
        inputs = _inputs(Path(folder, "inputs.npz"))
        prepared = import_module(module).prepare(case, how, device, inputs)
        above = {"above_mb": _measure_memory(prepared.run)} if memory else {}
        first = prepared.outputs()
        prepared.run()
    except Exception as error:  # whatever a library raises: the table tells, the others go on
        lines = [line for line in str(error).splitlines() if line.strip()]
        answer(error=f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:120])
        return
    answer(runs=prepared.runs, way=prepared.way, **above)
    for line in sys.stdin:
        command, _, file = line.strip().partition(" ")
        if command == "outputs":
            named: dict[str, Any] = {f"y{i}": y for i, y in enumerate(flat(first))}
            np.savez(file, **named)
            answer(written=file)
        else:
            answer(ms=_timed(prepared.run))


# A short call is repeated, so that threads that slept are awake and small caches are warm, as they
# are where models are called over and over.
ENOUGH_MS = 20.0


def _timed(run: Callable[[], Any]) -> float:
    """Time a call in milliseconds: if it is short, the median of several without the first."""
    times: list[float] = []
    while not times or sum(times) < ENOUGH_MS:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:] or times)


def _measure_memory(run: Callable[[], Any]) -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = _status_mb("VmRSS")
    outputs = run()
    of_outputs = sum(int(y.nbytes) for y in flat(outputs)) / 1e6
    return _status_mb("VmHWM") - before - of_outputs


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def _inputs(file: Path) -> list[np.ndarray[Any, Any]]:
    if not file.exists():
        return []
    with np.load(file) as data:
        return [data[f"x{i}"] for i in range(len(data.files))]


if __name__ == "__main__":
    main(*sys.argv[1:])
