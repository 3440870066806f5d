"""The engine "triton": on a GPU, two launches a step, or one, or one for all steps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial

import torch

from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines import GPU_VARIABLE, gpu_kernels
from keras2torch_birnn.rnn.engines.engine import (
    Engine,
    autocast_dtype,
    is_exporting,
    needs_gradient,
    why_not_on_gpu,
)
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.gpu.self_check import (
    TOLERANCES,
    describe,
    distrust,
    fewer_launches_pay,
    is_checked,
    kind_of,
    why_not_trusted,
)
from keras2torch_birnn.rnn.gpu.step_cell import Form, StepCell, to_step_cell
from keras2torch_birnn.rnn.gpu.step_gradient import Course, KernelFailedError, run_call
from keras2torch_birnn.rnn.layer import RnnLayer

# A program computes whole rows of softmax; beyond this, registers do not hold them.
WIDEST_WHOLE_ROWS = 2048
# Of wider layers one program would read too many weights at every step.
WIDEST_PERSISTENT = 256
# Kernels that multiply find their place among the weights by numbers of 32 bits.
COUNTED_BY_32_BITS = 2**31
# Older versions have no products of fewer than 16 rows.
FEWER_LAUNCHES_SINCE = (3, 5)
LAUNCHES: Mapping[Form, str] = {
    "steps": "steps of two launches",
    "fused": "steps of one launch",
    "persistent": "one launch",
}


@cache
def find_triton() -> tuple[str, str]:
    """Return the version of Triton, or an empty text and why there is none."""
    try:
        import triton

        return str(triton.__version__), ""
    except Exception as failure:  # a broken one, or another folder of this name, may raise anything
        missing = isinstance(failure, ModuleNotFoundError) and failure.name == "triton"
        return "", "Triton is not installed" if missing else f"no Triton: {describe(failure)}"


def triton_version() -> str:
    """Return the version of Triton; empty if there is none that can be used."""
    return find_triton()[0]


class TritonStep(Engine):
    """The steps of both directions at once, by Triton kernels.

    Kernels that multiply, too, for one step or for all, are taken where they are the faster ones:
    in training, and for a graph.
    """

    def why_not(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return why the kernels cannot run a call. The first call of a kind checks them."""
        if gpu_kernels() == "off":
            return f"{GPU_VARIABLE}=off"
        if layer.drops():
            return "the Triton kernels have no dropout"
        if is_exporting() or torch.compiler.is_compiling():
            return "what is compiled or exported must be torch's"
        parameters = layer.present_parameters()
        if reason := why_not_on_gpu(call, parameters):
            return reason
        shapes = {w.hh.shape for w in layer.get_weights()}
        cast = autocast_dtype(call.x)
        dtypes = {cast or t.dtype for t in (call.x, *call.states(), *parameters)}
        if len(shapes) > 1 or len(dtypes) > 1 or not dtypes.issubset(TOLERANCES):
            return "the Triton kernels compute directions alike, of one float type"
        cell = to_step_cell(layer.cell)
        if cell is None:
            return "the Triton kernels lack an activation of this layer"
        if not triton_version():
            return find_triton()[1]
        if cell.needs_whole_rows and layer.get_weight_hh().shape[1] > WIDEST_WHOLE_ROWS:
            return f"the Triton kernels have softmax of at most {WIDEST_WHOLE_ROWS} units"
        return _why_not_trusted(cell, layer, call)

    def reason(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return that torch has no kernel."""
        cell, _ = _choose(layer, call)
        return f"{LAUNCHES[cell.form]}: torch has no kernel for this layer"

    def run(self, layer: RnnLayer, call: RnnCall) -> RnnResult:
        """Run the kernels, or, where they fail although they were checked, the loop.

        Raises:
            TypeError: they lack an activation.
        """
        cell, _ = _choose(layer, call)
        return _run(cell, layer, call)

    def run_recorded(self, layer: RnnLayer, call: RnnCall) -> RnnResult:
        """Run a call with gradients, whose steps a CUDA graph may replay."""
        cell, cells = _choose(layer, call)
        return _run(cell, layer, call, cells)

    def ways(self, layer: RnnLayer, call: RnnCall) -> list[Callable[[RnnCall], RnnResult]]:
        """Return all that can run a call and is right; a graph is made of the fastest."""
        return [partial(_run, cell, layer) for cell in _find_cells(layer, call)]


def _why_not_trusted(cell: StepCell, layer: RnnLayer, call: RnnCall) -> str:
    if gpu_kernels() == "trusted":
        return ""
    kind = kind_of(cell, layer, call, autocast_dtype(call.x))
    if not is_checked(kind) and torch.cuda.is_current_stream_capturing():
        return "a graph is being recorded, and the kernels were not checked before"
    return why_not_trusted(layer.cell, kind)


def _find_cell(layer: RnnLayer) -> StepCell:
    cell = to_step_cell(layer.cell)
    if cell is None:
        raise TypeError("a layer that the Triton kernels cannot compute")
    return cell


def _find_cells(layer: RnnLayer, call: RnnCall) -> list[StepCell]:
    """Return a layer's cell step by step and, if that is right, in fewer launches."""
    cell = _find_cell(layer)
    narrow = layer.get_weight_hh().shape[1] <= WIDEST_PERSISTENT
    known = tuple(map(int, re.findall(r"\d+", triton_version())[:2])) >= FEWER_LAUNCHES_SINCE
    fewer = cell._replace(form="persistent" if narrow else "fused")
    # Not fused: softmax, of which a program would multiply for all units of a row, and weights of
    # more numbers than 32 bits count.
    fits = layer.get_weight_hh().numel() < COUNTED_BY_32_BITS and not cell.needs_whole_rows
    right = known and (narrow or fits)
    return [cell, fewer] if right and not _why_not_trusted(fewer, layer, call) else [cell]


def _choose(layer: RnnLayer, call: RnnCall) -> tuple[StepCell, list[StepCell]]:
    """Return the cell that runs a call launch by launch, and all that a graph may be made of."""
    if not needs_gradient(layer, call):  # a graph will choose
        return _find_cell(layer), []
    cells = _find_cells(layer, call)
    kind = kind_of(cells[-1], layer, call, autocast_dtype(call.x))
    units = layer.get_weight_hh().shape[1]
    pays = len(cells) > 1 and fewer_launches_pay(layer.cell, kind, call.x.shape[0], units)
    return cells[-1] if pays else cells[0], cells


def _run(
    cell: StepCell, layer: RnnLayer, call: RnnCall, recorded: Sequence[StepCell] = ()
) -> RnnResult:
    dtype = autocast_dtype(call.x)
    fail = partial(distrust, kind_of(cell, layer, call, dtype))
    try:
        with torch.autocast(call.x.device.type, enabled=False) if dtype else nullcontext():
            return run_call(cell, layer, call, Course(dtype, recorded, fail))
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # a compiler or a driver may raise anything
        known = isinstance(failure, KernelFailedError)
        if needs_gradient(layer, call) and not known:
            raise  # from a hook of autograd
        cause = failure.__cause__ if known else failure
        fail(cause if isinstance(cause, Exception) else failure)
        return run_directions(layer, call)


ENGINE = TritonStep()
