"""The native kernel as a torch operator, ``k2t::rnn``: what ``torch.compile`` sees as one node.

Float32 on CPU, no gradient. B batch, T time, F features, H units, G gates, D directions.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.layer import (
    DropoutMasks,
    RnnCall,
    RnnLayer,
    RnnResult,
    group_states,
)
from keras2torch_birnn.rnn.native.codes import STALE, STATES, ReducedPrecision, merge_code
from keras2torch_birnn.rnn.native.library import (
    RUN,
    check_code,
    find_sets,
    instruction_set,
    library,
    why_missing,
)
from keras2torch_birnn.rnn.native.packing import cached_pack, empty_floats, pack, weight_sizes
from keras2torch_birnn.rnn.tensor_memory import is_plain

# ---- threads ------------------------------------------------------------------------------------


_PROCESS = os.getpid()


@cache
def use_torch_threads() -> bool:
    """Run the kernel on the OpenMP threads of torch from now on, if torch has them.

    Elsewhere the kernel has its own threads.
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


def reduced_instruction_set(precision: ReducedPrecision) -> int:
    """Return the best instruction set of this processor for a reduced precision, as a bit."""
    return next(iter(find_sets(precision).values()))


def compute(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    lengths: Tensor | None,
    initial: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
    kept: Sequence[Tensor] = (),
    kernel: int = 0,
    *,
    return_state: bool = True,
    masks: Sequence[DropoutMasks] = (),
) -> tuple[Tensor, Tensor | None]:
    """Return outputs (B, T, D * H) in the order of time and final states (D * S, B, H).

    x: (B, T, F). parameters: four for each direction. lengths: (B,), the number of valid steps of
    each row; later outputs are zero. initial: S states (B, H) for each direction, or none. cell:
    codes of kind, activation and recurrent_activation; options: one for each activation. merge: a
    native code; not 0: the directions share one output (B, T, H). kept: for each direction
    (B, T, parts, W), filled with the values that its gradient needs; or none. kernel: the bit of an
    instruction set of a reduced precision; 0 for the best of float32.
    return_state: if False, the final states are None. masks: of dropout, for each direction, or
    none.

    Raises:
        ValueError: a shape does not fit.
    """
    kind = cell[0]
    directions, states = len(parameters) // 4, STATES[kind]
    batch, time, given = x.shape
    features, units = weight_sizes(parameters)
    if given != features:
        raise ValueError(f"an input of {features} features is expected, found {given}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths [{batch}] are expected, found {list(lengths.shape)}")
    for s in initial:
        if s.shape != (batch, units):
            raise ValueError(f"a state {[batch, units]} is expected, found {list(s.shape)}")
    width = units if merge else directions * units
    out = empty_floats(batch, time, width)
    ends = x.new_empty((directions * states, batch, units)) if return_state else None
    if batch == 0:
        return out, ends
    if x.stride(2) != 1:
        x = x.contiguous()
    if lengths is not None:
        lengths = to_int64(lengths)
    isa = kernel or instruction_set()
    stacked = stack_masks(masks) if masks else NO_MASKS
    if kept or masks:  # weights in training change with every step: a cache would not help the next
        packed = pack(kind, parameters, isa, apart=stacked.apart)
    else:
        packed = cached_pack(kind, parameters, isa)
    alive = [s.contiguous() for s in initial]
    places = out.data_ptr(), 0 if ends is None else ends.data_ptr()
    call = describe_run(cell, options, merge, x, lengths, alive, kept, stacked, places)
    use_torch_threads()
    code = library().k2t_run(isa, RUN.pack(packed.address, *call))
    if code == STALE:
        # Not compared again: another thread may change them all the time.
        packed = cached_pack(kind, parameters, isa, stale=True)
        code = library().k2t_run(isa, RUN.pack(packed.unchecked, *call))
    check_code(code)
    return out, ends


def describe_run(
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
    x: Tensor,
    lengths: Tensor | None,
    initial: Sequence[Tensor],
    kept: Sequence[Tensor],
    masks: StackedMasks,
    places: tuple[int, int] = (0, 0),
) -> tuple[float, ...]:
    """Return the fields of a ``K2tRun`` after its weights: addresses of tensors that must live.

    The arguments are those of ``compute``, as the kernel reads them. places: where outputs and
    final states go, 0 for nowhere.
    """
    kind, act, gate = cell
    return (
        *(act, gate, *options, merge, *x.shape[:2], torch.get_num_threads()),
        *(x.data_ptr(), *x.stride()[:2]),
        0 if lengths is None else lengths.data_ptr(),
        *order_states([s.data_ptr() for s in initial], STATES[kind]),
        *places,
        *two_addresses(kept),
        *masks.inputs,
        *masks.state,
    )


_NONE = [0, 0]


