"""Record what a call launches on a GPU as a CUDA graph, and replay it for later calls.

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
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.limits import MAX_CALLS_PER_LAYER, MAX_GRAPHS_PER_LAYER
from keras2torch_birnn.rnn.call import RnnCall
from keras2torch_birnn.rnn.engines.engine import autocast_dtype
from keras2torch_birnn.rnn.gpu.timing import find_fastest

Tensors: TypeAlias = Sequence[Tensor]
# The results of inputs; without gradients and randomness, reading no values.
Compute: TypeAlias = Callable[[Tensors], Tensors]
# Replays a graph, and then calls a function that copies its results; returns what that returns.
Play: TypeAlias = Callable[[Callable[[], Tensors]], Tensors]


class Request(NamedTuple):
    """Inputs of a call that a graph may serve.

    like: tensors as the graph's own. values: for each, one of that shape or of fewer steps, or one
    number for all.
    """

    like: Tensors
    values: Sequence[Tensor | int]


class _Graph(NamedTuple):
    own: Tensors  # take the values of a call before a replay
    play: Play
    results: Tensors  # hold the results after a replay


@dataclass(frozen=True)
class _Layer:
    """The graphs captured for one set of weight addresses; dropped with the first one's memory.

    calls: the last keys, at most ``MAX_CALLS_PER_LAYER``, the latest last. graphs: of at most
    ``MAX_GRAPHS_PER_LAYER`` of them; None where capturing failed, or is not worth it.
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


