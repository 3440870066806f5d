"""Converted models through torch's own exporters, on batches of several sizes.

Every path leaves the batch open, and the number of steps where the converted model takes another.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from specs import fixture
from torch import Tensor, nn

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat, run
from keras2torch_birnn.spec import ModelSpec

Tensors = tuple[Tensor, ...]
ATOL, RTOL = 1e-5, 1e-4


# ---- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A converted model with one batch of its own inputs.

    timed: for each input, whether its axis 1 is time. open_time: whether the model takes other
    numbers of steps. padding: what marks a padded step in the inputs.
    """

    model: nn.Module
    inputs: Tensors
    timed: tuple[bool, ...]
    open_time: bool
    padding: float

    @property
    def steps(self) -> int:
        """The number of steps in the inputs."""
        return next((x.shape[1] for x, t in zip(self.inputs, self.timed, strict=True) if t), 1)


def subject(spec: ModelSpec, model: nn.Module, inputs: Tensors) -> Subject:
    """Find out what is time, and whether the model takes another number of steps."""
    timed = tuple(x.dim() > 2 or (x.dim() == 2 and not x.is_floating_point()) for x in inputs)
    steps = {x.shape[1] for x, t in zip(inputs, timed, strict=True) if t}
    masking = [part for part in spec.root.walk() if part.class_name == "Masking"]
    padding = float(masking[0].config["mask_value"]) if masking else 0.0
    found = Subject(model, inputs, timed, bool(steps), padding)
    if not all(map(_runs, [found] * 2, [(4, found.steps + 5), (2, 1)])):
        found = Subject(model, inputs, timed, False, padding)
    return found


def _runs(one: Subject, size: tuple[int, int]) -> bool:
    try:
        run(one.model, resized(one, size))
    except (ArithmeticError, IndexError, RuntimeError, ValueError, K2TError):
        return False
    return True


def batches(one: Subject) -> Iterator[Tensors]:
    """Return inputs of five sizes; those of the file first."""
    steps = one.steps
    yield one.inputs
    yield resized(one, (5, steps))
    yield resized(one, (1, steps))
    if one.open_time:
        yield resized(one, (4, steps + 5))
        yield resized(one, (2, 1))


def resized(one: Subject, size: tuple[int, int]) -> Tensors:
    """Return inputs of another size with one kind of padding in each row."""
    rows, steps = size
    draw = torch.Generator().manual_seed(rows * 1000 + steps)
    kept = row_masks(rows, steps, draw)
    made = []
    for x, timed in zip(one.inputs, one.timed, strict=True):
        if x.dim() == 0:
            made.append(x)
            continue
        y = x[torch.arange(rows) % len(x)]
        if timed:
            y = y[:, torch.randint(0, x.shape[1], (steps,), generator=draw)].clone()
            y[~kept] = torch.tensor(one.padding).to(y.dtype)
        made.append(y.contiguous())
    return tuple(made)


def row_masks(rows: int, steps: int, draw: torch.Generator) -> Tensor:
    """Return masks (rows, steps): full, right-padded, left-padded, gappy and empty rows in turn."""
    at = torch.arange(steps)
    gaps = torch.rand(steps, generator=draw) < 0.5
    kinds = (at >= 0, at < (steps + 1) // 2, at >= steps // 3 + 1, gaps, at < 0)
    first = 3 if rows == 1 else 0
    return torch.stack([kinds[(first + row) % len(kinds)] for row in range(rows)])


def assert_equal(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Compare outputs."""
    torch.testing.assert_close(
        tuple(found), tuple(wanted), atol=ATOL, rtol=RTOL, equal_nan=True, check_dtype=False
    )


# ---- paths --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """A function of the inputs, and the kinds of all nodes of its graph."""

    run: Callable[..., Any]
    nodes: tuple[str, ...] = ()

    def recurrent(self) -> Counter[str]:
        """Count the nodes that compute recurrent layers."""
        words = ("lstm", "gru", "rnn", "scan", "loop")
        return Counter(kind for kind in self.nodes if any(word in kind.lower() for word in words))


def dimensions(one: Subject) -> tuple[dict[int, Any], ...]:
    """Return the open axes of each input."""
    open_axis = torch.export.Dim.DYNAMIC
    shapes = []
    for x, timed in zip(one.inputs, one.timed, strict=True):
        axes: dict[int, Any] = {} if x.dim() == 0 else {0: open_axis}
        if timed and one.open_time:
            axes[1] = open_axis
        shapes.append(axes)
    return tuple(shapes)


def by_export(one: Subject, *, strict: bool = False) -> Exported:
    """Export by torch.export."""
    program = torch.export.export(
        one.model, one.inputs, dynamic_shapes=dimensions(one), strict=strict
    )
    torch._dynamo.reset()
    # Not the weights, which are named after the layers.
    names = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    return Exported(program.module(), tuple(names))


def by_strict_export(one: Subject) -> Exported:
    """Export by torch.export with dynamo."""
    return by_export(one, strict=True)


def by_onnx(one: Subject) -> Exported:
    """Export by torch.onnx, run in ONNX Runtime."""
    data = onnx_bytes(one)
    return _in_onnx_runtime(data)


def onnx_bytes(one: Subject) -> bytes:
    """Return the ONNX that torch.onnx makes."""
    file = io.BytesIO()
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about this exporter
        torch.onnx.export(
            one.model,
            one.inputs,
            file,
            dynamo=True,
            dynamic_shapes=dimensions(one),
        )
    return file.getvalue()


def _in_onnx_runtime(data: bytes) -> Exported:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensors:
        # An exporter drops inputs that nothing reads, and keeps the order of the others.
        given = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    kinds = tuple(_onnx_kinds(onnx.load_from_string(data).graph))
    return Exported(call, kinds)


def _onnx_kinds(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _onnx_kinds(attribute.g)


def by_compile(one: Subject) -> Exported:
    """Compile one graph for all sizes."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        return Exported(torch.compile(one.model, fullgraph=True, dynamic=True, backend="eager"))


PATHS: Mapping[str, Callable[[Subject], Exported]] = {
    "export": by_export,
    "strict": by_strict_export,
    "onnx": by_onnx,
    "compile": by_compile,
}


def export(path: str, one: Subject) -> Exported:
    """Export by a path."""
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        return PATHS[path](one)


def check(path: str, one: Subject) -> Exported:
    """Export by a path, and compare at all sizes.

    Raises:
        AssertionError: a number differs.
    """
    exported = export(path, one)
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        compare(exported, one)
    return exported


def compare(exported: Exported, one: Subject) -> None:
    """Compare at all sizes.

    Raises:
        AssertionError: a number differs, or a batch cannot be computed.
    """
    for number, given in enumerate(batches(one)):
        wanted = run(one.model, given)
        try:
            assert_equal(flat(exported.run(*given)), wanted)
        except Exception as error:
            raise AssertionError(f"batch {number}: {type(error).__name__}: {error}") from error


# ---- fixtures -----------------------------------------------------------------------------------


def fixture_subject(name: str) -> Subject:
    """Return the subject of a fixture."""
    case = fixture(name)
    model = build(case.spec)
    return subject(case.spec, model, tuple(map(torch.from_numpy, case.inputs[0])))
