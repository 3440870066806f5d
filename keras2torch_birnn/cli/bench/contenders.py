"""The contenders of ``k2t bench``, each the process of one implementation.

``python -m keras2torch_birnn.cli.bench.contenders MODULE:FUNCTION FOLDER``. The folder holds
``case.json``, ``inputs.npz``, and what it runs, written by ``measure``. The first answer,
a line of JSON, tells what runs; ``outputs.npz`` then has what it computes. Each further line on
stdin is answered by the milliseconds of a call.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.spec import Array

# A short call is repeated, so that threads that slept are awake and small caches are warm, as they
# are where models are called over and over.
ENOUGH_MS = 20.0


@dataclass(frozen=True)
class Contender:
    """An implementation.

    function: ``MODULE:FUNCTION``, which prepares it in its process. needs: packages that must be
    installed; "keras" stands for the Keras of today that computes as the file's own. file: what the
    model is exported to for it. exact: whether other numbers exclude it.
    """

    function: str
    needs: tuple[str, ...] = ()
    file: str = ""
    exact: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


class Prepared(NamedTuple):
    """The call that is timed, what runs and its version, and what gives the outputs if not it."""

    run: Callable[[], Any]
    runs: str
    outputs: Callable[[], Any] | None = None


OURS, PLAIN, ONNX, KERAS = "k2t", "torch layer by layer", "ONNX Runtime", "Keras tf.function"
ON_TENSORFLOW = {"KERAS_BACKEND": "tensorflow"}
CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(f"{__name__}:prepare_k2t"),
    PLAIN: Contender(f"{__name__}:prepare_source", file="model.py"),
    ONNX: Contender(f"{__name__}:prepare_onnx", ("onnxruntime",), "model.onnx"),
    KERAS: Contender(
        f"{__name__}:prepare_keras", ("keras", "tensorflow"), environment=ON_TENSORFLOW
    ),
}


def prepare_k2t(case: Mapping[str, Any], inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare the converted model as one serves it: frozen."""
    from keras2torch_birnn.conversion import convert
    from keras2torch_birnn.freezing import freeze

    return call_torch(freeze(convert(case["path"], config=case["config"])), inputs)


def prepare_source(case: Mapping[str, Any], inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare plain PyTorch as ``k2t export`` writes it: torch's layers, the merge by hand."""
    sys.path.insert(0, str(folder))
    return call_torch(import_module("model").load(), inputs)


def call_torch(model: Callable[..., Any], inputs: Sequence[Array]) -> Prepared:
    """Prepare the call of a torch model."""
    import torch

    torch.set_num_threads(count_threads())
    given = [torch.from_numpy(x) for x in inputs]

    def run() -> Any:
        with torch.inference_mode():
            return model(*given)

    return Prepared(run, f"torch {torch.__version__}")


def count_threads() -> int:
    """Return the threads that a contender may use."""
    return int(os.environ["OMP_NUM_THREADS"])


def prepare_onnx(case: Mapping[str, Any], inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare the exported file in ONNX Runtime."""
    import onnxruntime

    from keras2torch_birnn.exporting.onnx_file import DTYPES

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = count_threads()
    file, places = str(folder / "model.onnx"), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(file, settings, providers=places)
    pairs = zip(session.get_inputs(), inputs, strict=True)
    feeds: Any = {one.name: np.asarray(x, DTYPES[one.type]) for one, x in pairs}
    return Prepared(lambda: session.run(None, feeds), f"ONNX Runtime {onnxruntime.__version__}")


def prepare_keras(case: Mapping[str, Any], inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare the file's model in Keras, in a graph of TensorFlow."""
    model, runs = load_in_keras(case)
    import tensorflow

    function = tensorflow.function(lambda x: model(x, training=False))
    tensors = [tensorflow.constant(x) for x in inputs]
    given = tensors[0] if len(tensors) == 1 else tensors
    return Prepared(lambda: flat(function(given)), runs)  # arrays, as TensorFlow does not wait


def load_in_keras(case: Mapping[str, Any]) -> tuple[Any, str]:
    """Load the file's model in Keras on TensorFlow; return it and the versions."""
    import tensorflow

    from keras2torch_birnn.errors import UsageError
    from keras2torch_birnn.verification.keras_child import load_model
    from keras2torch_birnn.verification.live_keras import files_for_keras

    tensorflow.config.threading.set_intra_op_parallelism_threads(count_threads())
    tensorflow.config.threading.set_inter_op_parallelism_threads(count_threads())
    config = case["config"] and Path(case["config"])
    with tempfile.TemporaryDirectory() as name:
        files = files_for_keras(Path(name), Path(case["path"]), config)
        if isinstance(files, str):
            raise UsageError(files)
        model = load_model(case["package"], *map(str, files))
    version = sys.modules[case["package"]].__version__
    return model, f"Keras {version}, TensorFlow {tensorflow.__version__}"


def flat(outputs: Any) -> list[Array]:
    """Return the arrays of an output of any library."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, Sequence):
        return [array for part in outputs for array in flat(part)]
    return [np.asarray(outputs.cpu() if hasattr(outputs, "cpu") else outputs)]


def main(function: str, place: str) -> None:
    """Prepare the case, then answer until stdin ends."""
    # What libraries print on stdout must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder, (module, _, name) = Path(place), function.partition(":")
    try:
        case = json.loads(folder.joinpath("case.json").read_text("utf-8"))
        with np.load(folder / "inputs.npz") as data:
            inputs = [data[key] for key in data.files]
        prepared = getattr(import_module(module), name)(case, inputs, folder)
        np.savez(folder / "outputs.npz", *flat((prepared.outputs or prepared.run)()))
        prepared.run()
        answer: dict[str, Any] = {"runs": prepared.runs}
    except Exception as error:  # whatever a library raises: the table tells, the others go on
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer = {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"[:120]}
    answers.write(json.dumps(answer) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps({"ms": time_call(prepared.run)}) + "\n")


def time_call(run: Callable[[], Any]) -> float:
    """Time a call in milliseconds: if it is short, the median of several without the first."""
    times: list[float] = []
    while not times or sum(times) < ENOUGH_MS:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:] or times)


if __name__ == "__main__":
    main(*sys.argv[1:])
