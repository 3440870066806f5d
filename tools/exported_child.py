"""Run exported files, one after another, where the package cannot be imported.

Reads a job a line, JSON: ``runner``, ``file``, ``given`` and ``found`` (npz: BATCH_PLACE), and
``script``, Python code that opens a ``.py`` or computes its gradients. Answers a line for each: the
error of opening the file or null, and for every batch its error or null.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Arrays: TypeAlias = Sequence[Any]
Session: TypeAlias = Callable[[Arrays], Arrays]
Job: TypeAlias = Mapping[str, Any]


def in_onnx_runtime(job: Job) -> Session:
    """Open a file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(job["file"], options, ["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def in_openvino(job: Job) -> Session:
    """Open a file in OpenVINO, in float32."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(job["file"], "CPU", hints)

    def session(inputs: Arrays) -> Arrays:
        found = compiled(list(inputs))
        return [np.array(found[place]) for place in range(len(compiled.outputs))]

    return session


def in_torch_export(job: Job) -> Session:
    """Load an archive of torch.export."""
    return _session(torch.export.load(job["file"]).module())


def in_aotinductor(job: Job) -> Session:
    """Load what AOTInductor compiled."""
    inductor: Any = torch._inductor
    return _session(inductor.aoti_load_package(job["file"]))


def _session(module: Any) -> Session:
    def session(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            return [y.numpy() for y in _flat(module(*map(torch.from_numpy, inputs)))]

    return session


def _flat(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
        return
    for one in output.values() if isinstance(output, dict) else output:
        yield from _flat(one)


def in_source(job: Job) -> Session:
    """Load a module of source, as an export checks it."""
    session: Session = runpy.run_path(job["script"])["open_module"](job["file"])
    return session


def in_training(job: Job) -> Session:
    """Load a module of source; its outputs are its gradients, in the order of their names."""
    computes = runpy.run_path(job["script"])

    def session(inputs: Arrays) -> Arrays:
        model = runpy.run_path(job["file"])["load"]()
        loss = computes["training_loss"](model, list(map(torch.from_numpy, inputs)))
        found = computes["gradients"](model, loss)
        return [found[name] for name in sorted(found)]

    return session


RUNNERS: Mapping[str, Callable[[Job], Session]] = {
    "ONNX Runtime": in_onnx_runtime,
    "OpenVINO": in_openvino,
    "torch.export": in_torch_export,
    "AOTInductor": in_aotinductor,
    "source": in_source,
    "training": in_training,
}


def run(job: Job) -> tuple[str | None, list[str | None]]:
    """Do one job."""
    batches: dict[int, list[Any]] = {}
    with np.load(job["given"]) as data:
        for name in data.files:  # in the order in which they were written
            batches.setdefault(int(name.partition("_")[0]), []).append(data[name])
    found: dict[str, Any] = {}
    errors: list[str | None] = []
    try:
        session = RUNNERS[job["runner"]](job)
    except Exception as error:
        return shown(error), []
    for number, inputs in batches.items():
        try:
            outputs = session(inputs)
        except Exception as error:
            errors.append(shown(error))
        else:
            errors.append(None)
            found |= {f"{number}_{place}": y for place, y in enumerate(outputs)}
    np.savez(job["found"], **found)
    return None, errors


def shown(error: Exception) -> str:
    """Return an error as one line, the end of a long one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[-400:]}"


def main() -> None:
    """Answer jobs until there are no more."""
    modules: dict[str, Any] = sys.modules
    modules["keras2torch_birnn"] = None  # an import of it fails
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a runtime prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
