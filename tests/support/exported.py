"""Models of many recurrent layers at once, exported to ONNX and run in this process.

An export takes torch seconds for each layer. ``assert_replaced`` runs the same modules and nodes,
but no graph, in a hundredth of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from specs import TF_KERAS, F, functional, layer
from torch import Tensor, fx, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.exporting import find_target, onnx_file, onnx_recurrent
from keras2torch_birnn.exporting.exporter import copy_structure
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.running import run
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import Array, Call, LayerSpec, ModelSpec, TensorRef, with_dtype

LOOPS = {"Loop", "Scan", "If"}
ATOL, RTOL = 1e-5, 1e-4


def many_layers(
    layers: Mapping[str, LayerSpec],
    outputs: Mapping[str, int],
    *,
    masked: bool,
    states: Sequence[int] = (),
    steps: int | None = None,
) -> ModelSpec:
    """A model of layers side by side that all read x, under the mask m and from initial states.

    outputs: the number of each layer's outputs. states: the units of each initial state.
    """
    shape = (None, steps, F)
    ends = [layer("InputLayer", "x", shape=shape)]
    if masked:
        ends.append(layer("InputLayer", "m", shape=shape[:2], dtype="bool"))
    names = [f"s{i}" for i in range(len(states))]
    ends += [
        layer("InputLayer", name, shape=(None, units))
        for name, units in zip(names, states, strict=True)
    ]
    kwargs: dict[str, Any] = {"mask": TensorRef("m")} if masked else {}
    if states:
        kwargs["initial_state"] = tuple(map(TensorRef, names))
    named = [replace(one, name=name) for name, one in layers.items()]
    calls = [Call(name, 0, (TensorRef("x"),), kwargs) for name in layers]
    refs = tuple(TensorRef(name, 0, i) for name in layers for i in range(outputs[name]))
    root = functional([*ends, *named], calls, tuple(TensorRef(e.name) for e in ends), refs)
    problems: list[K2TError] = []
    inferred = infer_model(with_dtype(root, np.dtype(np.float32)), problems)
    assert not problems
    return ModelSpec(inferred, TF_KERAS)


def masks(rows: int, steps: int) -> Array:
    """Rows that are full, padded right, padded left, with gaps, and empty, in turn."""
    t = np.arange(steps)
    part = max(1, 2 * steps // 3)
    kinds = [t >= 0, t < part, t >= steps - part, (t * 7 + 3) % 5 > 1, t < 0]
    return np.stack([kinds[row % 5] for row in range(rows)])


def inputs_of(spec: ModelSpec, rows: int, steps: int, seed: int = 5) -> tuple[Array, ...]:
    """Random inputs of a model of ``many_layers``."""
    rng = np.random.default_rng(seed)
    found: list[Array] = []
    for end in spec.input_layers():
        shape = [rows, *(steps if size is None else size for size in end.config["shape"][1:])]
        if end.name == "m":
            found.append(masks(rows, steps))
        else:
            found.append(rng.standard_normal(shape).astype(np.float32))
    return tuple(found)


def spec_of(model: nn.Module) -> ModelSpec:
    """Return the spec that a converted model carries."""
    return origin(model).spec


def write_onnx(model: fx.GraphModule, file: Path) -> ModelSpec:
    """Write a converted model; return the spec it was written by."""
    spec = spec_of(model)
    find_target(file).load().write(copy_structure(model), spec, file)
    return spec


def assert_same(
    model: fx.GraphModule, file: Path, batches: Iterator[tuple[Array, ...]], *, atol: float = ATOL
) -> None:
    """Assert that the file computes what the model computes, in ONNX Runtime."""
    session = onnx_file.RUNTIMES["ONNX Runtime"].open(file)
    for inputs in batches:
        wanted = run(model, tuple(map(torch.from_numpy, inputs)))
        got = session(inputs)
        assert len(got) == len(wanted)
        for place, (a, b) in enumerate(zip(got, wanted, strict=True)):
            np.testing.assert_allclose(
                a, b.numpy(), atol=atol, rtol=RTOL, err_msg=f"output {place} of {inputs[0].shape}"
            )


SIZES = ((5, 7), (1, 7), (4, 12), (2, 1))


def assert_exported(spec: ModelSpec, file: Path) -> Any:
    """Export a model of ``many_layers``, assert that it is right at any size; return the graph."""
    import onnx

    model = build_model(spec)
    write_onnx(model, file)
    assert_same(model, file, (inputs_of(spec, *size) for size in SIZES))
    graph = onnx.load(file).graph
    assert not LOOPS & {node.op_type for node in graph.node}
    return graph


def run_replaced(
    model: nn.Module, inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Counter[str]]:
    """Run a model with the modules of its export, whose nodes ONNX Runtime computes one by one.

    Return the outputs, and how many nodes of each operator were computed.
    """
    from keras2torch_birnn.exporting.onnx_operators import recurrent_node

    count: Counter[str] = Counter()

    def run_node(*given: Any) -> tuple[Tensor, ...]:
        tensors, options = given[:6], given[6:]
        count[options[0]] += 1
        arrays = [None if x is None else x.contiguous().numpy() for x in tensors]
        return tuple(torch.from_numpy(y.value) for y in recurrent_node(*arrays, *options))

    copy = copy_structure(model)
    onnx_recurrent.replace_recurrent(copy)
    with patch.object(onnx_recurrent, "OPERATOR", run_node):
        return run(copy, tuple(inputs)), count


def assert_replaced(spec: ModelSpec) -> Counter[str]:
    """Assert that a model computes the same at any size by its nodes; return their number."""
    model = build_model(spec)
    count: Counter[str] = Counter()
    for size in SIZES:
        inputs = tuple(map(torch.from_numpy, inputs_of(spec, *size)))
        got, count = run_replaced(model, inputs)
        torch.testing.assert_close(got, run(model, inputs), atol=ATOL, rtol=RTOL)
    return count
