"""The native kernel's gradient.

Float32 on CPU. B batch, T time, F features, H units, G gates, D directions, S states; W is H,
rounded up to whole vectors. Equations: the derivatives of those in ``loop.py``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from keras2torch_birnn.rnn.layer import RnnCall, RnnLayer
from keras2torch_birnn.rnn.native.library import (
    RUN,
    Gradient,
    Shape,
    Weights,
    check_code,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import (
    compute,
    describe_run,
    stack_masks,
    to_int64,
    use_torch_threads,
)
from keras2torch_birnn.rnn.native.packing import aligned_address, empty_aligned, empty_floats


def run_keeping(layer: RnnLayer, call: RnnCall) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return outputs (B, T, D * H), final states (D * S, B, H), and the values for ``gradient``."""
    batch, time, _ = call.x.shape
    cell = layer.cell
    width = library().k2t_width(instruction_set(), layer.get_weight_hh().shape[1])
    parts = library().k2t_kept_parts(cell.codes[0])
    kept = tuple(empty_floats(batch, time, parts, width) for _ in range(layer.count_directions()))
    out, states = compute(
        call.x,
        layer.parameters,
        call.lengths,
        call.states(),
        cell.codes,
        cell.options,
        0,
        kept,
        masks=call.masks,
    )
    return out, cast(Tensor, states), kept


def gradient(
    layer: RnnLayer,
    call: RnnCall,
    kept: Sequence[Tensor],
    d_out: Tensor | None,
    d_final: Tensor | None,
    *,
    of_x: bool,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
    """Return gradients of x (None unless ``of_x``), of the initial states and of the parameters.

    layer, call and kept: of ``run_keeping``. d_out, d_final: gradients of its outputs and states,
    None for zeros. Of an absent bias there is a gradient, too.
    """
    cell, weights = layer.cell, layer.get_weights()
    x = call.x if call.x.stride(2) == 1 else call.x.contiguous()
    batch, time, features = x.shape
    units, directions = layer.get_weight_hh().shape[1], len(weights)
    isa = instruction_set()
    stacked = stack_masks(call.masks)
    # Past the lengths, and of an empty batch, the kernel writes nothing.
    empty = torch.Tensor.new_zeros if batch == 0 else torch.Tensor.new_empty
    d_parameters = [
        empty(hh, size)
        for ih, hh, _, _ in weights
        for size in (ih.shape, hh.shape, hh.shape[:1], hh.shape[:1])
    ]
    d_start = empty_floats(directions * layer.state_count(), batch, units)
    d_x = None
    if of_x:
        d_x = empty_floats(batch, time, features)
        if call.lengths is not None or batch == 0:
            d_x.zero_()
    task = Gradient()
    if d_out is not None:
        d_out = d_out if d_out.stride(2) == 1 else d_out.contiguous()
        task.d_out = d_out.data_ptr()
        task.d_out_batch_stride, task.d_out_time_stride = d_out.stride(0), d_out.stride(1)
    if d_final is not None:
        d_final = d_final.contiguous()
        task.d_final = d_final.data_ptr()
    task.d_start, task.d_x = d_start.data_ptr(), None if d_x is None else d_x.data_ptr()
    task.d_weights[: 4 * directions] = [one.data_ptr() for one in d_parameters]
    shape = Shape(cell.codes[0], features, units, stacked.apart)
    size = library().k2t_gradient_packed_size(isa, ctypes.byref(shape))
    packed = [empty_aligned(size) for _ in weights]
    for (ih, hh, _, _), data in zip(weights, packed, strict=True):
        given = [w.detach().contiguous() for w in (ih, hh)]
        library().k2t_gradient_pack(
            isa,
            ctypes.byref(shape),
            given[0].data_ptr() if of_x else None,
            given[1].data_ptr(),
            aligned_address(data),
        )
    back = Weights(shape, directions, tuple(map(aligned_address, packed)))
    lengths = None if call.lengths is None else to_int64(call.lengths)
    initial = [s.contiguous() for s in call.states()]
    kept = [k.contiguous() for k in kept]  # hooks of saved tensors may give them in other strides
    run = describe_run(cell.codes, cell.options, 0, x, lengths, initial, kept, stacked)
    use_torch_threads()
    if batch:
        words = RUN.pack(ctypes.addressof(back), *run)
        check_code(library().k2t_gradient(isa, words, ctypes.byref(task)))
    return d_x, list(d_start.unbind(0)), d_parameters
