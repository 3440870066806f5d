"""Torch's operators as operations of the native library.

``OPERATORS``: how each is recorded, as a function of the values, the operator's result and its
arguments. ``VIEWS``: those that show the same numbers. ``SOURCES``: those
that make numbers of none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.layers.recorded_values import (
    NotRecordedError,
    Value,
    Values,
    only_floats,
    to_word,
)
from keras2torch_birnn.layers.recorded_windows import average_pool, convolution, max_pool
from keras2torch_birnn.rnn.native.codes import ACTIVATIONS

# Of ids and other integers, all that float32 holds exactly.
EXACT = 1 << 24
# Steps that are turned around, each of which is an operation.
_LONG = 1024
# Of torch's selu.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

aten: Any = torch.ops.aten
Recording = Callable[..., Value]


def _add(sign: float) -> Recording:
    def lower(r: Values, result: Tensor, a: Any, b: Any, alpha: float = 1) -> Value:
        only_floats(result)
        return r.elementwise("add", result, a, b, p=sign * float(alpha))

    return lower


def _binary(name: str) -> Recording:
    def lower(r: Values, result: Tensor, a: Any, b: Any) -> Value:
        only_floats(result)
        return r.elementwise(name, result, a, b)

    return lower


def _compare(name: str, *, turned: bool = False) -> Recording:
    def lower(r: Values, result: Tensor, a: Any, b: Any) -> Value:
        numbers = [x for x in (a, b) if not isinstance(x, Tensor)]
        integers = [x for x in (a, b) if isinstance(x, Tensor) and not x.is_floating_point()]
        if any(abs(x) >= EXACT for x in numbers) or (
            len(integers) == 2 and any(x.dtype is not torch.bool for x in integers)
        ):
            raise NotRecordedError("large integers")
        return r.elementwise(name, result, *((b, a) if turned else (a, b)))

    return lower


def _activate(name: str, default: float = 0.0) -> Recording:
    """Record an activation. default: of its option, if it has one."""

    def lower(r: Values, result: Tensor, x: Tensor, option: float = default) -> Value:
        only_floats(x)
        return r.elementwise("activation", result, x, p=option, more=ACTIVATIONS[name])

    return lower


def _clamp(least: float | None = None, most: float | None = None) -> Recording:
    """Record limits. least, most: where an operator is given none."""

    def lower(
        r: Values, result: Tensor, x: Tensor, low: float | None = least, high: float | None = most
    ) -> Value:
        only_floats(x)
        value = r.value(x)
        for name, limit in (("maximum", low), ("minimum", high)):
            if limit is not None:
                value = r.map(name, r.new(result.shape), (value, r.constant(float(limit))))
        return value

    return lower


def _only_bools(*tensors: Tensor) -> None:
    if any(t.dtype is not torch.bool for t in tensors):
        raise NotRecordedError("bits of integers")


def _logical(name: str, *more: float) -> Recording:
    def lower(r: Values, result: Tensor, *flags: Tensor) -> Value:
        _only_bools(*flags)
        return r.elementwise(name, result, *flags, *more)

    return lower


def _cast(r: Values, result: Tensor, x: Tensor, **_: Any) -> Value:
    if result.dtype is torch.bool and x.dtype is not torch.bool:
        return r.elementwise("not_equal", result, x, 0.0)
    integers = (torch.int32, torch.int64)
    if result.dtype not in (torch.float32, torch.bool, *integers):
        raise NotRecordedError(f"a cast from {x.dtype} to {result.dtype}")
    return r.truncate(x) if result.dtype in integers and x.is_floating_point() else r.value(x)


def _same(r: Values, result: Tensor, x: Tensor, *_: Any, **__: Any) -> Value:
    return r.value(x)


def _fill(r: Values, result: Tensor, number: float) -> Value:
    if not result.numel():
        raise NotRecordedError("no numbers")
    constant = r.constant(number)
    return constant._replace(meta=constant.meta.expand(result.shape))


def _filled(number: float) -> Recording:
    return lambda r, result, *_, **__: _fill(r, result, number)


def _full(r: Values, result: Tensor, like: Any, number: float, **_: Any) -> Value:
    return _fill(r, result, float(number))


def _scalar(r: Values, result: Tensor, number: float, **_: Any) -> Value:
    only_floats(result)
    return r.constant(float(number))


def _masked_fill(r: Values, result: Tensor, x: Tensor, mask: Tensor, number: Any) -> Value:
    only_floats(x)
    return r.elementwise("select", result, mask, number, x)


def _where(r: Values, result: Tensor, condition: Tensor, a: Any, b: Any) -> Value:
    only_floats(result)
    return r.elementwise("select", result, condition, a, b)


def _reduce(
    kind: str, check: Callable[..., None] = only_floats, *, mean: bool = False
) -> Recording:
    def lower(
        r: Values, result: Tensor, x: Tensor, dim: Any = (), keepdim: bool = False, **_: Any
    ) -> Value:
        check(x, result)
        dims = (dim,) if isinstance(dim, int) else dim or ()
        return r.reduce(kind, x, dims, keepdim, x.numel() / result.numel() if mean else 1.0)

    return lower


def _softmax(r: Values, result: Tensor, x: Tensor, dim: int, half: bool) -> Value:
    only_floats(x)
    return r.softmax(x, dim)


def _matrices(value: Value) -> Value:
    """Return matrices (N, M, K); a single one is the first of one."""
    return value if value.meta.dim() == 3 else value._replace(meta=value.meta.unsqueeze(0))


def _multiply(r: Values, result: Tensor, a: Tensor, b: Tensor) -> Value:
    only_floats(a, b)
    return r.multiply(_matrices(r.value(a)), _matrices(r.value(b)), None, result.shape)


def _multiply_vector(r: Values, result: Tensor, a: Tensor, b: Tensor) -> Value:
    only_floats(a, b)
    vector = r.value(b)
    column = vector._replace(meta=vector.meta[None, :, None])
    found = r.multiply(_matrices(r.value(a)), column, None, (*result.shape, 1))
    return found._replace(meta=found.meta.squeeze(1))


def _addmm(
    r: Values,
    result: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    beta: float = 1,
    alpha: float = 1,
) -> Value:
    only_floats(bias, a, b)
    if bias.dim() != 1 or beta != 1 or alpha != 1:
        raise NotRecordedError("addmm")
    start = r.value(bias)
    start = start._replace(meta=start.meta.expand(b.shape[1]))
    return r.multiply(_matrices(r.value(a)), _matrices(r.value(b)), start, result.shape)


def _cat(r: Values, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Value:
    if not result.numel() or any(
        t.dtype is not result.dtype or t.dim() != result.dim() for t in tensors
    ):
        raise NotRecordedError("cat")
    to = r.new(result.shape)
    sizes = [t.shape[dim] for t in tensors]
    for part, tensor in zip(torch.split(to.meta, sizes, dim), tensors, strict=True):
        if tensor.numel():
            r.map("copy", to._replace(meta=part), (r.value(tensor),))
    return to


def _stack(r: Values, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Value:
    if not result.numel() or any(t.dtype is not result.dtype for t in tensors):
        raise NotRecordedError("stack")
    to = r.new(result.shape)
    for part, tensor in zip(to.meta.unbind(dim), tensors, strict=True):
        r.map("copy", to._replace(meta=part), (r.value(tensor),))
    return to


def _flip(r: Values, result: Tensor, x: Tensor, dims: Sequence[int]) -> Value:
    if not result.numel() or len(dims) != 1 or x.shape[dims[0]] > _LONG:
        raise NotRecordedError("flip")
    value, to = r.value(x), r.new(result.shape)
    sources = value.meta.unbind(dims[0])
    for part, source in zip(to.meta.unbind(dims[0]), reversed(sources), strict=True):
        r.map("copy", to._replace(meta=part), (value._replace(meta=source),))
    return to


def _subtract_from(r: Values, result: Tensor, a: Tensor, b: float, alpha: float = 1) -> Value:
    only_floats(a)
    return r.elementwise("add", result, b, a, p=-float(alpha))


def _negate(r: Values, result: Tensor, x: Tensor) -> Value:
    only_floats(x)
    return r.elementwise("multiply", result, x, -1.0)


def _elu(
    r: Values,
    result: Tensor,
    x: Tensor,
    alpha: float = 1.0,
    scale: float = 1.0,
    input_scale: float = 1.0,
) -> Value:
    only_floats(x)
    if (alpha, scale, input_scale) == (_SELU_ALPHA, _SELU_SCALE, 1.0):
        return r.elementwise("activation", result, x, more=ACTIVATIONS["selu"])
    if (scale, input_scale) != (1.0, 1.0):
        raise NotRecordedError("elu")
    return r.elementwise("activation", result, x, p=alpha, more=ACTIVATIONS["elu"])


def _pad(r: Values, result: Tensor, x: Tensor, pads: Sequence[int], number: float = 0.0) -> Value:
    only_floats(x)
    if min(pads) < 0 or not x.numel():
        raise NotRecordedError("a part")
    value = r.value(x)
    to = r.new_in_order(result.shape, value.meta)
    inner = to.meta
    for i in range(len(pads) // 2):
        dim = x.dim() - 1 - i
        inner = inner.narrow(dim, pads[2 * i], x.shape[dim])
    r.map("copy", to, (r.constant(float(number)),))
    r.map("copy", to._replace(meta=inner), (value,))
    return to


def _embedding(r: Values, result: Tensor, table: Tensor, ids: Tensor, *_: Any) -> Value:
    only_floats(table)
    rows, columns = table.shape
    if rows >= EXACT or not result.numel():
        raise NotRecordedError("embedding")
    weights, at, to = r.value(table), r.dense(r.value(ids)), r.new(result.shape)
    if weights.meta.stride(1) != 1:
        raise NotRecordedError("embedding")
    words = (at.operand(), ids.numel(), to.operand(), weights.operand())
    r.writer.emit("look_up", (*words, weights.meta.stride(0), rows, columns), 2 * result.numel())
    return to


def _batch_norm(
    r: Values,
    result: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    *rest: Any,
) -> Value:
    """Record a batch normalization as one factor and one offset for each channel."""
    if rest[0]:
        raise NotRecordedError("training")
    only_floats(x)
    eps = float(rest[-1])
    of_channels = variance.shape
    start = r.constant(1.0) if weight is None else r.value(weight)
    scale = r.map("over_root", r.new(of_channels), (start, r.value(variance)), p=eps)
    moved = r.map("multiply", r.new(of_channels), (r.value(mean), scale))
    end = r.constant(0.0) if bias is None else r.value(bias)
    shift = r.map("add", r.new(of_channels), (end, moved), p=-1.0)

    def along_axis(value: Value) -> Value:
        return value._replace(meta=value.meta.reshape(-1, *[1] * (x.dim() - 2)))

    value = r.value(x)
    return r.map("multiply_add", r.new(value.meta), (value, along_axis(scale), along_axis(shift)))


def _layer_norm(
    r: Values,
    result: tuple[Tensor, ...],
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Value:
    only_floats(x)
    value, n = r.dense(r.value(x)), math.prod(shape)
    if not n or not x.numel():
        raise NotRecordedError("no numbers")
    to = r.new(x.shape)
    more = [0 if p is None else r.dense(r.value(p)).operand() for p in (weight, bias)]
    words = (x.numel() // n, n, value.operand(), to.operand(), *more, to_word(eps))
    r.writer.emit("normalize", words, 8 * x.numel())
    return to


VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.squeeze.default,
        aten.expand.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.detach.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
    }
)

# Those that make tensors of numbers alone.
SOURCES = frozenset(
    {aten.arange.default, aten.arange.start, aten.full.default, aten.ones.default}
    | {aten.zeros.default}
)

OPERATORS: Mapping[Any, Recording] = {
    aten.add.Tensor: _add(1.0),
    aten.sub.Tensor: _add(-1.0),
    aten.mul.Tensor: _binary("multiply"),
    aten.div.Tensor: _binary("divide"),
    aten.maximum.default: _binary("maximum"),
    aten.minimum.default: _binary("minimum"),
    aten.eq.Scalar: _compare("equal"),
    aten.eq.Tensor: _compare("equal"),
    aten.ne.Scalar: _compare("not_equal"),
    aten.ne.Tensor: _compare("not_equal"),
    aten.lt.Scalar: _compare("less"),
    aten.lt.Tensor: _compare("less"),
    aten.le.Scalar: _compare("less_equal"),
    aten.le.Tensor: _compare("less_equal"),
    aten.gt.Scalar: _compare("less", turned=True),
    aten.gt.Tensor: _compare("less", turned=True),
    aten.ge.Scalar: _compare("less_equal", turned=True),
    aten.ge.Tensor: _compare("less_equal", turned=True),
    aten.relu.default: _activate("relu"),
    aten.tanh.default: _activate("tanh"),
    aten.sigmoid.default: _activate("sigmoid"),
    aten.silu.default: _activate("silu"),
    aten.hardswish.default: _activate("hard_silu"),
    aten.hardsigmoid.default: _activate("hard_sigmoid_1/6"),
    aten.leaky_relu.default: _activate("leaky_relu", 0.01),
    aten.clamp.default: _clamp(),
    aten.hardtanh.default: _clamp(-1.0, 1.0),
    aten.logical_and.default: _logical("multiply"),
    aten.bitwise_and.Tensor: _logical("multiply"),
    aten.logical_or.default: _logical("maximum"),
    aten.bitwise_or.Tensor: _logical("maximum"),
    aten.logical_not.default: _logical("equal", 0.0),
    aten.bitwise_not.default: _logical("equal", 0.0),
    aten._to_copy.default: _cast,
    aten.clone.default: _same,
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.new_zeros.default: _filled(0.0),
    aten.new_ones.default: _filled(1.0),
    aten.full_like.default: _full,
    aten.scalar_tensor.default: _scalar,
    aten.masked_fill.Scalar: _masked_fill,
    aten.where.self: _where,
    aten.sum.default: _reduce("sum"),
    aten.sum.dim_IntList: _reduce("sum"),
    aten.mean.default: _reduce("sum", mean=True),
    aten.mean.dim: _reduce("sum", mean=True),
    aten.amax.default: _reduce("maximum"),
    aten.any.default: _reduce("maximum", _only_bools),
    aten.any.dim: _reduce("maximum", _only_bools),
    aten.any.dims: _reduce("maximum", _only_bools),
    aten._softmax.default: _softmax,
    aten.mm.default: _multiply,
    aten.bmm.default: _multiply,
    aten.mv.default: _multiply_vector,
    aten.addmm.default: _addmm,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.flip.default: _flip,
    aten.rsub.Scalar: _subtract_from,
    aten.neg.default: _negate,
    aten.elu.default: _elu,
    aten.constant_pad_nd.default: _pad,
    aten.embedding.default: _embedding,
    aten.convolution.default: convolution,
    aten.max_pool2d_with_indices.default: max_pool,
    aten.avg_pool2d.default: average_pool,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
}
