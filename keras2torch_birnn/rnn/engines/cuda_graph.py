"""The engine "graph": all steps on a GPU, captured once as a CUDA graph and replayed.

A step launches two to four kernels ("triton") or about 20 ("loop"), and launching takes longer than
computing; a graph launches those of all steps at once. It reads the weights at their addresses:
changed values need no new graph, other shapes and other addresses do. B batch, T time.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.limits import MAX_CALLS_PER_LAYER, MAX_GRAPHS_PER_LAYER
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines import loop, triton_step
from keras2torch_birnn.rnn.engines.engine import (
    Engine,
    autocast_dtype,
    is_exporting,
    needs_gradient,
    why_not_on_gpu,
)
from keras2torch_birnn.rnn.gpu.timing import find_fastest
from keras2torch_birnn.rnn.layer import RnnLayer

# What a replay does, and then a function that copies its outcome; returns that.
Play = Callable[[Callable[[], RnnResult]], RnnResult]
Compute = Callable[[RnnCall], RnnResult]


class _Graph(NamedTuple):
    call: RnnCall  # its tensors take the values of a call before a replay
    play: Play
    result: RnnResult  # its tensors hold the outcome after a replay


@dataclass(frozen=True)
class _Layer:
    """The graphs captured for one set of weight addresses; dropped with the first one's memory.

    calls: the last keys, at most ``MAX_CALLS_PER_LAYER``, the latest last. graphs: of at most
    ``MAX_GRAPHS_PER_LAYER`` of them; None where capturing failed.
    """

    addresses: tuple[object, ...]
    watch: weakref.ref[torch.UntypedStorage]
    calls: dict[Hashable, None] = field(default_factory=dict)
    graphs: dict[Hashable, _Graph | None] = field(default_factory=dict)

    def admit(self, key: Hashable) -> bool:
        """Return whether a key came again and may have a graph, making room for it.

        The graph goes that was not used for the longest time, if not since the key came last: more
        shapes in turn than there is room for do not drive out each other.
        """
        if key not in self.calls:
            return False
        if len(self.graphs) < MAX_GRAPHS_PER_LAYER:
            return True
        oldest = next(one for one in self.calls if one == key or one in self.graphs)
        if oldest != key:
            del self.graphs[oldest]
        return oldest != key

    def note(self, key: Hashable) -> None:
        """Put a key last. The first goes when there are too many, with its graph."""
        self.calls.pop(key, None)
        self.calls[key] = None
        if len(self.calls) > MAX_CALLS_PER_LAYER:
            first = next(iter(self.calls))
            del self.calls[first]
            self.graphs.pop(first, None)


_layers: dict[int, _Layer] = {}
# Copying in, replaying and copying out belong together; graphs are captured one at a time.
_lock = Lock()


def why_not_capture(call: RnnCall, weights: Sequence[Tensor]) -> str:
    """Return why a call without gradients cannot be captured; empty if it can."""
    if reason := why_not_on_gpu(call, weights):
        return reason
    return "a graph is being recorded already" if torch.cuda.is_current_stream_capturing() else ""


def run_captured(
    compute: Compute,
    ways: Callable[[], Sequence[Compute]],
    call: RnnCall,
    weights: Sequence[Tensor],
    cell: Hashable,
) -> RnnResult:
    """Compute a call, by replaying a graph from the second call with the same key on.

    compute: without gradients and randomness, reading no values. ways: return all that compute the
    same; a graph is of the fastest. weights: all that they use. cell: everything else they depend
    on.
    """
    with _lock:
        layer, graph = _layer_of(weights), None
        # The call as it is, else with any number of steps up to a bucket's.
        asked = {(cell, *_key(one)): one for one in (call, pad(call))}
        for key, one in asked.items():
            if key not in layer.graphs and layer.admit(key):
                layer.graphs[key] = _capture(ways(), one, (weights[0].shape, key))
            if key in layer.graphs:
                graph = layer.graphs[key]
                break
        for key in asked:
            layer.note(key)
        if graph is not None:
            return _replay(graph, call)
    return compute(call)


def pad(call: RnnCall) -> RnnCall:
    """Return a call of as many steps or more, 2^n or 1.5 * 2^n, without its values.

    Its lengths say which steps count; the others change no number.
    """
    x, lengths = call.x, call.lengths
    power = 1 << (x.shape[1] - 1).bit_length()
    steps = 3 * power // 4 if x.shape[1] <= 3 * power // 4 else power
    lengths = x.new_empty(x.shape[0], dtype=torch.int64) if lengths is None else lengths
    return call._replace(x=x[:, :1].expand(-1, steps, -1), lengths=lengths)


def _replay(graph: _Graph, call: RnnCall) -> RnnResult:
    """Replay a graph for the values of a call; return copies, which the next call leaves alone."""
    own, steps = graph.call, call.x.shape[1]

    def copy_out() -> RnnResult:
        outputs, states = graph.result
        return tuple(o[:, :steps].clone() for o in outputs), tuple(
            tuple(s.clone() for s in state) for state in (states if call.return_state else ())
        )

    with torch.no_grad():
        own.x[:, :steps].copy_(call.x)
        for to, given in zip(own.states(), call.states(), strict=True):
            to.copy_(given)
        if own.lengths is not None and call.lengths is not None:
            own.lengths.copy_(call.lengths)
        elif own.lengths is not None:
            own.lengths.fill_(steps)
        return graph.play(copy_out)


def _inputs(call: RnnCall) -> list[Tensor]:
    """Return x, the initial states and the lengths."""
    lengths = [] if call.lengths is None else [call.lengths]
    return [call.x, *call.states(), *lengths]


def _key(call: RnnCall) -> tuple[Hashable, ...]:
    """Return everything that a graph depends on, except weights and values."""
    given = tuple((t.shape, t.dtype) for t in _inputs(call))
    masked, device = call.lengths is not None, call.x.device
    # Calls on different streams run at the same time.
    stream = torch.cuda.current_stream(device).cuda_stream if call.x.is_cuda else 0
    return given, masked, call.merge, device, stream, autocast_dtype(call.x), _precision()


def _precision() -> tuple[Hashable, ...]:
    """Return the settings of torch's matrix products."""
    matmul = torch.backends.cuda.matmul
    # Newer torch refuses the older question where the newer was answered.
    product = getattr(matmul, "fp32_precision", None) or matmul.allow_tf32
    return product, torch.are_deterministic_algorithms_enabled()


