"""The installed Keras at work on random graphs, and what the converted models make of its files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Array, ModelSpec

WORKER = Path(__file__).with_name("keras_worker.py")
DISTRIBUTIONS = {"keras": "keras", "tf_keras": "tf-keras"}
# In what a model is saved, by the names of ``generate.py`` and ``generate_tensorflow.py``.
KINDS = {
    "keras": ("h5", "keras", "weights_v3", "folder"),
    "tf_keras": ("h5", "keras", "weights_h5", "weights_v3", "untraced", "weights", "checkpoint"),
}
# Keras computes in float32; the reference and the float64 model agree to the last bits.
ATOL, RTOL, EXACT = 1e-5, 1e-4, 1e-9


def label(package: str) -> str | None:
    """``keras-3.15.1``, or None where the package or TensorFlow is not installed."""
    try:
        found = version(DISTRIBUTIONS[package])
        version("tensorflow")
    except PackageNotFoundError:
        return None
    return f"{package}-{found}"


class LiveKeras:
    """A child process in which Keras builds and runs what it is asked for."""

    def __init__(self, package: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        name = label(package)
        if name is None:
            raise LookupError(f"{package} is not installed")
        environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), name, self.folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._line()
        self.count = 0

    def __enter__(self) -> LiveKeras:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.stdin and self.process.stdout:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.folder.cleanup()

    def _line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("Keras has died")
        return line

    def write(self, graph: dict[str, Any], kind: str) -> Path | str:
        """The file that Keras wrote of the graph, or its error. The same name again each time.

        kind: one of ``KINDS``.
        """
        self.count += 1
        if self.process.stdin:
            self.process.stdin.write(repr({"name": "random", "graph": graph, "kind": kind}) + "\n")
            self.process.stdin.flush()
        answer = ast.literal_eval(self._line())
        return answer["error"] or Path(self.folder.name, answer["file"])


@dataclass(frozen=True)
class Outcome:
    """Comparison of a file's model: largest error against Keras, relative to the tolerance.

    ``keras_error``: the same of Keras itself against float64.
    """

    error: float
    keras_error: float
    exact_error: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Equal, or as far from Keras as Keras is from exact arithmetic."""
        near = self.error <= 1 or self.error <= 4 * self.keras_error
        return not self.problem and near and self.exact_error <= 1


def compared(file: Path) -> Outcome:
    """Convert the file and run it on the inputs beside it."""
    with np.load(file.with_name("random.npz")) as data:
        count = {kind: sum(n.startswith(kind) for n in data.files) for kind in ("in_", "out_")}
        inputs = tuple(data[f"in_{i}"] for i in range(count["in_"]))
        wanted = tuple(data[f"out_{i}"] for i in range(count["out_"]))
    try:
        config = file.with_name("arch.json")  # of a checkpoint
        spec = read_model(file, config=config if config.exists() else None)
        single = _run(spec, inputs, "float32")
        exact = compute(spec, inputs).outputs
        precise = _run(spec, inputs, "float64")
    except Exception as error:  # a refusal, or a bug; both are worth a line
        return Outcome(0, 0, 0, f"{type(error).__name__}: {error}".replace(str(file), "FILE"))
    if not len(single) == len(exact) == len(wanted):
        return Outcome(0, 0, 0, f"{len(single)} outputs, Keras has {len(wanted)}")
    return Outcome(
        largest_error(single, wanted, ATOL, RTOL),
        largest_error(exact, wanted, ATOL, RTOL),
        largest_error(precise, exact, EXACT, EXACT),
    )


def _run(spec: ModelSpec, inputs: Sequence[Array], dtype: str) -> tuple[Array, ...]:
    model = build(spec, dtype=dtype)
    given = [torch.from_numpy(x) for x in inputs]
    kind = getattr(torch, dtype)
    with torch.no_grad():
        made = flat(model(*(x.to(kind) if x.is_floating_point() else x for x in given)))
    return tuple(y.numpy() for y in made)


def largest_error(got: Sequence[Array], wanted: Sequence[Array], atol: float, rtol: float) -> float:
    """The largest error in units of ``atol + rtol |wanted|``; NaN equals NaN alone."""
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = a.astype(np.float64), b.astype(np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            units = np.where(same, 0.0, np.abs(a - b) / (atol + rtol * np.abs(b)))
        worst = max(worst, float(np.nan_to_num(units, nan=np.inf).max(initial=0.0)))
    return worst
