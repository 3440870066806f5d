"""Operations in NumPy, each from its documentation in TensorFlow 2.15 or Keras 3.15.

Arguments come in the kinds that ``semantics["kinds"]`` names and results leave so: a tensor of
int32 is one here, too. Sizes are arrays of int64. Operations take and give no masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from keras2torch_birnn.reference import movement, reductions
from keras2torch_birnn.reference.activations import activate, erf
from keras2torch_birnn.reference.context import Context, Equation
from keras2torch_birnn.spec import Array, Constant, LayerSpec, Structure, map_structure

Config = Mapping[str, Any]
Function = Callable[..., Any]
_DTYPES: Mapping[str, Any] = {
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
    "size": np.int64,
}


def _as(value: Any, kind: str, context: Context) -> Array:
    """Cast a value to a dtype; floats lose their fraction as integers."""
    array = value.array() if isinstance(value, Constant) else np.asarray(value)
    if kind == "float":
        return context.number(array)
    return array.astype(_DTYPES[kind]) if kind in _DTYPES else array


def operation(function: Function) -> Equation:
    """Make the equation of an operation: ``function(config, *arguments)`` between casts."""

    def equation(
        layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> tuple[Structure, Structure]:
        kinds = layer.semantics["kinds"]
        wants = iter(kinds["wants"])
        arguments = map_structure(lambda leaf: _as(leaf, next(wants), context), inputs)
        one = len(kinds["wants"]) == 1 and not isinstance(inputs, tuple)
        out = function(layer.config, *((arguments,) if one else arguments))
        if isinstance(out, tuple):
            gives = kinds["gives"]
            several = tuple(
                _as(part, gives[min(i, len(gives) - 1)], context) for i, part in enumerate(out)
            )
            return several, None
        return _as(out, kinds["gives"][0], context), mask if kinds["passes_mask"] else None

    return equation


def listed(function: Function) -> Equation:
    """Make the equation of an operation whose argument is a list."""
    return operation(lambda config, *xs: function(config, xs))


def plain(function: Function) -> Equation:
    """Make the equation of a function that has no options."""
    return operation(lambda config, *given: function(*given))


def reduction(function: Function) -> Equation:
    """Make the equation of a reduction over axes, None for all, that stay as 1 or not."""
    return operation(lambda c, x: function(x, axis=c["axis"], keepdims=c["keepdims"]))


# ---- value by value ------------------------------------------------------------------------------


def _floor_divide(a: Array, b: Array) -> Array:
    """Compute ``tf.math.floordiv``: the quotient rounded down. NumPy's own counts whole b in a."""
    return np.floor(a / b) if a.dtype.kind == "f" else np.floor_divide(a, b)


def _divide_no_nan(a: Array, b: Array) -> Array:
    """Compute ``tf.math.divide_no_nan``."""
    return np.where(b == 0, 0, a / np.where(b == 0, 1, b))


def _unless(function: Function, *, second: bool) -> Function:
    """Compute ``tf.math.multiply_no_nan``, ``xlogy`` and their kin: 0 where one of the two is 0."""

    def computed(a: Array, b: Array) -> Array:
        return np.where((b if second else a) == 0, 0, function(a, b))

    return computed


def _each(function: Callable[[float], float]) -> Function:
    """Apply a function of the standard library value by value."""
    return lambda x: np.array([function(float(v)) for v in x.ravel()], x.dtype).reshape(x.shape)


def _erfinv(x: float) -> float:
    """Compute ``tf.math.erfinv``, by the normal distribution."""
    if abs(x) >= 1:
        return math.copysign(math.inf, x) if abs(x) == 1 else math.nan
    return NormalDist().inv_cdf((x + 1) / 2) / math.sqrt(2)


def _clip(x: Array, low: Array, high: Array) -> Array:
    """Compute ``tf.clip_by_value``: the lower bound wins."""
    y: Array = np.maximum(low, np.minimum(high, x))
    return y


# ---- along axes ----------------------------------------------------------------------------------


def _arg(function: Function) -> Equation:
    return operation(lambda c, x: function(x, axis=c["axis"], keepdims=c["keepdims"]))


def _cumulative(function: Function, start: int) -> Equation:
    """Compute ``tf.cumsum``, ``tf.math.cumprod``."""

    def equation(config: Config, x: Array) -> Array:
        y = np.moveaxis(x, config["axis"], 0)
        y = y[::-1] if config["reverse"] else y
        total = function(y, axis=0)
        if config["exclusive"]:
            total = np.concatenate([np.full_like(total[:1], start), total[:-1]])
        total = total[::-1] if config["reverse"] else total
        return np.moveaxis(total, 0, config["axis"])

    return operation(equation)


# ---- products ------------------------------------------------------------------------------------


def _matmul(config: Config, a: Array, b: Array) -> Array:
    """Compute ``tf.linalg.matmul``."""
    left = np.swapaxes(a, -1, -2) if config["transpose_a"] else a
    right = np.swapaxes(b, -1, -2) if config["transpose_b"] else b
    y: Array = left @ right
    return y


# ---- what layers compute, with tensors in the place of weights -----------------------------------


