"""Contenders beside the four of ``k2t bench``; each function prepares one in its process."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.cli.bench.contenders import (
    CONTENDERS,
    ON_TENSORFLOW,
    ONNX,
    OURS,
    PLAIN,
    Contender,
    Prepared,
    call_torch,
    count_threads,
    load_in_keras,
)
from keras2torch_birnn.spec import Array

Case = Mapping[str, Any]
RATE = 1.0  # of gradient descent
LOOP, COMPILED = "naive loop", "torch.compile"


def convert(case: Case, how: Any) -> Any:
    """Convert the file's model: "frozen", for an engine, or in a precision."""
    import keras2torch_birnn as k2t

    model = k2t.convert(case["path"], config=case["config"])
    if how == "frozen":
        return k2t.freeze(model)
    if how in ("bfloat16", "int8"):
        k2t.set_precision(model, how)
    else:
        k2t.set_engine(model, how)
    return model


def load_source(folder: Path) -> Any:
    """Load the model as plain PyTorch, as ``k2t export`` wrote it."""
    sys.path.insert(0, str(folder))
    return import_module("model").load()


def prepare_converted(case: Case, inputs: Sequence[Array], folder: Path, how: str) -> Prepared:
    """Prepare the converted model."""
    return call_torch(convert(case, how), inputs)


