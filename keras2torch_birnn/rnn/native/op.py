"""The native kernel as a torch operator, ``k2t::rnn``: what ``torch.compile`` sees as one node.

Float32 on CPU, no gradient. B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
)

State = tuple[Tensor, ...]
# One direction's parameters: weight_ih (G*H, F), weight_hh (G*H, H), bias_ih, bias_hh (G*H,).
Parameters = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


# ---- packed weights, kept as long as their parameters hold the same values -----------------------


@dataclass(frozen=True)
class _Packed:
    """Packed weights, the parameters they belong to, and a copy of the values these had then."""

    parameters: tuple[weakref.ref[Tensor] | None, ...]
    values: tuple[Tensor | None, ...]
    data: Tensor


_packed: dict[tuple[int, int], _Packed] = {}


def _pack(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Tensor:
    """The weights in the kernel's order, from the cache if they are the same as last time.

    Values are compared, every one, on every call: torch counts the changes of a tensor, but not
    those written through ``parameter.data``, and a stale weight would be a wrong number.
    """
    key = (id(parameters[1]), isa)
    found = _packed.get(key)
    if found is not None and all(map(_same, found.parameters, found.values, parameters)):
        return found.data
    data = _freshly_packed(shape, parameters, isa)
    refs = tuple(
        None if p is None else weakref.ref(p, lambda _: _packed.pop(key, None)) for p in parameters
    )
    copies = tuple(
        None if p is None else p.detach().clone(memory_format=torch.contiguous_format)
        for p in parameters
    )
    _packed[key] = _Packed(refs, copies, data)
    return data


def _same(
    reference: weakref.ref[Tensor] | None, value: Tensor | None, parameter: Tensor | None
) -> bool:
    """Whether this is the parameter that was packed, with the values that it had."""
    if reference is None or value is None or parameter is None:
        return reference is None and parameter is None
    return (
        reference() is parameter
        and parameter.is_contiguous()
        and parameter.shape == value.shape
        and library().k2t_same(value.data_ptr(), parameter.data_ptr(), value.numel()) == 1
    )


def _freshly_packed(shape: Shape, parameters: Sequence[Tensor | None], isa: int) -> Tensor:
    data = room(library().k2t_packed_size(isa, ctypes.byref(shape)))
    sources = [None if p is None else p.detach().contiguous() for p in parameters]
    pointers = [None if s is None else s.data_ptr() for s in sources]
    library().k2t_pack(isa, ctypes.byref(shape), *pointers, aligned(data))
    return data


_ALIGNED = 16  # floats in a cache line


def room(floats: int) -> Tensor:
    """Memory for so many floats from an ``aligned`` address on."""
    return torch.empty(floats + _ALIGNED, dtype=torch.float32)


def aligned(data: Tensor) -> int:
    """The first address in data that starts a cache line."""
    line = _ALIGNED * 4
    return (data.data_ptr() + line - 1) // line * line


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
    """Outputs (B, T, D * H) in the order of time and final states (D, S, B, H).

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
    width = units if merge else directions * units
    out = torch.empty(batch, time, width)
    final = torch.empty(directions, states, batch, units)
    if batch == 0:
        return out, final
    if x.stride(2) != 1:
        x = x.contiguous()
    isa = instruction_set()
    call = Call()
    shape = Shape(kind, features, units)
    call.shape = shape
    call.activation, call.recurrent_activation = act, gate
    call.activation_parameter, call.recurrent_activation_parameter = options
    call.directions, call.merge, call.batch, call.time = directions, merge, batch, time
    call.threads = torch.get_num_threads()
    call.x, call.x_batch_stride, call.x_time_stride = x.data_ptr(), x.stride(0), x.stride(1)
    if lengths is not None:
        lengths = counts(lengths, time)
        call.lengths = lengths.data_ptr()
    call.out_batch_stride, call.out_time_stride = time * width, width
    start = [s.contiguous() for s in start]
    # Weights in training change with every step: none is kept for the next.
    pack = _freshly_packed if kept else _pack
    packed, states_at, outputs_at = [], final.data_ptr(), out.data_ptr()
    for d in range(directions):
        packed.append(pack(shape, parameters[4 * d : 4 * d + 4], isa))
        call.packed[d] = aligned(packed[-1])
        call.kept[d] = kept[d].data_ptr() if kept else None
        call.out[d] = outputs_at + 4 * d * units
        call.h_n[d] = states_at + 4 * d * states * batch * units
        call.c_n[d] = states_at + 4 * (d * states + 1) * batch * units
        if start:
            call.h_0[d] = start[d * states].data_ptr()
            call.c_0[d] = start[d * states + 1].data_ptr() if states == 2 else None
    use_torch_threads()
    if library().k2t_run(isa, ctypes.byref(call)):
        raise MemoryError("no memory for the native kernel's scratch")
    return out, final


def counts(lengths: Tensor, time: int) -> Tensor:
    """Lengths as the kernel reads them: int64, between 0 and time."""
    return lengths.to(torch.int64).clamp(0, time).contiguous()


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
        x.new_empty(directions, states, x.shape[0], units),
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
        [cell.kind, cell.activation, cell.recurrent_activation],
        list(cell.parameters),
        0 if merge is None else MERGES[merge],
    )
    return out.chunk(len(parameters), dim=2) if merge is None else (out,), tuple(
        tuple(final[d].unbind(0)) for d in range(len(parameters))
    )


def can_run(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernel computes with these (x first): float32 on CPU, dense, with memory."""
    x = tensors[0]
    return (
        x.shape[1] > 0
        and all(
            t.dtype == torch.float32 and t.device.type == "cpu" and t.layout == torch.strided
            for t in tensors
        )
        and (torch.compiler.is_compiling() or all(map(_has_memory, tensors)))
    )


def _has_memory(tensor: Tensor) -> bool:
    """Not so inside torch.func's transforms, which the operator knows nothing of."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
