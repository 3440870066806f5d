"""The engine "graph": all steps on a GPU as a CUDA graph, those of forward and backward apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from keras2torch_birnn.limits import MAX_RECORDED_BYTES
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, flatten_result, group_states
from keras2torch_birnn.rnn.engines import loop, triton_step
from keras2torch_birnn.rnn.engines.engine import (
    Engine,
    autocast_dtype,
    is_exporting,
    needs_gradient,
    why_not_on_gpu,
)
from keras2torch_birnn.rnn.gpu.graphs import Compute, Tensors, requests_of, run_captured
from keras2torch_birnn.rnn.layer import RnnLayer


def why_not_capture(call: RnnCall, weights: Sequence[Tensor]) -> str:
    """Return why a call cannot be captured; empty if it can."""
    if reason := why_not_on_gpu(call, weights):
        return reason
    return "a graph is being recorded already" if torch.cuda.is_current_stream_capturing() else ""


def _recorded_engine(layer: RnnLayer, call: RnnCall) -> Engine:
    """Return the engine whose work is recorded: the one that would run the call otherwise."""
    within_torch = (layer.engine or engines.REQUESTED) == "torch"
    if within_torch or triton_step.ENGINE.why_not(layer, call):
        return loop.ENGINE
    return triton_step.ENGINE


def _kept_bytes(layer: RnnLayer, call: RnnCall) -> int:
    """Return about how much memory the gradient needs of all steps: their sums and states."""
    width, units = layer.get_weight_hh().shape
    numbers = call.x.shape[:2].numel() * layer.count_directions() * (width + 2 * units)
    return numbers * call.x.element_size()


class CudaGraph(Engine):
    """The steps as a CUDA graph."""

    def why_not(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return why the steps cannot be captured for a call."""
        if engines.gpu_kernels() == "off":
            return f"{engines.GPU_VARIABLE}=off"
        casts, trains = autocast_dtype(call.x) is not None, needs_gradient(layer, call)
        of_loop = (casts or trains) and _recorded_engine(layer, call) is loop.ENGINE
        if layer.drops() or (trains and of_loop):
            return "gradients and dropout cannot be recorded"
        if is_exporting() or torch.compiler.is_compiling():
            return "what is compiled or exported cannot be recorded"
        if reason := why_not_capture(call, layer.present_parameters()):
            return reason
        if trains and _kept_bytes(layer, call) > MAX_RECORDED_BYTES:
            return f"more than {MAX_RECORDED_BYTES >> 20} MB of the steps are kept for the gradient"
        # the kernels cast what they are given, the loop each of its products
        return "autocast is on" if casts and of_loop else ""

    def reason(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return that torch has no kernel, and what is recorded."""
        if _recorded_engine(layer, call) is loop.ENGINE:
            return "the loop, recorded: torch has no kernel for this layer"
        return "Triton steps, recorded: torch has no kernel for this layer"

    def run(self, layer: RnnLayer, call: RnnCall) -> RnnResult:
        """Replay the graph of the call, captured when it comes again."""
        engine = _recorded_engine(layer, call)
        if needs_gradient(layer, call):
            return triton_step.ENGINE.run_recorded(layer, call)
        count, steps = 1 if call.merge else layer.count_directions(), call.x.shape[1]

        def of(run: Callable[[RnnCall], RnnResult]) -> Compute:
            return lambda inputs: flatten_result(run(call.with_inputs(inputs)))

        def compute(asked: RnnCall) -> RnnResult:
            return engine.run(layer, asked)

        def ways() -> Sequence[Compute]:
            found = engine is triton_step.ENGINE
            return [*map(of, triton_step.ENGINE.ways(layer, call) if found else [compute])]

        def cut(results: Tensors) -> Tensors:
            states = results[count:] if call.return_state else ()
            return [*(out[:, :steps] for out in results[:count]), *states]

        absent = tuple(p is None for p in layer.parameters)
        what = (layer.cell, absent, call.merge, type(engine))
        weights = layer.present_parameters()
        found = run_captured(of(compute), ways, requests_of(call), weights, what, cut)
        return tuple(found[:count]), group_states(found[count:], layer.state_count())


ENGINE = CudaGraph()