def _layer_of(weights: Sequence[Tensor]) -> _Layer:
    """Return the graphs of these weights, empty if their addresses are new."""
    address = weights[0].data_ptr()
    addresses = tuple((w.data_ptr(), w.shape, w.stride(), w.dtype) for w in weights)
    found = _layers.get(address)
    if found is None or found.addresses != addresses:
        # Not the parameter: torch cannot swap one with a weak reference.
        watch = weakref.ref(weights[0].untyped_storage(), lambda _: _layers.pop(address, None))
        found = _layers[address] = _Layer(addresses, watch)
    return found


def _capture(ways: Sequence[Compute], call: RnnCall, key: Hashable) -> _Graph | None:
    """Capture the fastest way to compute a call; return None, and warn, where that fails."""
    # Tensors made in inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        lengths, initial = call.lengths, call.initial_state
        own = call._replace(
            x=_like(call.x),
            lengths=None if lengths is None else _like(lengths),
            initial_state=initial and tuple(tuple(map(_like, state)) for state in initial),
        )
        try:
            device = call.x.device
            made = [capture(partial(compute, own), device) for compute in ways]
            replays = [partial(play, lambda: ((), ())) for play, _ in made]
            play, result = made[find_fastest(key, replays, device)]
        except RuntimeError as error:
            warnings.warn(
                f"a recurrent layer runs step by step, slower: it cannot be recorded: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    return _Graph(own, play, result)


def _like(tensor: Tensor) -> Tensor:
    """Return zeros of the same shape, to compute with while capturing."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def capture(compute: Callable[[], RnnResult], device: torch.device) -> tuple[Play, RnnResult]:
    """Capture the GPU work of ``compute``; return its replay, and the tensors of the outcome.

    Raises:
        RuntimeError: an operation cannot be captured, or memory is short.
    """
    cuda: Any = torch.cuda  # its types are not all there
    graph, (side, turn, pool) = cuda.CUDAGraph(), _side(device)
    with cuda.device(device):
        here = cuda.current_stream()
        side.wait_stream(here)
        side.wait_event(turn)
        with cuda.stream(side):
            compute()  # libraries initialize at their first call, outside the graph
            options = {"pool": pool, "capture_error_mode": "thread_local"}
            with cuda.graph(graph, stream=side, **options):
                result = compute()
        here.wait_stream(side)

    def play(copy_out: Callable[[], RnnResult]) -> RnnResult:
        stream = cuda.current_stream(device)
        stream.wait_event(turn)
        graph.replay()
        copies = copy_out()
        turn.record(stream)
        return copies

    return play, result


@cache
def _side(device: torch.device) -> tuple[Any, Any, Any]:
    """Return the stream for capturing, the event of the end of the last replay, and the memory.

    Replays follow each other, on whatever streams, until their outcome is copied: cuBLAS has a
    workspace for each stream, so all graphs share the one of this stream, and one pool of memory.
    The unusual priority keeps torch's stream pool from handing out this stream.
    """
    cuda: Any = torch.cuda
    with cuda.device(device):
        return cuda.Stream(priority=-1), cuda.Event(), cuda.graph_pool_handle()


def _recorded_engine(layer: RnnLayer, call: RnnCall) -> Engine:
    """Return the engine whose work is recorded: the one that would run the call otherwise."""
    within_torch = (layer.engine or engines.REQUESTED) == "torch"
    if within_torch or triton_step.ENGINE.why_not(layer, call):
        return loop.ENGINE
    return triton_step.ENGINE


class CudaGraph(Engine):
    """The steps as a CUDA graph."""

    def why_not(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return why the steps cannot be captured for a call."""
        if engines.gpu_kernels() == "off":
            return f"{engines.GPU_VARIABLE}=off"
        if layer.drops() or needs_gradient(layer, call):
            return "gradients and dropout cannot be recorded"
        if is_exporting() or torch.compiler.is_compiling():
            return "what is compiled or exported cannot be recorded"
        if reason := why_not_capture(call, layer.present_parameters()):
            return reason
        # the kernels cast what they are given, the loop each of its products
        casts = autocast_dtype(call.x) is not None
        return "autocast is on" if casts and _recorded_engine(layer, call) is loop.ENGINE else ""

    def reason(self, layer: RnnLayer, call: RnnCall) -> str:
        """Return that torch has no kernel, and what is recorded."""
        if _recorded_engine(layer, call) is loop.ENGINE:
            return "the loop, recorded: torch has no kernel for this layer"
        return "Triton steps, recorded: torch has no kernel for this layer"

    def run(self, layer: RnnLayer, call: RnnCall) -> RnnResult:
        """Replay the graph of the call, captured when it comes again."""
        absent = tuple(p is None for p in layer.parameters)
        engine, weights = _recorded_engine(layer, call), layer.present_parameters()
        compute = partial(engine.run, layer)

        def ways() -> Sequence[Compute]:
            found = engine is triton_step.ENGINE
            return triton_step.ENGINE.ways(layer, call) if found else [compute]

        return run_captured(compute, ways, call, weights, (layer.cell, absent, type(engine)))


ENGINE = CudaGraph()
