"""The native kernel as a torch operator, ``k2t::rnn``: what ``torch.compile`` sees as one node.

Float32 on CPU, no gradient. B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native.library import (
    KINDS,
    MERGES,
    Call,
    NativeCell,
    Shape,
    instruction_set,
    library,
    missing,
)
from keras2torch_birnn.rnn.native.packing import Parameters, floats, freshly_packed, packed_before

State = tuple[Tensor, ...]

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
) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D * H) in the order of time and final states (D * S, B, H).

    x: (B, T, F). parameters: four for each direction. lengths: (B,), the steps of each row that
    count; outputs past them are zero. start: S states (B, H) for each direction, or none.
    cell: kind, activation and recurrent_activation; options: a parameter for each of the two.
    merge: of ``MERGES``; not 0: both directions give one output (B, T, H).
    kept: for each direction (B, T, parts, W), is filled with what its gradient needs; or none.
    """
    kind, act, gate = cell
    directions, states = len(parameters) // 4, 2 if kind == KINDS["LSTM"] else 1
    batch, time, features = x.shape
    hh = parameters[1]
    units = 0 if hh is None else hh.shape[1]
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths [{batch}] are expected, found {list(lengths.shape)}")
    for s in start:
        if s.shape != (batch, units):
            raise ValueError(f"a state {[batch, units]} is expected, found {list(s.shape)}")
    width = units if merge else directions * units
    out = floats(batch, time, width)
    final = floats(directions * states, batch, units)
    if batch == 0:
        return out, final
    if x.stride(2) != 1:
        x = x.contiguous()
    if lengths is not None:
        lengths = counts(lengths)
    isa = instruction_set()
    shape = Shape(kind, features, units)
    # Weights in training change with every step: none is kept for the next.
    packed = (freshly_packed if kept else packed_before)(shape, parameters, isa)
    begin = [s.contiguous() for s in start]
    begin_at = [s.data_ptr() for s in begin]
    outputs_at, states_at = out.data_ptr(), final.data_ptr()
    state_bytes = 4 * batch * units
    # By position, in the order of the fields: a short call would feel a name each.
    call = Call(
        shape,
        *(act, gate, *options),
        *(directions, merge, batch, time, torch.get_num_threads()),
        *(x.data_ptr(), x.stride(0), x.stride(1)),
        None if lengths is None else lengths.data_ptr(),
        packed.addresses,
        tuple(begin_at[::states]),
        tuple(begin_at[1::2]) if states == 2 else (),
        (outputs_at, outputs_at + 4 * units),
        *(time * width, width),
        (states_at, states_at + states * state_bytes),
        (states_at + state_bytes, states_at + (states + 1) * state_bytes),
        tuple(k.data_ptr() for k in kept),
    )
    use_torch_threads()
    done(library().k2t_run(isa, ctypes.byref(call)))
    return out, final


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
    traced = torch.compiler.is_compiling() or is_tracing()
    if not mask.is_cpu or traced or not _have_memory((mask,)):
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
    return compute(x, parameters, lengths, start, cell, options, merge)


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
    cell: NativeCell,
    parameters: Sequence[Parameters],
    x: Tensor,
    lengths: Tensor | None,
    start: tuple[State, ...] | None,
    merge: str | None = None,
) -> tuple[tuple[Tensor, ...], tuple[State, ...]]:
    """Outputs (B, T, H) in the order of time and final states, one per direction.

    merge: a key of ``MERGES``: one output, (B, T, 2 H) if it is "concat".
    """
    # A plain call saves the dispatcher's time, which a short sequence would feel.
    plain = not torch.compiler.is_compiling() and type(x) is Tensor
    out, final = (compute if plain else _operator)(
        x,
        [p for direction in parameters for p in direction],
        lengths,
        [s for state in start for s in state] if start else [],
        cell.numbers,
        cell.parameters,
        0 if merge is None else MERGES[merge],
    )
    outputs = out.chunk(len(parameters), dim=2) if merge is None else (out,)
    return outputs, by_direction(final, cell)


def by_direction(final: Tensor, cell: NativeCell) -> tuple[State, ...]:
    """Final states (D * S, B, H) -> those of each direction."""
    states, each = final.unbind(0), cell.states
    return tuple(states[i : i + each] for i in range(0, len(states), each))


def can_run(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel computes with these (x first): float32 on CPU, dense, with memory."""
    if tensors[0].shape[1] == 0:
        return False
    for tensor in tensors:
        if not (tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided):
            return False
    return torch.compiler.is_compiling() or _have_memory(tensors)


def _have_memory(tensors: Sequence[Tensor]) -> bool:
    """Not so inside torch.func's transforms, which the operator knows nothing of."""
    try:
        for tensor in tensors:
            tensor.data_ptr()
    except RuntimeError:
        return False
    return True