def prepare_compiled(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare plain PyTorch, compiled."""
    import torch

    return call_torch(torch.compile(load_source(folder)), inputs)


def prepare_quantized(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare plain PyTorch, in int8 by ``quantize_dynamic``."""
    import torch

    warnings.simplefilter("ignore")
    quantize: Any = torch.ao.quantization.quantize_dynamic
    kinds = {torch.nn.LSTM, torch.nn.GRU}
    return call_torch(quantize(load_source(folder), kinds, dtype=torch.qint8), inputs)


def prepare_openvino(
    case: Case, inputs: Sequence[Array], folder: Path, precision: str | None = "f32"
) -> Prepared:
    """Prepare OpenVINO; precision None: as it chooses."""
    import openvino

    from keras2torch_birnn.exporting.onnx_file import DTYPES

    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": count_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(folder / "model.onnx"), "CPU", options)
    pairs = zip(compiled.inputs, inputs, strict=True)
    feeds: Any = [np.asarray(x, DTYPES[one.element_type.get_type_name()]) for one, x in pairs]
    request = compiled.create_infer_request()
    places = range(len(compiled.outputs))

    def run() -> list[Array]:
        found = request.infer(feeds)
        return [found[place].copy() for place in places]

    return Prepared(run, f"OpenVINO {openvino.__version__}")


def prepare_openvino_default(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare OpenVINO as it chooses: bfloat16 where the processor has instructions for it."""
    return prepare_openvino(case, inputs, folder, None)


def prepare_onnx_int8(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Quantize for ONNX Runtime by its ``quantize_dynamic``, which has no GRU."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from keras2torch_birnn.cli.bench.contenders import prepare_onnx

    file, smaller = folder / "model.onnx", folder / "int8" / "model.onnx"
    smaller.parent.mkdir(exist_ok=True)
    quantize_dynamic(file, smaller, per_channel=True, weight_type=QuantType.QInt8)
    left = {"LSTM", "GRU"} & {node.op_type for node in onnx.load(smaller).graph.node}
    if left:
        raise ValueError(f"quantize_dynamic leaves {', '.join(left)} in float32")
    return prepare_onnx(case, inputs, smaller.parent)


def prepare_predict(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare Keras' ``predict``."""
    model, runs = load_in_keras(case)
    given = list(inputs) if len(inputs) > 1 else inputs[0]
    return Prepared(lambda: model.predict(given, batch_size=len(inputs[0]), verbose=0), runs)


def prepare_xla(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare Keras, compiled by XLA."""
    model, runs = load_in_keras(case)
    import tensorflow

    function = tensorflow.function(lambda x: model(x, training=False), jit_compile=True)
    tensors = [tensorflow.constant(x) for x in inputs]
    given = tensors[0] if len(tensors) == 1 else tensors
    return Prepared(lambda: function(given).numpy(), runs)


# ---- training ------------------------------------------------------------------------------------


def train(model: Any, given: Sequence[Any]) -> Prepared:
    """Prepare a step of gradient descent on the mean of the squared outputs."""
    import torch

    model = model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, RATE)

    def step() -> None:
        optimizer.zero_grad()
        model(*given).square().mean().backward()
        optimizer.step()

    def give_after_one_step() -> Any:
        step()
        with torch.no_grad():
            return model(*given)

    return Prepared(step, f"torch {torch.__version__}", give_after_one_step)


def train_converted(case: Case, inputs: Sequence[Array], folder: Path, how: str) -> Prepared:
    """Prepare training of the converted model."""
    return train(convert(case, how), make_tensors(inputs))


def train_source(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare training of plain PyTorch."""
    return train(load_source(folder), make_tensors(inputs))


def make_tensors(inputs: Sequence[Array]) -> list[Any]:
    """Return the inputs as tensors of a process with its number of threads."""
    import torch

    torch.set_num_threads(count_threads())
    return [torch.from_numpy(x) for x in inputs]


def train_keras(case: Case, inputs: Sequence[Array], folder: Path) -> Prepared:
    """Prepare ``train_on_batch`` towards zeros: the loss is the mean of the squared outputs."""
    model, runs = load_in_keras(case)
    keras = sys.modules[case["package"]]
    model.compile(keras.optimizers.SGD(RATE), loss="mse", jit_compile="XLA" in os.environ)
    zeros = np.zeros(model(inputs[0]).shape, dtype="f4")

    def step() -> None:
        model.train_on_batch(inputs[0], zeros)

    def give_after_one_step() -> Any:
        step()
        return model.predict_on_batch(inputs[0])

    return Prepared(step, runs, give_after_one_step)


# ---- tables --------------------------------------------------------------------------------------

prepare_unfrozen, prepare_loop, prepare_bfloat16, prepare_int8 = (
    partial(prepare_converted, how=how) for how in ("auto", "loop", "bfloat16", "int8")
)
train_k2t, train_loop = (partial(train_converted, how=how) for how in ("auto", "loop"))


def _here(function: str, **options: Any) -> Contender:
    return Contender(f"{__name__}:{function}", **options)


def _keras(function: str, **environment: str) -> Contender:
    needs, environment = ("keras", "tensorflow"), {**ON_TENSORFLOW, **environment}
    return _here(function, needs=needs, environment=environment)


_ON_ONNX: Any = {"needs": ("onnx", "onnxruntime"), "file": "model.onnx"}
_OPENVINO: Any = {"needs": ("openvino",), "file": "model.onnx"}
LAYERS = {
    **CONTENDERS,
    COMPILED: _here("prepare_compiled", file="model.py"),
    "OpenVINO": _here("prepare_openvino", **_OPENVINO),
    "Keras predict": _keras("prepare_predict"),
    "Keras XLA": _keras("prepare_xla"),
}
MODELS = {**LAYERS, "k2t not frozen": _here("prepare_unfrozen"), LOOP: _here("prepare_loop")}
TRAINING = {
    OURS: _here("train_k2t"),
    PLAIN: _here("train_source", file="model.py"),
    LOOP: _here("train_loop"),
    "Keras train_on_batch": _keras("train_keras"),
    "Keras train_on_batch XLA": _keras("train_keras", XLA="1"),
}
# Reduced precision has no parity to assert: its error stands beside each time.
PRECISION = {
    OURS: CONTENDERS[OURS],
    "k2t bfloat16": _here("prepare_bfloat16", exact=False),
    "k2t int8": _here("prepare_int8", exact=False),
    PLAIN: CONTENDERS[PLAIN],
    "torch quantize_dynamic": _here("prepare_quantized", exact=False, file="model.py"),
    ONNX: CONTENDERS[ONNX],
    "ONNX Runtime int8": _here("prepare_onnx_int8", exact=False, **_ON_ONNX),
    "OpenVINO": LAYERS["OpenVINO"],
    "OpenVINO default": _here("prepare_openvino_default", exact=False, **_OPENVINO),
}
