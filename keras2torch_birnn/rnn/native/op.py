"""The native kernel as a torch operator, ``k2t::rnn``: what ``torch.compile`` sees as one node.

Float32 on CPU, no gradient. B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import Asked, State
from keras2torch_birnn.rnn.native.library import (
    KINDS,
    MERGES,
    RUN,
    NativeCell,
    instruction_set,
    library,
    missing,
)
from keras2torch_birnn.rnn.native.packing import Parameters, freshly_packed, packed_before, sizes
from keras2torch_birnn.rnn.plain import is_plain

# Torch gives it no types.
is_tracing: Callable[[], bool] = cast(Any, torch.jit).is_tracing


# ---- threads ------------------------------------------------------------------------------------


_PROCESS = os.getpid()


@cache
def use_torch_threads() -> bool:
    """Run the kernel on the OpenMP threads of torch from now on, if there are such.

    They are whatever runtime torch itself is linked to. Elsewhere the kernel has its own.
    """
    if os.getpid() != _PROCESS:
        return False  # after a fork() torch's runtime waits for threads that are gone
    try:
        torch_itself = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel = ctypes.cast(torch_itself.GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        return False
    library().k2t_use_threads_of(parallel)
    return True


# ---- the operator --------------------------------------------------------------------------------


def compute(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    lengths: Tensor | None,
    start: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
    kept: Sequence[Tensor] = (),
    *,
    final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Outputs (B, T, D * H) in the order of time and final states (D * S, B, H).

    x: (B, T, F). parameters: four for each direction. lengths: (B,), the steps of each row that
    count; outputs past them are zero. start: S states (B, H) for each direction, or none.
    cell: kind, activation and recurrent_activation; options: a parameter for each of the two.
    merge: of ``MERGES``; not 0: both directions give one output (B, T, H).
    kept: for each direction (B, T, parts, W), is filled with what its gradient needs; or none.
    final: whether final states are wanted, else there are None.
    """
    kind, act, gate = cell
    directions, states = len(parameters) // 4, 2 if kind == KINDS["LSTM"] else 1
    batch, time, given = x.shape
    features, units = sizes(parameters)
    if given != features:
        raise ValueError(f"an input of {features} features is expected, found {given}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths [{batch}] are expected, found {list(lengths.shape)}")
    for s in start:
        if s.shape != (batch, units):
            raise ValueError(f"a state {[batch, units]} is expected, found {list(s.shape)}")
    width = units if merge else directions * units
    out = x.new_empty((batch, time, width))
    ends = x.new_empty((directions * states, batch, units)) if final else None
    if batch == 0:
        return out, ends
    if x.stride(2) != 1:
        x = x.contiguous()
    if lengths is not None:
        lengths = counts(lengths)
    isa = instruction_set()
    # Weights in training change with every step: none is kept for the next.
    packed = (freshly_packed if kept else packed_before)(kind, parameters, isa)
    begin = [s.contiguous() for s in start]
    call = (
        *(act, gate, *options, merge, batch, time, torch.get_num_threads()),
        *(x.data_ptr(), *x.stride()[:2]),
        0 if lengths is None else lengths.data_ptr(),
        *_starts(begin, states),
        out.data_ptr(),
        0 if ends is None else ends.data_ptr(),
        *([k.data_ptr() for k in kept] + _NONE)[:2],
    )
    use_torch_threads()
    code = library().k2t_run(isa, RUN.pack(packed.at, *call))
    if code == STALE:
        # Another thread may change them all the time: what was packed now is as good as any.
        packed = packed_before(kind, parameters, isa, stale=True)
        code = library().k2t_run(isa, RUN.pack(packed.unchecked, *call))
    done(code)
    return out, ends


_NONE = [0, 0]


def _starts(states: Sequence[Tensor], each: int) -> list[int]:
    """Where the states lie: h of both directions, then c; 0 for none."""
    if not states:
        return _NONE + _NONE
    at = [s.data_ptr() for s in states]
    return (at[::each] + _NONE)[:2] + ((at[1::2] if each == 2 else []) + _NONE)[:2]


