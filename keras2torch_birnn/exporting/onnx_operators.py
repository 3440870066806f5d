"""Operators of torch whose ONNX form is written here: torch's exporter has none, or a worse one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnxscript import opset18 as onnx_op

from keras2torch_birnn.exporting import onnx_recurrent

# onnx.TensorProto's numbers of types.
_UINT8, _INT32, _INT64, _BOOL = 2, 6, 7, 9


def recurrent_node(
    x: Any,
    w: Any,
    r: Any,
    b: Any,
    h: Any,
    c: Any,
    name: str,
    activations: Sequence[str],
    alpha: Sequence[float],
    beta: Sequence[float],
    linear_before_reset: int,
) -> Sequence[Any]:
    """Make one node LSTM, GRU or RNN from ``k2t::onnx_rnn``; three outputs, as that has."""
    options: dict[str, Any] = {
        "activations": list(activations),
        "direction": "bidirectional" if w.shape[0] == 2 else "forward",
        "hidden_size": int(r.shape[2]),
    }
    if alpha:
        options["activation_alpha"] = list(alpha)
    if beta:
        options["activation_beta"] = list(beta)
    if name == "GRU":
        options["linear_before_reset"] = linear_before_reset
    # No sequence_lens: OpenVINO ignores them.
    given = (x, w, r, b, None, h, *([c] if name == "LSTM" else []))
    outputs: Sequence[Any] = getattr(onnx_op, name)(*given, **options)
    return outputs if name == "LSTM" else (*outputs, outputs[1])


def stable_sort(
    x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Sequence[Any]:
    """Sort an axis by TopK, which puts the lower index first among equals.

    Flags, which have many equals, get keys without any: not every runtime keeps that order.
    """
    size = onnx_op.Shape(x, start=dim, end=dim + 1 or None)
    if x.dtype is None or int(x.dtype) != _BOOL:
        found: Sequence[Any] = onnx_op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)
        return found
    axes = [axis for axis in range(len(x.shape)) if axis != dim % len(x.shape)]
    steps = onnx_op.Range(0, onnx_op.Squeeze(size), 1)
    if axes:
        steps = onnx_op.Unsqueeze(steps, axes)
    flags = onnx_op.Not(x) if descending else x
    keys = onnx_op.Add(onnx_op.Mul(onnx_op.Cast(flags, to=_INT64), size), steps)
    _, order = onnx_op.TopK(keys, size, axis=dim, largest=0, sorted=1)
    return onnx_op.GatherElements(x, order, axis=dim), order


def any_along(x: Any, dim: int, keepdim: bool = False) -> Any:
    """Tell whether any value along an axis is not zero; in bytes, a quarter of the exporter's."""
    flags = x if int(x.dtype or 0) == _BOOL else onnx_op.Cast(x, to=_BOOL)
    found = onnx_op.ReduceMax(onnx_op.Cast(flags, to=_UINT8), [dim], keepdims=int(keepdim))
    return onnx_op.Cast(found, to=_BOOL)


def floor_divide(a: Any, b: Any) -> Any:
    """Divide sizes as Python does; ONNX' Div of integers rounds towards zero."""
    return onnx_op.Div(onnx_op.Sub(a, onnx_op.Mod(a, b)), b)


def logaddexp(a: Any, b: Any) -> Any:
    """Return log(e^a + e^b) of numbers of any size; the exporter's e^a overflows from 89 on."""
    apart = onnx_op.Abs(onnx_op.Sub(a, b))
    apart = onnx_op.Where(onnx_op.Equal(a, b), onnx_op.CastLike(0.0, apart), apart)  # inf - inf
    return onnx_op.Add(onnx_op.Max(a, b), onnx_op.Softplus(onnx_op.Neg(apart)))


def log_sigmoid(x: Any) -> Any:
    """Return log(sigmoid(x)); the exporter's sigmoid is 0 from -104 on."""
    return onnx_op.Neg(onnx_op.Softplus(onnx_op.Neg(x)))


def reduce_extreme(name: str) -> Callable[..., Any]:
    """Return the translation of ``amax`` or ``amin``; without axes, of all values."""

    def reduced(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
        axes = list(dim) or list(range(len(x.shape)))
        return getattr(onnx_op, name)(x, axes, keepdims=int(keepdim))

    return reduced


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    onnx_recurrent.OPERATOR: recurrent_node,
    torch.ops.aten.sort.stable: stable_sort,
    torch.ops.aten.any.dim: any_along,
    torch.ops.aten.amax.default: reduce_extreme("ReduceMax"),
    torch.ops.aten.amin.default: reduce_extreme("ReduceMin"),
    operator.floordiv: floor_divide,
    torch.ops.aten.logaddexp.default: logaddexp,
    torch.ops.aten.log_sigmoid.default: log_sigmoid,
}
