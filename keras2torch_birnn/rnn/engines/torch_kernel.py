"""The engine "fused": torch's own kernel (oneDNN, cuDNN), behind nn.LSTM, nn.GRU and nn.RNN.

B batch, T time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from keras2torch_birnn.rnn.engines.exported import (
    call_kernel,
    run_unpacked,
    why_not_exported,
)
from keras2torch_birnn.rnn.layer import (
    RnnCall,
    RnnLayer,
    RnnResult,
    float_tensors,
    needs_gradient,
)
from keras2torch_birnn.rnn.masks import zero_past
from keras2torch_birnn.rnn.tensor_memory import (
    are_mapped,
    have_memory,
    have_tangents,
    is_exporting_by_torch,
)


def run_kernel(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Call torch's kernel for all directions, with packed sequences where there are lengths."""
    x, lengths, initial = call.x, call.lengths, call.initial_state
    kernel: Any = layer.cell.kernel
    directions, units = layer.count_directions(), layer.get_weight_hh().shape[1]
    if initial is None:
        zero = x.new_zeros(directions, x.shape[0], units)
        begin: tuple[Tensor, ...] = (zero,) * layer.state_count()
    else:
        begin = tuple(torch.stack(parts) for parts in zip(*initial, strict=True))
    packed: PackedSequence | None = None
    empty: Tensor | None = None
    if lengths is not None and x.shape[0] > 0:
        order, back, counts, empty = _sort(lengths)
        if empty is not None:
            x = zero_past(x, lengths)  # a step of each row without any is read
        packed = pack_padded_sequence(x[order], counts.clamp(min=1), batch_first=True)
        begin = tuple(s[:, order] for s in begin)
    hx = begin if layer.cell.kind == "LSTM" else begin[0]
    weights = layer.present_parameters()
    has_biases = layer.parameters[2] is not None
    # cuDNN differentiates what ran in training alone; without dropout (0.0) nothing else differs.
    train = layer.training or (x.is_cuda and needs_gradient(layer, call))
    fixed = (weights, has_biases, 1, 0.0, train, directions == 2)
    if packed is None:
        out, *final = call_kernel(kernel, x, hx, *fixed, True)
    else:
        out, *final = kernel(packed.data, packed.batch_sizes, hx, *fixed)
        again = PackedSequence(out, packed.batch_sizes)
        out, _ = pad_packed_sequence(again, batch_first=True, total_length=x.shape[1])
        if empty is not None:  # torch knows no row without a step: what it made of the first goes
            out = out.masked_fill(empty[:, None, None], 0)
            final = [torch.where(empty[:, None], s, f) for f, s in zip(final, begin, strict=True)]
        out, final = out[back], [f[:, back] for f in final]
    states = tuple(tuple(f[i] for f in final) for i in range(directions))
    if call.merge == "concat":  # torch's own layout
        return (out,), states
    return out.chunk(directions, dim=2), states


class _Sorted(NamedTuple):
    """Rows by descending length: their order and the way back, lengths, and which have no step.

    Lengths are on the host. Sorted here, so that the states can be sorted alike.
    """

    order: Tensor
    back: Tensor
    counts: Tensor
    empty: Tensor | None


def _sort(lengths: Tensor) -> _Sorted:
    """Sort the rows of a batch by their lengths, which the host waits for on a GPU."""
    falling, order = lengths.sort(descending=True)
    counts = falling.cpu()
    return _Sorted(order, order.argsort(), counts, None if counts.all() else falling == 0)


def why_skip(layer: RnnLayer, call: RnnCall) -> str:
    """Return why the loop runs a call of a layer that torch has a kernel for."""
    if layer.drops():
        return "Keras drops with one mask for all steps; torch's kernel has none"
    if not torch.compiler.is_compiling():
        tensors = float_tensors(layer, call)
        if have_tangents(tensors) or are_mapped(tensors):
            return "torch's kernels lack forward-mode derivatives and vmap"
    if is_exporting_by_torch():
        return why_not_exported(layer, call)
    if call.lengths is not None and not _can_pack(call.x, call.lengths):
        return "a masked layer in a graph, or tensors without values to pack by"
    return ""


def _can_pack(*tensors: Tensor) -> bool:
    """Return whether masked sequences may be packed: not in a graph, since it depends on values."""
    if torch.compiler.is_compiling():
        return False
    if any(t.is_cuda for t in tensors) and torch.cuda.is_current_stream_capturing():
        return False
    return have_memory(tensors)


def run(layer: RnnLayer, call: RnnCall) -> RnnResult:
    """Call torch's kernel for all directions."""
    if call.lengths is not None and is_exporting_by_torch():
        return run_unpacked(layer, call)
    return run_kernel(layer, call)