STALE = 3  # k2t_run's answer where the weights are others than those that were packed


def done(code: int) -> None:
    """Raise what the kernel's return code means, if it is not 0."""
    if code == 1:
        raise MemoryError("no memory for the native kernel's scratch")
    if code == 2:
        raise ValueError("a length is below 0 or above the number of steps")


def counts(lengths: Tensor) -> Tensor:
    """Lengths as the kernel reads them: int64, side by side."""
    ready = lengths.dtype is torch.int64 and lengths.is_contiguous()
    return lengths if ready else lengths.to(torch.int64).contiguous()


def lengths_of_padded(mask: Tensor) -> Tensor | None:
    """The valid steps of each row of a mask (B, T) where they all stand in front; None elsewhere.

    Asked on the CPU only, where looking at the values costs no waiting, and not while a graph is
    traced, which must not depend on them.
    """
    if torch.compiler.is_compiling() or is_tracing() or not (mask.is_cpu and is_plain((mask,))):
        return None
    if missing():
        return mask.sum(dim=1) if bool((mask[:, 1:] <= mask[:, :-1]).all()) else None
    lengths = torch.empty(mask.shape[0], dtype=torch.int64, device="cpu")
    in_front = library().k2t_lengths(
        mask.data_ptr(), *mask.shape, *mask.stride(), lengths.data_ptr()
    )
    return lengths if in_front else None


@torch.library.custom_op("k2t::rnn", mutates_args=(), device_types="cpu")
def _operator(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    lengths: Tensor | None,
    start: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
) -> tuple[Tensor, Tensor]:
    # In a compiled graph no one asked is_plain.
    weights = [None if p is None else p.resolve_neg() for p in parameters]
    begin = [s.resolve_neg() for s in start]
    out, ends = compute(x.resolve_neg(), weights, lengths, begin, cell, options, merge)
    return out, cast(Tensor, ends)


@_operator.register_fake
def _(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    lengths: Tensor | None,
    start: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
) -> tuple[Tensor, Tensor]:
    directions, states = len(parameters) // 4, 2 if cell[0] == KINDS["LSTM"] else 1
    hh = parameters[1]
    units = 0 if hh is None else hh.shape[1]
    return (
        x.new_empty(x.shape[0], x.shape[1], units if merge else directions * units),
        x.new_empty(directions * states, x.shape[0], units),
    )


def run_native(
    cell: NativeCell, parameters: Sequence[Parameters], asked: Asked
) -> tuple[tuple[Tensor, ...], tuple[State, ...]]:
    """Outputs (B, T, H) in the order of time and final states, one per direction.

    Merged: one output, (B, T, 2 H) if the merge is "concat". No states if none are wanted.
    """
    x, lengths, _, merge, final = asked
    given = (
        x,
        list(chain.from_iterable(parameters)),
        lengths,
        asked.states(),
        cell.numbers,
        cell.parameters,
        0 if merge is None else MERGES[merge],
    )
    ends: Tensor | None
    # Without the dispatcher, whose time a short sequence would feel.
    if torch.compiler.is_compiling():
        out, ends = _operator(*given)
    else:
        out, ends = compute(*given, final=final)
    outputs = out.chunk(len(parameters), dim=2) if merge is None else (out,)
    return outputs, () if ends is None else by_direction(ends, cell)


def by_direction(final: Tensor, cell: NativeCell) -> tuple[State, ...]:
    """Final states (D * S, B, H) -> those of each direction."""
    states, each = final.unbind(0), cell.states
    return tuple(states[i : i + each] for i in range(0, len(states), each))


_DTYPE, _IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")
_FLOAT32 = {torch.float32}


def can_run(tensors: Sequence[Tensor]) -> bool:
    """Tell whether the kernel computes with these: float32 on CPU, dense and plain."""
    if torch.compiler.is_compiling():
        return all(
            tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided
            for tensor in tensors
        )
    # The same in the least time; what is not dense is not plain.
    alike = _FLOAT32.issuperset(map(_DTYPE, tensors)) and all(map(_IS_CPU, tensors))
    return alike and is_plain(tensors)