def _layer_norm(config: Config, x: Array, gamma: Array, beta: Array) -> Array:
    """Compute ``_layer_normalization`` (Keras 3.15 ``ops/nn.py``)."""
    axis = config["axis"]
    mean, variance = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    y: Array = (x - mean) / np.sqrt(variance + config["epsilon"]) * gamma + beta
    return y


def _rms_norm(config: Config, x: Array, scale: Array) -> Array:
    """Compute ``_rms_normalization`` (Keras 3.15 ``ops/nn.py``)."""
    squares = np.square(x).mean(axis=config["axis"], keepdims=True)
    y: Array = x / np.sqrt(squares + config["epsilon"]) * scale
    return y


def _batch_norm(
    config: Config, x: Array, mean: Array, variance: Array, offset: Array, scale: Array
) -> Array:
    """Compute ``tf.nn.batch_normalization``."""
    y: Array = (x - mean) * scale / np.sqrt(variance + config["epsilon"]) + offset
    return y


def _attention(config: Config, query: Array, key: Array, value: Array, *mask: Array) -> Array:
    """Compute ``keras.ops.dot_product_attention`` of Keras 3.15 on TensorFlow, head by head.

    Where a query has nothing to look at, every step is as good as any other.
    """
    (batch, steps, heads, size), keys = query.shape, key.shape[1]
    scale = 1 / np.sqrt(size) if config["scale"] is None else config["scale"]
    seen = np.ones((batch, heads, steps, keys), bool)
    if mask:
        seen &= mask[0]
    if config["is_causal"]:
        seen &= np.arange(keys) <= np.arange(steps)[:, np.newaxis]
    out = np.zeros((batch, steps, heads, value.shape[-1]), query.dtype)
    for b, h in np.ndindex(batch, heads):
        shared = h * key.shape[2] // heads
        scores = np.where(seen[b, h], query[b, :, h] @ key[b, :, shared].T * scale, -2.4e38)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(axis=-1, keepdims=True) @ value[b, :, shared]
    return out