def run_captured(
    compute: Compute,
    ways: Callable[[], Sequence[Compute]],
    requests: Sequence[Request],
    weights: Tensors,
    what: Hashable,
    cut: Callable[[Tensors], Tensors] = tuple,
) -> Tensors:
    """Compute a call, by replaying a graph from the second call with the same key on.

    compute: runs the call where there is no graph. ways: return all that compute the same; a graph
    is of the fastest, if it is faster than compute. requests: the call as it is, then others that
    a graph of more steps may serve. weights: all that they use. what: everything else that they
    depend on. cut: what is wanted of the results.
    """
    (given, _), *_ = requests
    if given[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return compute(given)
    direct = partial(compute, given)
    with _lock:
        layer, graph = _layer_of(weights), None
        asked = {(what, *_key(one.like)): one for one in requests}
        for key, one in asked.items():
            if key not in layer.graphs and layer.admit(key):
                layer.graphs[key] = _capture(direct, ways(), one, (weights[0].shape, key))
            if key in layer.graphs:
                graph = layer.graphs[key]
                break
        for key in asked:
            layer.note(key)
        if graph is not None:
            return _replay(graph, one.values, cut)
    return direct()


def requests_of(call: RnnCall) -> list[Request]:
    """Return a call as it is, and with any number of steps up to a bucket's."""
    return [Request(call.inputs(), call.inputs()), pad(call)]


def pad(call: RnnCall) -> Request:
    """Return the inputs of a call with as many steps or more, 2^n or 1.5 * 2^n.

    Its lengths say which steps count; the others change no number.
    """
    x, lengths = call.x, call.lengths
    power = 1 << (x.shape[1] - 1).bit_length()
    steps = 3 * power // 4 if x.shape[1] <= 3 * power // 4 else power
    some = x.new_empty(x.shape[0], dtype=torch.int64) if lengths is None else lengths
    like = call._replace(x=x[:, :1].expand(-1, steps, -1), lengths=some)
    return Request(like.inputs(), [x, *call.states(), x.shape[1] if lengths is None else lengths])


def _replay(
    graph: _Graph, values: Sequence[Tensor | int], cut: Callable[[Tensors], Tensors] = tuple
) -> Tensors:
    """Replay a graph for the values of a call; return copies, which the next call leaves alone."""
    with torch.no_grad():
        for to, value in zip(graph.own, values, strict=True):
            if isinstance(value, int):
                to.fill_(value)
            else:
                (to if to.shape == value.shape else to[:, : value.shape[1]]).copy_(value)
        return graph.play(lambda: tuple(map(torch.clone, cut(graph.results))))


def _key(inputs: Tensors) -> tuple[Hashable, ...]:
    """Return everything that a graph depends on, except weights and values."""
    x, shapes = inputs[0], tuple((t.shape, t.dtype) for t in inputs)
    # Calls on different streams run at the same time.
    return shapes, x.device, _stream(x.device), autocast_dtype(x), _precision()


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _precision() -> tuple[Hashable, ...]:
    """Return the settings of torch's matrix products."""
    matmul = torch.backends.cuda.matmul
    # Newer torch refuses the older question where the newer was answered.
    product = getattr(matmul, "fp32_precision", None) or matmul.allow_tf32
    return product, torch.are_deterministic_algorithms_enabled()


def _layer_of(weights: Tensors) -> _Layer:
    """Return the graphs of these weights, empty if their addresses are new."""
    address = weights[0].data_ptr()
    addresses = tuple((w.data_ptr(), w.shape, w.stride(), w.dtype) for w in weights)
    found = _layers.get(address)
    if found is None or found.addresses != addresses:
        # Not the parameter: torch cannot swap one with a weak reference.
        watch = weakref.ref(weights[0].untyped_storage(), lambda _: _layers.pop(address, None))
        found = _layers[address] = _Layer(addresses, watch)
    return found


def _capture(
    direct: Callable[[], Tensors], ways: Sequence[Compute], request: Request, what: Hashable
) -> _Graph | None:
    """Capture the fastest way to compute a request.

    Return None where computing it directly is faster, or, with a warning, where capturing fails.
    """
    # Tensors made in inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        own, device = tuple(map(_like, request.like)), request.like[0].device
        try:
            graphs = [_Graph(own, *capture(partial(way, own), device)) for way in ways]
            plays = [partial(_replay, graph, request.values) for graph in graphs]
            for play, way in zip(plays, ways, strict=True):
                _check(play(), way(own))
            best = find_fastest(what, [*plays, direct], device)
        except Exception as failure:  # a compiler or a driver may raise anything
            warnings.warn(
                f"a recurrent layer runs step by step, slower: it cannot be recorded: {failure}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    return graphs[best] if best < len(graphs) else None


def _check(replayed: Tensors, wanted: Tensors) -> None:
    """Compare what a graph gave with what was computed as in it, from the same values.

    Raises:
        RuntimeError: they differ by more than sums in another order.
    """
    for got, right in zip(replayed, wanted, strict=True):
        size = float(right.abs().nan_to_num(0.0, 0.0, 0.0).max())
        eps = torch.finfo(right.dtype).eps if right.is_floating_point() else 0.0
        allowed = eps**0.5 * max(1.0, size)
        if not torch.allclose(got, right, rtol=0.0, atol=allowed, equal_nan=True):
            raise RuntimeError("its replay gives other numbers")


def _like(tensor: Tensor) -> Tensor:
    """Return zeros of the same shape, to compute with while capturing."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def capture(compute: Callable[[], Tensors], device: torch.device) -> tuple[Play, Tensors]:
    """Capture the GPU work of ``compute``; return its replay, and the tensors of the results.

    Raises:
        RuntimeError: an operation cannot be captured, or memory is short.
    """
    cuda: Any = torch.cuda  # its types are not all there
    graph, place = cuda.CUDAGraph(), _place(device)
    side, turn = place.side, place.turn
    # A pool lasts as long as a graph in it.
    other = next(iter(place.graphs), None)
    options = {} if other is None else {"pool": other.pool()}
    with cuda.device(device):
        here = cuda.current_stream()
        place.first.wait_stream(here)
        with cuda.stream(place.first):
            compute()  # libraries initialize at their first call, outside the graph
        side.wait_stream(place.first)
        side.wait_event(turn)
        # (the outer block leaves the stream where the inner one fails)
        with (
            cuda.stream(side),
            cuda.graph(graph, stream=side, capture_error_mode="thread_local", **options),
        ):
            results = compute()
        here.wait_stream(side)
    place.graphs.add(graph)

    def play(copy_out: Callable[[], Tensors]) -> Tensors:
        stream = cuda.current_stream(device)
        stream.wait_event(turn)
        graph.replay()
        copies = copy_out()
        turn.record(stream)
        return copies

    return play, results


class _Place(NamedTuple):
    """Everything that the graphs of a device share.

    Replays follow each other, on whatever streams, until their results are copied (``turn`` is the
    end of the last one), so one pool of memory serves all. In it is cuBLAS' workspace of ``side``,
    the stream of all captures, on which nothing ran before: torch may free that of any other stream
    later. graphs: those that are alive.
    """

    first: Any
    side: Any
    turn: Any
    graphs: weakref.WeakSet[Any]


@cache
def _place(device: torch.device) -> _Place:
    """Return the device's streams, of a priority with which torch gives out no others."""
    cuda: Any = torch.cuda
    with cuda.device(device):
        first, side = cuda.Stream(priority=-1), cuda.Stream(priority=-1)
        return _Place(first, side, cuda.Event(), weakref.WeakSet())
