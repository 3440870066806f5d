"""From a converted model to a program of ``torch.export``, with the file's open sizes left open.

The first step of the targets that begin with such a program.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.running import move_inputs
from keras2torch_birnn.spec import Array, ModelSpec, Shape
from keras2torch_birnn.torch_private import find

Inputs: TypeAlias = tuple[Tensor, ...]
Axes: TypeAlias = tuple[tuple[int, ...], ...]  # of each input
# Declared dtypes that are not floats -> torch's. Those of which torch has few operators are int32.
_WHOLE: Mapping[str, torch.dtype] = {
    **{name: getattr(torch, name) for name in ("bool", "uint8", "int8", "int16", "int32", "int64")},
    **dict.fromkeys(("uint16", "uint32"), torch.int32),
    "uint64": torch.int64,
}
_LOGGERS = ("torch.onnx", "torch.export", "torch._export", "onnxscript")
_CONFIG: Any = find("shape_config")
_OPTION = "backed_size_oblivious"


def draw_example(model: nn.Module, spec: ModelSpec, steps: int, seed: int) -> Inputs:
    """Draw inputs for a model where it is, with so many steps where their number is open."""
    return as_declared(model, spec, draw_inputs(spec, steps=steps, seed=seed))


def as_declared(model: nn.Module, spec: ModelSpec, arrays: Sequence[Array]) -> Inputs:
    """Return arrays as inputs of a model where it is, in the dtypes that the file declares.

    A program that is recorded with them takes these dtypes.
    """
    found = []
    for array, layer in zip(arrays, spec.input_layers(), strict=True):
        x, whole = torch.from_numpy(array), _WHOLE.get(str(layer.config["dtype"]))
        if whole is not None:
            x = x.to(whole)
        elif not x.is_floating_point():
            x = x.float()
        found.append(x)
    return move_inputs(model, tuple(found))


def input_shapes(spec: ModelSpec, inputs: Inputs) -> tuple[Shape, ...]:
    """Return the declared shape of every input, None where a size is open."""
    declared = (layer.config["shape"] for layer in spec.input_layers())
    return tuple(
        (None,) * x.dim() if shape is None else tuple(shape)
        for shape, x in zip(declared, inputs, strict=True)
    )


def open_axes(spec: ModelSpec, inputs: Inputs) -> Axes:
    """Return the axes of each input whose size is open."""
    return tuple(
        tuple(axis for axis, size in enumerate(shape) if size is None)
        for shape in input_shapes(spec, inputs)
    )


def record_program(
    model: nn.Module, inputs: Inputs, axes: Axes, *, like_all_sizes: bool = False
) -> ExportedProgram:
    """Record a model on example inputs; ``axes`` stay open. Errors are torch's own.

    like_all_sizes: let torch treat a size of 1 like others. It otherwise asks that none becomes 1:
    five steps, for one, are a single one behind a window of five. Few models need the distinction.
    """
    free = tuple(dict.fromkeys(one, torch.export.Dim.DYNAMIC) for one in axes)
    ones: Any = nullcontext()
    if like_all_sizes and hasattr(_CONFIG, _OPTION):
        ones = _CONFIG.patch(_OPTION, True)
    with torch.no_grad(), ones, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about nn.LSTM
        return torch.export.export(model, inputs, dynamic_shapes=free, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's warnings and logs of exports: its errors say what matters."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)
