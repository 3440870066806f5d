"""The native kernel's gradient: the steps by the kernel, the sums over all steps by torch.

Float32 on CPU. B batch, T time, F features, H units, G gates, D directions, S states; W is H,
rounded up to whole vectors. Equations: the derivatives of those in ``loop.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.rnn.call import RnnCall
from keras2torch_birnn.rnn.cell_kind import GRU_BEFORE
from keras2torch_birnn.rnn.native.library import (
    KINDS,
    Gradient,
    NativeCell,
    Shape,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import check_code, compute, to_int64, use_torch_threads
from keras2torch_birnn.rnn.native.packing import (
    Parameters,
    aligned_address,
    empty_aligned,
    empty_floats,
)


def run_keeping(
    cell: NativeCell, parameters: Sequence[Parameters], call: RnnCall
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return outputs (B, T, D * H), final states (D * S, B, H), and the values for ``gradient``."""
    batch, time, _ = call.x.shape
    width = library().k2t_width(instruction_set(), parameters[0][1].shape[1])
    parts = library().k2t_kept_parts(cell.kind)
    kept = tuple(empty_floats(batch, time, parts, width) for _ in parameters)
    out, states = compute(
        call.x,
        [p for direction in parameters for p in direction],
        call.lengths,
        call.states(),
        cell.codes,
        cell.options,
        0,
        kept,
    )
    return out, cast(Tensor, states), kept


def gradient(
    cell: NativeCell,
    parameters: Sequence[Parameters],
    call: RnnCall,
    kept: Sequence[Tensor],
    d_out: Tensor | None,
    d_final: Tensor | None,
    *,
    of_x: bool,
) -> tuple[Tensor | None, list[Tensor], list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Return gradients of x (None unless ``of_x``), of the initial states and of the parameters.

    cell, parameters, call and kept: of ``run_keeping``. d_out, d_final: gradients of its outputs
    and states, None for zeros.
    """
    x, lengths = call.x, call.lengths
    batch, time, features = x.shape
    units, directions = parameters[0][1].shape[1], len(parameters)
    states, width = cell.states, kept[0].shape[3]
    gates = parameters[0][1].shape[0] // units
    parts = gates + (cell.kind == KINDS["GRU"])
    d_gates = [empty_floats(batch, time, parts, width) for _ in range(directions)]
    d_start = empty_floats(directions * states, batch, units)
    isa = instruction_set()
    shape = Shape(cell.kind, features, units)
    task = Gradient()
    task.shape = shape
    task.activation, task.recurrent_activation = cell.activation, cell.recurrent_activation
    task.activation_parameter, task.recurrent_activation_parameter = cell.options
    task.directions, task.batch, task.time = directions, batch, time
    task.threads = torch.get_num_threads()
    if lengths is not None:
        lengths = to_int64(lengths)
        task.lengths = lengths.data_ptr()
    if d_out is not None:
        d_out = d_out if d_out.stride(2) == 1 else d_out.contiguous()
        task.d_out = d_out.data_ptr()
        task.d_out_batch_stride, task.d_out_time_stride = d_out.stride(0), d_out.stride(1)
    if d_final is not None:
        d_final = d_final.contiguous()
        task.d_final = d_final.data_ptr()
    task.d_start = d_start.data_ptr()
    initial = [s.contiguous() for s in call.states()]
    kept = [k.contiguous() for k in kept]  # hooks of saved tensors may give them in other strides
    alive = []  # until the kernel has run
    for d, (_, hh, _, _) in enumerate(parameters):
        packed = empty_aligned(library().k2t_gradient_packed_size(isa, ctypes.byref(shape)))
        weight = hh.detach().contiguous()
        library().k2t_gradient_pack(
            isa, ctypes.byref(shape), weight.data_ptr(), aligned_address(packed)
        )
        alive.append(packed)
        task.packed[d], task.kept[d] = aligned_address(packed), kept[d].data_ptr()
        task.d_gates[d] = d_gates[d].data_ptr()
        if states == 2 and initial:
            task.c_0[d] = initial[2 * d + 1].data_ptr()
    use_torch_threads()
    if batch:
        check_code(library().k2t_gradient(isa, ctypes.byref(task)))
    valid = None if lengths is None else _valid(lengths, time)
    rows = _rows(x, valid)
    d_rows = torch.zeros_like(rows) if of_x else None
    d_parameters = [
        _sums(cell.kind, direction, rows, _rows(k, valid), _rows(d, valid), d_rows)
        for direction, k, d in zip(parameters, kept, d_gates, strict=True)
    ]
    if d_rows is not None and valid is not None:
        d_rows = x.new_zeros(batch * time, features).index_copy_(0, valid, d_rows)
    d_x = None if d_rows is None else d_rows.view(batch, time, features)
    return d_x, list(d_start.unbind(0)), d_parameters


def _valid(lengths: Tensor, time: int) -> Tensor | None:
    """Return the flat indices (of B * T) of the valid steps; None if all are."""
    counts = torch.arange(time, device=lengths.device) < lengths[:, None]
    return None if counts.all() else counts.flatten().nonzero().squeeze(1)


def _rows(values: Tensor, valid: Tensor | None) -> Tensor:
    """Select the valid steps: (B, T, ...) -> (N, ...)."""
    flat = values.flatten(0, 1)
    return flat if valid is None else flat.index_select(0, valid)


def _sums(
    kind: int,
    parameters: Parameters,
    rows: Tensor,
    kept: Tensor,
    d_gates: Tensor,
    d_rows: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return one direction's gradients in torch's order; add the gradient of rows to d_rows.

    Of each valid step: rows (N, F), the inputs; kept (N, parts, W); d_gates (N, gates, W), for a
    GRU that resets after the product n's recurrent sum, then r, z, n.
    """
    units = parameters[1].shape[1]
    gates, width = parameters[1].shape[0] // units, kept.shape[2]
    after, before = kind == KINDS["GRU"], kind == KINDS[GRU_BEFORE]

    def unpad(sums: Tensor) -> Tensor:
        """Drop the padding of units: (gates * W, ...) -> (gates * H, ...)."""
        return sums.view(-1, width, *sums.shape[1:])[:, :units].flatten(0, 1)

    flat = d_gates.flatten(1)
    of_inputs, of_states = flat[:, -gates * width :], flat[:, : gates * width]
    h = kept[:, -1, :units]
    if before:
        rz, n = flat[:, : 2 * width], flat[:, 2 * width :]
        reset = kept[:, 0, :units] * h
        d_hh = torch.cat((unpad(rz.T @ h), unpad(n.T @ reset)))
    else:
        d_hh = unpad(of_states.T @ h)
    d_bias_ih = unpad(of_inputs.sum(0))
    d_bias_hh = d_bias_ih
    if after:  # n, r, z -> r, z, n
        d_hh, d_bias_hh = d_hh.roll(-units, 0), unpad(of_states.sum(0)).roll(-units, 0)
    if d_rows is not None:
        weight = parameters[0].detach().contiguous()
        if width != units:
            weight = functional.pad(weight.view(gates, units, -1), (0, 0, 0, width - units))
            weight = weight.flatten(0, 1)
        d_rows.addmm_(of_inputs, weight)
    return unpad(of_inputs.T @ rows), d_hh, d_bias_ih, d_bias_hh
