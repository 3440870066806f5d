"""The loop on a GPU, recorded once and played from then on: a CUDA graph.

A step of the loop is some twenty small operations, and Python takes longer to ask for one than the
GPU to do it. A recording asks for those of all steps at once. It reads the weights where they lie:
changed values need no new one, other shapes do, and weights that lie elsewhere. B batch, T time.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.limits import MAX_GRAPHS_PER_LAYER
from keras2torch_birnn.rnn.call import Asked, Result
from keras2torch_birnn.rnn.plain import is_plain


class _Recording(NamedTuple):
    asked: Asked  # whose tensors are copied into before it is played
    play: Callable[[], None]
    result: Result  # what then holds the outcome


@dataclass(frozen=True)
class _Layer:
    """What was recorded with weights ``at`` one place; it goes with the first one's memory.

    seen: the calls that came, as far as they may be recorded. recordings: of those that came again;
    None stands for a call that cannot be recorded.
    """

    at: tuple[object, ...]
    watch: weakref.ref[torch.UntypedStorage]
    seen: set[Hashable] = field(default_factory=set)
    recordings: dict[Hashable, _Recording | None] = field(default_factory=dict)


_layers: dict[int, _Layer] = {}
# Copying in, playing and copying out belong together, and recordings are made one at a time.
_lock = Lock()


def cannot_record(asked: Asked, weights: Sequence[Tensor]) -> str:
    """Why a call without gradients cannot be recorded; empty if it can."""
    x, tensors = asked.x, [*_tensors(asked), *weights]
    if not x.is_cuda or any(t.device != x.device or t.is_sparse for t in tensors):
        return "it is for dense tensors on one CUDA device"
    if 0 in x.shape[:2]:
        return "there is nothing to compute"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if torch.cuda.is_current_stream_capturing():
        return "a graph is being recorded already"
    return "" if is_plain(tensors) else "it is for plain tensors outside torch.func"


def run_recorded(
    compute: Callable[[Asked], Result], asked: Asked, weights: Sequence[Tensor], cell: Hashable
) -> Result:
    """What ``compute`` gives for a call, by a recording from the second such call on.

    compute: without gradients and randomness, looking at no values. weights: all that it uses.
    cell: all that it depends on besides.
    """
    key = (cell, *_facts(asked))
    with _lock:
        recording = _recording(_layer_of(weights), key, compute, asked)
        if recording is not None:
            return _played(recording, asked)
    return compute(asked)


def _recording(
    layer: _Layer, key: Hashable, compute: Callable[[Asked], Result], asked: Asked
) -> _Recording | None:
    """That of a call, made if such a call came before; None if it is new or cannot be recorded."""
    if key in layer.seen and key not in layer.recordings:
        layer.recordings[key] = _recorded(compute, asked)
    elif len(layer.seen) < MAX_GRAPHS_PER_LAYER:
        layer.seen.add(key)
    return layer.recordings.get(key)


def _played(recording: _Recording, asked: Asked) -> Result:
    """What it gives for the values of a call; copies, which the next call leaves alone."""
    with torch.no_grad():
        for to, given in zip(_tensors(recording.asked), _tensors(asked), strict=True):
            to.copy_(given)
        recording.play()
        outputs, states = recording.result
        return tuple(o.clone() for o in outputs), tuple(
            tuple(s.clone() for s in state) for state in (states if asked.final else ())
        )


def _tensors(asked: Asked) -> list[Tensor]:
    """What a call is given: x, the states at the start, lengths."""
    lengths = [] if asked.lengths is None else [asked.lengths]
    return [asked.x, *asked.states(), *lengths]


def _facts(asked: Asked) -> tuple[Hashable, ...]:
    """All that a recording depends on but the weights and the values it is given."""
    given = tuple((t.shape, t.dtype) for t in _tensors(asked))
    counted, device = asked.lengths is not None, asked.x.device
    # Calls on different streams run at the same time.
    stream = torch.cuda.current_stream(device).cuda_stream if asked.x.is_cuda else 0
    return given, counted, asked.merge, device, stream, _precision()


def _precision() -> tuple[Hashable, ...]:
    """How torch multiplies matrices now."""
    matmul = torch.backends.cuda.matmul
    # Newer torch refuses the older question where the newer was answered.
    product = getattr(matmul, "fp32_precision", None) or matmul.allow_tf32
    return product, torch.are_deterministic_algorithms_enabled()


def _layer_of(weights: Sequence[Tensor]) -> _Layer:
    """What belongs to these weights; it is dropped with the memory of the first of them."""
    number = weights[0].data_ptr()
    at = tuple((w.data_ptr(), w.shape, w.stride(), w.dtype) for w in weights)
    found = _layers.get(number)
    if found is None or found.at != at:
        # Not the parameter: torch cannot swap one with a weak reference.
        watch = weakref.ref(weights[0].untyped_storage(), lambda _: _layers.pop(number, None))
        found = _layers[number] = _Layer(at, watch)
    return found


def _recorded(compute: Callable[[Asked], Result], asked: Asked) -> _Recording | None:
    """Record a call; None, and a warning, where that fails."""
    # Tensors made in inference mode could not be written to outside of it.
    with torch.inference_mode(False), torch.no_grad():
        x, lengths, start, merge, final = asked
        own = Asked(
            _like(x),
            None if lengths is None else _like(lengths),
            None if start is None else tuple(tuple(map(_like, state)) for state in start),
            merge,
            final,
        )
        try:
            play, result = record(lambda: compute(own), x.device)
        except RuntimeError as error:
            warnings.warn(
                f"a recurrent layer runs step by step, slower: it cannot be recorded: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
    return _Recording(own, play, result)


def _like(tensor: Tensor) -> Tensor:
    """A place for its values, with values that can be computed with."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def record(
    compute: Callable[[], Result], device: torch.device
) -> tuple[Callable[[], None], Result]:
    """Record what ``compute`` asks a GPU to do: how to play it, and what holds the outcome then.

    Raises:
        RuntimeError: it asks for what cannot be recorded, or memory is short.
    """
    cuda: Any = torch.cuda  # its types are not all there
    graph, (side, turn) = cuda.CUDAGraph(), _side(device)
    with cuda.device(device):
        here = cuda.current_stream()
        side.wait_stream(here)
        side.wait_event(turn)
        with cuda.stream(side):
            compute()  # what libraries set up at their first call does not belong in it
            with cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = compute()
        here.wait_stream(side)

    def play() -> None:
        stream = cuda.current_stream(device)
        stream.wait_event(turn)
        graph.replay()
        turn.record(stream)

    return play, result


@cache
def _side(device: torch.device) -> tuple[Any, Any]:
    """The stream on which all is recorded, and the event that a recording was played to its end.

    Recordings play one after the other on whatever streams: cuBLAS has memory to work in for each
    stream, so all of them have that of this one. Hence a priority that others seldom ask for.
    """
    cuda: Any = torch.cuda
    with cuda.device(device):
        return cuda.Stream(priority=-1), cuda.Event()
