"""Contenders that run ONNX: ONNX Runtime and OpenVINO, on files of this package and of torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.bench.case import (
    CLASSES,
    Case,
    Model,
    Prepared,
    Stack,
    input_of,
    layers_of,
    lengths_of,
)
from keras2torch_birnn.exporting.onnx_runtimes import DTYPES
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec

# Keras' gates i f c o and z r h; ONNX' i o f c and z r h.
_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}
_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}
# alpha and beta of ONNX' HardSigmoid: max(0, min(1, alpha x + beta))
_HARD = {"hard_sigmoid_0.2": 0.2, "hard_sigmoid_1/6": 1.0 / 6.0}
BY_TORCH = "onnxruntime-by-torch"


def prepare(case: Case, how: str, device: str, inputs: list[Array]) -> Prepared:
    """Prepare a case for "onnxruntime" or "openvino"; or the stack's model in an ONNX file.

    A stack is written for its sizes. A model is exported, to a file for any sizes, or by
    ``BY_TORCH``, as torch's own exporter writes it, for those of the inputs.
    """
    threads = int(os.environ["OMP_NUM_THREADS"])
    open_model = open_in_openvino if how == "openvino" else open_in_onnxruntime
    if isinstance(case, Stack):
        file = how if how.endswith(".onnx") else stack_model(case).SerializeToString()
        return open_model(file, [input_of(case)], threads)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "model.onnx")
        write = _export_by_torch if how == BY_TORCH else _export
        # A process of its own: torch's threads are not to be in that of the contender.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(write, case, written, inputs).result()
        return open_model(str(written), inputs, threads)


def _export(case: Model, file: Path, inputs: Sequence[Array]) -> None:
    from keras2torch_birnn.exporting.exporter import export

    export(case.convert(), file)


def _export_by_torch(case: Model, file: Path, inputs: Sequence[Array]) -> None:
    import torch

    given = tuple(torch.from_numpy(x) for x in inputs)
    torch.onnx.export(case.convert().eval(), given, file, dynamo=True, external_data=False)


def open_in_onnxruntime(model: str | bytes, inputs: Sequence[Array], threads: int) -> Prepared:
    """Prepare a model, the name of its file or its bytes, for ONNX Runtime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    pairs = zip(session.get_inputs(), inputs, strict=True)
    feeds: Any = {one.name: np.asarray(x, DTYPES[one.type]) for one, x in pairs}
    version = f"ONNX Runtime {onnxruntime.__version__}"
    return _prepared(lambda: session.run(None, feeds), version)


def open_in_openvino(
    model: str | bytes, inputs: Sequence[Array], threads: int, precision: str | None = "f32"
) -> Prepared:
    """Prepare a model, the name of its file or its bytes, for OpenVINO; None: as it chooses."""
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(core.read_model(model=model), "CPU", options)
    request = compiled.create_infer_request()
    pairs = zip(compiled.inputs, inputs, strict=True)
    feeds: Any = [np.asarray(x, DTYPES[one.element_type.get_type_name()]) for one, x in pairs]
    places = range(len(compiled.outputs))

    def run() -> list[Array]:
        found = request.infer(feeds)
        return [found[place].copy() for place in places]

    return _prepared(run, f"OpenVINO {openvino.__version__}")


def _prepared(run: Callable[[], Any], runs: str) -> Prepared:
    return Prepared(run, run, runs)


def stack_model(stack: Stack) -> Any:
    """Write the stack as ONNX, time first as its operators require."""
    import onnx
    from onnx import helper, numpy_helper

    nodes = [helper.make_node("Transpose", ["x"], ["t0"], perm=[1, 0, 2])]
    constants: list[Any] = []

    def constant(name: str, value: Array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    lengths = lengths_of(stack)
    counts = "" if lengths is None else constant("lengths", lengths.astype(np.int32))
    for i, layer in enumerate(layers_of(stack)):
        w, r, b = _weights(layer)
        inputs = [f"t{i}", constant(f"w{i}", w), constant(f"r{i}", r), constant(f"b{i}", b), counts]
        class_name = CLASSES[stack.rnn]
        options: dict[str, Any] = {"direction": "bidirectional", "hidden_size": r.shape[2]}
        if class_name == "GRU":
            options["linear_before_reset"] = int(stack.reset_after)
        if stack.recurrent_activation in _HARD and class_name != "SimpleRNN":
            one = ["HardSigmoid", "Tanh", "Tanh"][: 3 if class_name == "LSTM" else 2]
            options |= {"activations": one * 2, "activation_beta": [0.5] * 2}
            options["activation_alpha"] = [_HARD[stack.recurrent_activation]] * 2
        nodes.append(helper.make_node(_OPERATORS[class_name], inputs, [f"y{i}"], **options))
        nodes += _merge(helper, constant, i, stack)
    nodes.append(helper.make_node("Transpose", [f"t{stack.layers}"], ["out"], perm=[1, 0, 2]))
    size = (stack.batch, stack.time, stack.features)
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _weights(layer: LayerSpec) -> tuple[Array, Array, Array]:
    """Return W (2, G*H, F), R (2, G*H, H) and B (2, 2*G*H), gates in ONNX' order."""
    halves = layer.parts.values()
    order = _ORDER[layer.parts["forward_layer"].class_name]

    def gates(array: Array) -> Array:
        parts = np.split(array, len(order), axis=-1)
        return np.concatenate([parts[g] for g in order], axis=-1)

    w = np.stack([gates(h.weights["kernel"]).T for h in halves])
    r = np.stack([gates(h.weights["recurrent_kernel"]).T for h in halves])
    width = w.shape[1]
    biases = [gates(h.weights["bias"]).reshape(-1, width) for h in halves]
    zeros = np.zeros(width, "f4")
    b = np.stack([np.concatenate((*bias, zeros))[: 2 * width] for bias in biases])
    return w, r, b


def _merge(helper: Any, constant: Any, i: int, stack: Stack) -> list[Any]:
    """Merge the output (T, 2, B, H) of an operator to (T, B, H), or concatenate to (T, B, 2 H)."""
    if stack.merge == "concat":
        size = constant(f"s{i}", np.array([stack.time, stack.batch, -1], dtype=np.int64))
        return [
            helper.make_node("Transpose", [f"y{i}"], [f"m{i}"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"m{i}", size], [f"t{i + 1}"]),
        ]
    axes = constant(f"a{i}", np.array([1], dtype=np.int64))
    split = helper.make_node("Split", [f"y{i}"], [f"f{i}", f"g{i}"], axis=1, num_outputs=2)
    operator = MERGE_MODES[stack.merge].onnx_operator
    merged = helper.make_node(operator, [f"f{i}", f"g{i}"], [f"m{i}"])
    return [split, merged, helper.make_node("Squeeze", [f"m{i}", axes], [f"t{i + 1}"])]
