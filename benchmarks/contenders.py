"""Contenders of single questions, beside those of ``k2t bench``; a worker calls ``prepare``."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.bench.by_onnx import open_in_onnxruntime, open_in_openvino, stack_model
from keras2torch_birnn.bench.by_torch import TORCH_CLASSES, module_of, set_threads
from keras2torch_birnn.bench.case import (
    CLASSES,
    GENERATION,
    Case,
    Prepared,
    Stack,
    half,
    input_of,
)
from keras2torch_birnn.bench.contenders import CONTENDERS, OURS, Contender
from keras2torch_birnn.building import build
from keras2torch_birnn.freezing import freeze
from keras2torch_birnn.rnn.native.library import find_sets
from keras2torch_birnn.rnn.precision_settings import set_precision
from keras2torch_birnn.running import reset_states
from keras2torch_birnn.schema.stored import layer_of_settings
from keras2torch_birnn.spec import Array, Call, Graph, LayerSpec, ModelSpec, TensorRef

CHUNK = 100  # steps
VERSION = f"torch {torch.__version__}"


def prepare(case: Case, how: str, device: str, inputs: list[Array]) -> Prepared:
    """Prepare a stack for one of ``WAYS``."""
    if not isinstance(case, Stack):
        raise TypeError("a stack is expected")
    set_threads()
    name, _, option = how.partition(" ")
    return WAYS[name](case, option)


def _call(module: Any, stack: Stack, runs: str = VERSION) -> Prepared:
    """Prepare a call without gradients. Weights are packed before, by a short one."""
    x = torch.from_numpy(input_of(stack))
    with torch.inference_mode():
        module(x[:, :1])

    def run() -> Any:
        with torch.inference_mode():
            return module(x)[0]

    return Prepared(run, run, runs)


# ---- several layers in one call ------------------------------------------------------------------


def _by_module(stack: Stack, option: str) -> Prepared:
    """Prepare a ``BiLSTM`` and so on, frozen or not."""
    module = module_of(stack)
    return _call(freeze(module) if option == "frozen" else module, stack)


# ---- reduced precision ---------------------------------------------------------------------------


def _reduced(stack: Stack, precision: Any) -> Prepared:
    """Prepare our layers in a reduced precision."""
    module = module_of(stack)
    set_precision(module, precision)
    return _call(module, stack, f"{VERSION}, {next(iter(find_sets(precision)))}")


def _torch_layers(stack: Stack, precision: str) -> Prepared:
    """Prepare torch's own layers, in int8 by quantize_dynamic."""
    module = module_of(stack, classes=TORCH_CLASSES)
    if precision == "int8":
        warnings.simplefilter("ignore")
        quantize: Any = torch.ao.quantization.quantize_dynamic
        module = quantize(nn.ModuleList([module]), {nn.LSTM, nn.GRU}, dtype=torch.qint8)[0]
    return _call(module, stack)


def _int8_of_onnxruntime(stack: Stack, _: str) -> Prepared:
    """Quantize for ONNX Runtime by its quantize_dynamic: DynamicQuantizeLSTM; it has no GRU."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        file, smaller = Path(folder, "model.onnx"), Path(folder, "int8.onnx")
        file.write_bytes(stack_model(stack).SerializeToString())
        quantize_dynamic(file, smaller, per_channel=True, weight_type=QuantType.QInt8)
        if CLASSES[stack.rnn] in {node.op_type for node in onnx.load(smaller).graph.node}:
            raise ValueError(f"quantize_dynamic leaves {CLASSES[stack.rnn]} in float32")
        return open_in_onnxruntime(str(smaller), [input_of(stack)], _threads())


def _default_of_openvino(stack: Stack, _: str) -> Prepared:
    """Prepare OpenVINO as it chooses: bfloat16 where the processor has instructions for it."""
    model = stack_model(stack).SerializeToString()
    return open_in_openvino(model, [input_of(stack)], _threads(), precision=None)


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


# ---- streams -------------------------------------------------------------------------------------


def _one_direction(stack: Stack, way: str) -> Prepared:
    """Prepare a model of layers of one direction: whole, or in chunks with carried states."""
    model = build(_chain(stack, stateful=way == "chunks"))
    x = torch.from_numpy(input_of(stack))
    with torch.inference_mode():
        model(x[:, :1])

    def outputs() -> Any:
        with torch.inference_mode():
            reset_states(model)
            return torch.cat([model(chunk) for chunk in x.split(CHUNK, dim=1)], dim=1)

    def run() -> None:
        """Run, and keep no output: a stream is read as it comes."""
        with torch.inference_mode():
            reset_states(model)
            for chunk in x.split(CHUNK, dim=1):
                model(chunk)

    return Prepared(run, outputs, VERSION) if way == "chunks" else _whole(model, x)


def _whole(model: Any, x: torch.Tensor) -> Prepared:
    def run() -> Any:
        with torch.inference_mode():
            return model(x)

    return Prepared(run, run, VERSION)


def _chain(stack: Stack, *, stateful: bool) -> ModelSpec:
    """Describe the model as a file would."""
    rng, specs = np.random.default_rng(0), []
    for number in range(stack.layers):
        one = half(stack, stack.features if number == 0 else stack.units, rng, back=False)
        options = {**one.config, **one.semantics, "stateful": stateful}
        name = f"layer_{number}"
        specs.append(layer_of_settings(one.class_name, name, options, weights=one.weights))
    names = ["x", *(spec.name for spec in specs)]
    calls = [Call(after, 0, (TensorRef(before),)) for before, after in pairwise(names)]
    first = layer_of_settings("InputLayer", "x", {"dtype": "float32"}, weights={})
    ends = (TensorRef("x"),), TensorRef(names[-1])
    graph = Graph((first, *specs), (Call("x", 0, ()), *calls), *ends)
    return ModelSpec(LayerSpec("Sequential", "chain", {}, graph=graph), GENERATION)


# ---- tables --------------------------------------------------------------------------------------

WAYS: Mapping[str, Callable[[Stack, str], Prepared]] = {
    "module": _by_module,
    "reduced": _reduced,
    "torch": _torch_layers,
    "onnxruntime-int8": _int8_of_onnxruntime,
    "openvino-default": _default_of_openvino,
    "direction": _one_direction,
}


def _here(how: str, *needs: str, tolerance: float | None = None) -> Contender:
    return Contender("benchmarks.contenders", how, ("torch", *needs), tolerance=tolerance)


STACKS = {OURS: _here("module frozen"), "one by one": _here("module")}
# Reduced precision has no parity to assert: its error stands beside each time.
PRECISIONS = {
    "k2t float32": _here("module frozen"),
    "k2t bfloat16": _here("reduced bfloat16", tolerance=inf),
    "k2t int8": _here("reduced int8", tolerance=inf),
    "torch float32": _here("torch float32"),
    "torch quantize_dynamic": _here("torch int8", tolerance=inf),
    "ONNX Runtime float32": CONTENDERS["ONNX Runtime"],
    "ONNX Runtime int8": _here("onnxruntime-int8", "onnx", "onnxruntime", tolerance=inf),
    "OpenVINO float32": CONTENDERS["OpenVINO"],
    "OpenVINO default": _here("openvino-default", "onnx", "openvino", tolerance=inf),
}
STREAMS = {"whole": _here("direction whole"), "in chunks": _here("direction chunks")}