def _pool(reduce: Function) -> Equation:
    """Compute ``tf.nn.max_pool``, ``tf.nn.avg_pool``: of what of a window is there."""

    def equation(config: Config, x: Array) -> Array:
        rank = x.ndim - 2
        size, strides = (
            tuple(given) * (rank if len(given) == 1 else 1)
            for given in (config["pool_size"], config["strides"] or config["pool_size"])
        )
        starts = []
        for length, extent, stride in zip(x.shape[1:-1], size, strides, strict=True):
            if config["padding"] == "valid":
                starts.append(list(range(0, length - extent + 1, stride)))
            else:
                count = -(-length // stride)
                before = max((count - 1) * stride + extent - length, 0) // 2
                starts.append([i * stride - before for i in range(count)])
        y = np.zeros((len(x), *map(len, starts), x.shape[-1]), x.dtype)
        for at in np.ndindex(*map(len, starts)):
            window = tuple(
                slice(max(s[i], 0), s[i] + extent)
                for s, i, extent in zip(starts, at, size, strict=True)
            )
            read: tuple[Any, ...] = (slice(None), *window)
            written: tuple[Any, ...] = (slice(None), *at)
            y[written] = reduce(x[read], axis=tuple(range(1, rank + 1)))
        return y

    return operation(equation)


_UNARY: Mapping[str, Function] = {
    **{
        name: getattr(np, name.lower())
        for name in (
            "Exp Expm1 Log Log1p Log2 Log10 Sqrt Sin Cos Tan Arcsin Arccos Arctan Sinh Cosh Tanh "
            "Arcsinh Arccosh Arctanh Floor Ceil Trunc Negative Absolute Sign Square Isnan Isinf "
            "Isfinite"
        ).split()
    },
    "Round": np.rint,
    "Erf": erf,
    "Erfc": _each(math.erfc),
    "Erfinv": _each(_erfinv),
    "Lgamma": _each(math.lgamma),
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Reciprocal": lambda x: 1 / x,
    "LogicalNot": np.logical_not,
    "Identity": lambda x: x,
    "Cast": lambda x: x,
    "ConvertToTensor": lambda x: x,
    "ZerosLike": np.zeros_like,
    "OnesLike": np.ones_like,
    "Shape": lambda x: np.array(np.shape(x)),
    "Add": np.add,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Divide": np.divide,
    "FloorDivide": _floor_divide,
    "Mod": np.mod,
    "Power": np.power,
    "Maximum": np.maximum,
    "Minimum": np.minimum,
    "Arctan2": np.arctan2,
    "Logaddexp": np.logaddexp,
    "Hypot": np.hypot,
    "SquaredDifference": lambda a, b: np.square(a - b),
    "DivideNoNan": _divide_no_nan,
    "MultiplyNoNan": _unless(np.multiply, second=True),
    "Xlogy": _unless(lambda a, b: a * np.log(b), second=False),
    "Xlog1py": _unless(lambda a, b: a * np.log1p(b), second=False),
    "Xdivy": _unless(np.divide, second=False),
    "Less": np.less,
    "LessEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterEqual": np.greater_equal,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
    "LogicalAnd": np.logical_and,
    "LogicalOr": np.logical_or,
    "LogicalXor": np.logical_xor,
    "Dot": np.dot,
    "Where": np.where,
    "Clip": _clip,
}
_REDUCTIONS: Mapping[str, Function] = {
    "Sum": np.sum,
    "Prod": np.prod,
    "Mean": np.mean,
    "Var": np.var,
    "Std": np.std,
    "Max": np.max,
    "Min": np.min,
    "Any": np.any,
    "All": np.all,
    "Logsumexp": reductions.logsumexp,
}
_BARE: Mapping[str, Equation] = {
    **{name: plain(function) for name, function in _UNARY.items()},
    **{name: reduction(function) for name, function in _REDUCTIONS.items()},
    "FullLike": operation(lambda c, x: np.full_like(x, c["value"])),
    "Activation": operation(lambda c, x: activate(c["function"], x)),
    "Moments": operation(reductions.moments),
    "Norm": operation(reductions.norm),
    "Normalize": operation(reductions.normalize),
    "ClipByNorm": operation(reductions.clip_by_norm),
    "IdentityN": listed(lambda c, xs: tuple(xs)),
    "CountNonzero": operation(reductions.count_nonzero),
    "Argmax": _arg(np.argmax),
    "Argmin": _arg(np.argmin),
    "Average": operation(reductions.average),
    "Cumsum": _cumulative(np.cumsum, 0),
    "Cumprod": _cumulative(np.cumprod, 1),
    "Sort": operation(reductions.sort),
    "Argsort": operation(reductions.argsort),
    "TopK": operation(reductions.top_k),
    "Matmul": operation(_matmul),
    "Tensordot": operation(lambda c, a, b: np.tensordot(a, b, axes=c["axes"])),
    "Einsum": listed(lambda c, xs: np.einsum(c["subscripts"], *xs)),
    "AddN": listed(lambda c, xs: sum(xs)),
    "LayerNorm": operation(_layer_norm),
    "RMSNorm": operation(_rms_norm),
    "BatchNorm": operation(_batch_norm),
    "DotProductAttention": operation(_attention),
    "MaskedDotProductAttention": operation(_attention),
    "MaxPool": _pool(np.max),
    "AveragePool": _pool(np.mean),
    "Threshold": operation(lambda c, x: np.where(x > c["threshold"], x, c["value"])),
    "Reshape": operation(lambda c, x, *s: np.reshape(x, movement.fill_sizes(c["shape"], s))),
    "BroadcastTo": operation(movement.broadcast_to),
    "Tile": operation(lambda c, x, *s: np.tile(x, movement.fill_sizes(c["shape"], s))),
    "Full": operation(lambda c, *s: np.full(movement.fill_sizes(c["shape"], s), c["value"])),
    "Arange": operation(movement.arange),
    "GetItem": operation(movement.get_item),
    "Transpose": operation(lambda c, x: np.transpose(x, c["axes"])),
    "Swapaxes": operation(lambda c, x: np.swapaxes(x, c["axis1"], c["axis2"])),
    "Moveaxis": operation(lambda c, x: np.moveaxis(x, c["source"], c["destination"])),
    "Squeeze": operation(lambda c, x: np.squeeze(x, c["axis"])),
    "ExpandDims": operation(movement.expand_dims),
    "Flip": operation(lambda c, x: np.flip(x, c["axis"])),
    "Roll": operation(lambda c, x: np.roll(x, c["shift"], c["axis"])),
    "Repeat": operation(lambda c, x: np.repeat(x, c["repeats"], axis=c["axis"])),
    "Pad": operation(movement.pad),
    "Diff": operation(lambda c, x: np.diff(x, n=c["n"], axis=c["axis"])),
    "Tril": operation(lambda c, x: np.tril(x, c["k"])),
    "Triu": operation(lambda c, x: np.triu(x, c["k"])),
    "BandPart": operation(movement.band_part),
    "Diagonal": operation(movement.diagonal),
    "Trace": operation(lambda c, x: np.sum(movement.diagonal(c, x), axis=-1)),
    "MatrixDiag": operation(movement.matrix_diag),
    "BatchFlatten": operation(lambda c, x: np.reshape(x, (len(x), -1))),
    "Rank": operation(lambda c, x: np.array(np.ndim(x))),
    "Size": operation(lambda c, x: np.array(np.size(x))),
    "Split": operation(movement.split),
    "Unstack": operation(movement.unstack),
    "Concatenate": listed(lambda c, xs: np.concatenate(xs, axis=c["axis"])),
    "Stack": listed(lambda c, xs: np.stack(xs, axis=c["axis"])),
    "Take": operation(movement.take),
    "GatherNd": operation(movement.gather_nd),
    "ReverseSequence": operation(movement.reverse_sequence),
    "TakeAlongAxis": operation(lambda c, x, i: np.take_along_axis(x, i, axis=c["axis"])),
    "OneHot": operation(movement.one_hot),
    "SequenceMask": operation(movement.sequence_mask),
}


EQUATIONS: Mapping[str, Equation] = {f"ops.{name}": equation for name, equation in _BARE.items()}