def order_states(addresses: list[int], each: int) -> list[int]:
    """Return the addresses of h of both directions, then of c; 0 for none.

    addresses: of ``each`` states of one direction, then of the other.
    """
    if not addresses:
        return _NONE + _NONE
    cells = addresses[1::2] if each == 2 else []
    return (addresses[::each] + _NONE)[:2] + (cells + _NONE)[:2]


def to_int64(lengths: Tensor) -> Tensor:
    """Return lengths as the kernel reads them: int64, contiguous."""
    ready = lengths.dtype is torch.int64 and lengths.is_contiguous()
    return lengths if ready else lengths.to(torch.int64).contiguous()


def lengths_of_padded(mask: Tensor) -> Tensor | None:
    """Return the number of valid steps of each row of a mask (B, T) with padding on the right.

    None for other masks; also on a GPU, which reading the values would wait for, and while a graph
    is traced, which must not depend on them.
    """
    if torch.compiler.is_compiling() or not (mask.is_cpu and is_plain((mask,))):
        return None
    if why_missing():
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
    initial: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
    isa: int = 0,
) -> tuple[Tensor, Tensor]:
    # (isa, not kernel: Inductor has an argument of that name and hands ours on beside it.)
    # A compiled graph has not checked is_plain.
    weights = [None if p is None else p.resolve_neg() for p in parameters]
    states = [s.resolve_neg() for s in initial]
    given = (x.resolve_neg(), weights, lengths, states, cell, options, merge)
    out, ends = compute(*given, kernel=isa)
    return out, cast(Tensor, ends)


@_operator.register_fake
def _(
    x: Tensor,
    parameters: Sequence[Tensor | None],
    lengths: Tensor | None,
    initial: Sequence[Tensor],
    cell: Sequence[int],
    options: Sequence[float],
    merge: int,
    isa: int = 0,
) -> tuple[Tensor, Tensor]:
    directions, states = len(parameters) // 4, STATES[int(cell[0])]
    hh = parameters[1]
    units = 0 if hh is None else hh.shape[1]
    return (
        x.new_empty(x.shape[0], x.shape[1], units if merge else directions * units),
        x.new_empty(directions * states, x.shape[0], units),
    )


def run_native(layer: RnnLayer, call: RnnCall, kernel: int = 0) -> RnnResult:
    """Run the kernel: outputs (B, T, H) in the order of time and final states, one per direction.

    Merged: one output, (B, T, 2 H) if the merge is "concat". No states if ``return_state`` is off.
    kernel: as in ``compute``.
    """
    merge, cell = call.merge, layer.cell
    given = (
        call.x,
        layer.parameters,
        call.lengths,
        call.states(),
        cell.codes,
        cell.options,
        merge_code(merge),
    )
    ends: Tensor | None
    # Without the dispatcher, whose time a short sequence would feel.
    if torch.compiler.is_compiling():
        out, ends = _operator(*given, kernel)
    else:
        out, ends = compute(*given, kernel=kernel, return_state=call.return_state, masks=call.masks)
    outputs = out.chunk(layer.count_directions(), dim=2) if merge is None else (out,)
    return outputs, () if ends is None else group_states(ends.unbind(0), layer.state_count())


_DTYPE, _IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")
_FLOAT32 = {torch.float32}


def can_run(tensors: Sequence[Tensor]) -> bool:
    """Return whether the kernel can read these tensors: float32 on CPU, dense and plain."""
    if torch.compiler.is_compiling():
        return all(
            tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided
            for tensor in tensors
        )
    # The same in less time; sparse tensors are not plain.
    float32_on_cpu = _FLOAT32.issuperset(map(_DTYPE, tensors)) and all(map(_IS_CPU, tensors))
    return float32_on_cpu and is_plain(tensors)


# ---- Masks of dropout in memory -----------------------------------------------------------------


class StackedMasks(NamedTuple):
    """Addresses of the masks of inputs (M, B, F) and of states (M, B, H), two each, 0 for none.

    apart: whether each gate has its own. alive: the memory of the masks.
    """

    inputs: Sequence[int] = (0, 0)
    state: Sequence[int] = (0, 0)
    apart: bool = False
    alive: Sequence[Tensor] = ()


def two_addresses(tensors: Sequence[Tensor]) -> Sequence[int]:
    """Return the addresses of tensors of each direction; 0 where there is none."""
    return (*map(Tensor.data_ptr, tensors), 0, 0)[:2]


def stack_masks(masks: Sequence[DropoutMasks]) -> StackedMasks:
    """Join the masks of each direction's gates."""
    apart = any(len(given) > 1 for each in masks for given in each)
    inputs = [torch.stack(each.inputs) for each in masks if each.inputs]
    state = [torch.stack(each.state) for each in masks if each.state]
    return StackedMasks(two_addresses(inputs), two_addresses(state), apart, (*inputs, *state))


NO_MASKS = StackedMasks()
