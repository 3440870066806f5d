"""Errors of a converted model in reduced precision, in plain figures; no verdict.

The same file is computed three times on the same inputs: in float64, in float32, and in the
precision of ``set_precision``. ``verify`` says whether the file is right; this says what the
precision costs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.comparison.outputs import FAILURES
from keras2torch_birnn.errors import UsageError, in_file, printable
from keras2torch_birnn.exporting import is_exported
from keras2torch_birnn.functional.activation_labels import activation_label
from keras2torch_birnn.golden import origin
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates
from keras2torch_birnn.rnn.native.codes import Precision
from keras2torch_birnn.rnn.native.precision import check_precision, reduced_kernel
from keras2torch_birnn.rnn.precision_settings import recurrent_modules, set_precision
from keras2torch_birnn.running import copy_in_float64, flat, run
from keras2torch_birnn.saving.checkpoint import load
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec, TensorRef, leaves
from keras2torch_birnn.verification.given_inputs import InputData, given_inputs

STEPS = 11  # of free axes


@dataclass(frozen=True)
class PrecisionErrors:
    """Errors of one output against float64.

    largest: the largest number in float64. float32, reduced: the largest errors in both
    precisions. relative: the root mean square of the error in the reduced one, divided by that of
    the output.
    """

    name: str
    largest: float
    float32: float
    reduced: float
    relative: float


@dataclass(frozen=True)
class Decisions:
    """Decisions of a classifier: the largest of a softmax's classes, or a sigmoid above 1/2.

    float32, reduced: how many of ``count`` differ from those in float64.
    """

    name: str
    activation: str
    count: int
    float32: int
    reduced: int


@dataclass(frozen=True)
class PrecisionReport:
    """Errors of a model in reduced precision.

    instructions: the instruction set that computed it, and its measured time. inputs: their name.
    layers: recurrent modules, each with the errors of all before it. outputs: of the model.
    """

    precision: str
    instructions: str
    inputs: str
    layers: tuple[PrecisionErrors, ...]
    outputs: tuple[PrecisionErrors, ...]
    decisions: tuple[Decisions, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def measure_precision(
    out: str | os.PathLike[str], precision: Precision, *, inputs: InputData | None = None
) -> PrecisionReport:
    """Compare a converted model in reduced precision, and in float32, with itself in float64.

    inputs: your own data, as for ``verify``; random numbers without it.

    Raises:
        ArgumentValueError: there is no such precision. UsageError: the model cannot run in it, or
            the inputs do not fit.
    """
    reduced = check_precision(precision)
    if reduced is None:
        raise UsageError("precision float32 is what verify compares", "use bfloat16 or int8")
    if is_exported(out):
        with in_file(out):
            raise UsageError("an export computes float32", "name the file of `k2t convert`")
    model = load(out).cpu().eval()
    spec = model_from_json(json.loads(origin(model).spec_text))
    drawn = next(candidates(spec, steps=STEPS, seed=1))
    drawn = drawn if inputs is None else given_inputs(spec, inputs)
    with in_file(out):
        set_precision(other := deepcopy(model), precision)
        exact = _compute(copy_in_float64(model), drawn)
        single = _compute(model, drawn)
        found = _compute(other, drawn)
    names = [f"output {n}" for n in range(len(exact.outputs))] if exact.outputs[1:] else ["output"]
    triples = list(zip(exact.outputs, single.outputs, found.outputs, strict=True))
    return PrecisionReport(
        precision,
        reduced_kernel(reduced).describe(reduced),
        drawn.name,
        tuple(
            _worst(name, list(zip(calls, single.layers[name], found.layers[name], strict=True)))
            for name, calls in exact.layers.items()
        ),
        tuple(_worst(name, [one]) for name, one in zip(names, triples, strict=True)),
        tuple(
            _count(name, activation, *one)
            for name, activation, one in zip(names, _activations(spec), triples, strict=False)
            if activation
        ),
    )


@dataclass(frozen=True)
class _Computed:
    """Outputs of the model, and those of every call of each recurrent module by its name."""

    outputs: Sequence[Array]
    layers: Mapping[str, Sequence[Array]]


def _compute(model: nn.Module, drawn: Drawn) -> _Computed:
    tensors = tuple(torch.from_numpy(np.asarray(x)) for x in drawn.arrays)
    with _observe(model) as layers:
        try:
            outputs = [y.double().numpy() for y in run(model, tensors)]
        except FAILURES as failure:
            if isinstance(failure, UsageError):
                raise
            text = printable(f"{type(failure).__name__}: {failure}".splitlines()[0])
            raise UsageError(f"the model cannot be computed on {drawn.name} ({text})") from None
    return _Computed(outputs, layers)


@contextmanager
def _observe(model: nn.Module) -> Iterator[dict[str, list[Array]]]:
    """Record what every recurrent module returns, its sequence or last output of each call."""
    found: dict[str, list[Array]] = {}

    def note(name: str, _: nn.Module, inputs: Any, output: Any) -> None:
        tensors: tuple[Tensor, ...] = flat(output)
        found.setdefault(name, []).extend(y.detach().double().numpy() for y in tensors)

    with ExitStack() as hooks:
        for name, module in recurrent_modules(model):
            if isinstance(module, nn.Module):
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        yield found


Triple = tuple[Array, Array, Array]  # in float64, float32, reduced precision


def _worst(name: str, calls: Sequence[Triple]) -> PrecisionErrors:
    """Return the largest errors of several outputs of the same name."""
    exact, single, reduced = (
        np.concatenate([one[part].ravel() for one in calls]) for part in range(3)
    )
    error = reduced - exact
    size = float(np.sqrt(np.mean(exact**2))) if exact.size else 0.0
    return PrecisionErrors(
        name,
        float(np.abs(exact).max(initial=0)),
        float(np.abs(single - exact).max(initial=0)),
        float(np.abs(error).max(initial=0)),
        float(np.sqrt(np.mean(error**2))) / size if size else 0.0,
    )


def _count(name: str, activation: str, *triple: Array) -> Decisions:
    exact, single, reduced = (
        y.argmax(axis=-1) if activation == "softmax" else y > 0.5 for y in triple
    )
    return Decisions(
        name,
        activation,
        int(exact.size),
        int((single != exact).sum()),
        int((reduced != exact).sum()),
    )


def _activations(spec: ModelSpec) -> list[str]:
    """Return the activation of each output that decides between classes, "" for others."""
    graph = spec.root.graph
    if graph is None:
        return []
    return [
        _decides(graph.layer(ref.layer), ref.output)
        for ref in leaves(graph.outputs)
        if isinstance(ref, TensorRef)
    ]


def _decides(layer: LayerSpec, output: int) -> str:
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
    if layer.graph is not None:
        refs = [ref for ref in leaves(layer.graph.outputs) if isinstance(ref, TensorRef)]
        return _decides(layer.graph.layer(refs[output].layer), refs[output].output)
    if layer.class_name == "Softmax":
        return "softmax"
    if layer.class_name not in ("Dense", "Activation"):
        return ""
    name = activation_label(layer.config["activation"])
    return name if name in ("softmax", "sigmoid") else ""
