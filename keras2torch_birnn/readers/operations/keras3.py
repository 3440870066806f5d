"""``keras.ops`` in files of Keras 3.0 to 3.15: a class, its options, a call's arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.operations.bind_arguments import (
    NormalCall,
    Rework,
    Row,
    Values,
    activation,
    at_places,
    begin_and_size,
    bind,
    cast,
    chain,
    convert_dtype,
    dtype_kind,
    is_tensor,
    move_sizes,
    numbers_in,
    one_shift,
    only_pairs,
    order,
    padding,
    pool,
    total_axes,
    unsupported,
)

_REDUCED = "x axis keepdims"


def _ravel(values: Values) -> Values:
    return {**values, "shape": [-1], "sizes": ()}


def _normalize(values: Values) -> Values:
    if values.pop("order", 2) != 2:
        raise unsupported("normalize with an order other than 2 is not supported")
    epsilon = values.pop("epsilon", None)
    return {**values, "smallest": 1e-7 if epsilon is None else epsilon}  # backend.epsilon()


def _average(values: Values) -> Values:
    if values.get("weights") is None:
        values["weights"] = 1.0
    return values


def _one_hot(values: Values) -> Values:
    return {**values, "dtype": dtype_kind(values.get("dtype")) or "float"}


def _key(values: Values) -> Values:
    """Translate the key of ``x[key]``: one part or a list of parts."""
    key = values.pop("key", None)
    if isinstance(key, Mapping) and key.get("class_name") == "__tuple__":
        key = key.get("items")
    return {**values, "key": [_part(part) for part in (key if isinstance(key, list) else [key])]}


def _part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("class_name") == "__slice__":
        config = part.get("config")
        config = config if isinstance(config, Mapping) else {}
        return [numbers_in(config.get(name)) for name in ("start", "stop", "step")]
    if isinstance(part, Mapping) and part.get("class_name") == "__ellipsis__":
        return "..."
    if part is None or type(part) is int:
        return part
    what = "a tensor" if is_tensor(part) else printable(repr(part))
    raise unsupported(f"an index that is {what} is not supported")


def _full_like(values: Values) -> Values:
    value = numbers_in(values.get("value"))
    if is_tensor(value) or isinstance(value, list):
        raise unsupported("full_like with a value that is a tensor is not supported")
    return {**values, "value": value, "dtype": dtype_kind(values.get("dtype"))}


def _round(values: Values) -> Values:
    if values.pop("decimals", 0) != 0:
        raise unsupported("round to other than whole numbers is not supported")
    return values


def _normalization(**others: float) -> Rework:
    """Return a rework that fills in defaults of a normalization: scale, offset and epsilon."""

    def rework(values: Values) -> Values:
        for name, value in others.items():
            if values.get(name) is None:
                values[name] = value
        if values.get("epsilon") is None:
            values["epsilon"] = 1e-7  # backend.epsilon()
        return values

    return rework


def _last_axis(values: Values) -> Values:
    if values.pop("axis", -1) != -1:
        raise unsupported("batch_normalization along another axis than the last is not supported")
    return values


def _join(axis: int) -> Rework:
    return lambda values: {**values, "axis": axis}


def _append(values: Values) -> Values:
    if values.get("axis") is None:
        raise unsupported("append of flat tensors (axis=None) is not supported")
    return {"xs": [values.get("x1"), values.get("x2")], "axis": values["axis"]}


_TWO = "x1 x2"
_ATTENTION = "query key value bias=! mask scale is_causal flash_attention=- attn_logits_soft_cap=!"
_MASKED = Row("MaskedDotProductAttention", _ATTENTION)
_BARE = {
    **{
        name: Row(name, _TWO)
        for name in (
            "Add Subtract Multiply Maximum Minimum FloorDivide Mod Power Arctan2 Logaddexp Hypot "
            "DivideNoNan Less LessEqual Greater GreaterEqual Equal NotEqual LogicalAnd LogicalOr "
            "LogicalXor Dot"
        ).split()
    },
    "Exp2": Row("Power", "x=x2", {"x1": 2.0}),
    "Deg2rad": Row("Multiply", "x=x1", {"x2": math.pi / 180}),
    "Rad2deg": Row("Multiply", "x=x1", {"x2": 180 / math.pi}),
    "Inner": Row("Tensordot", _TWO, {"axes": [[-1], [-1]]}),
    "Divide": Row("Divide", _TWO),
    "TrueDivide": Row("Divide", _TWO),
    "Matmul": Row("Matmul", _TWO),
    **{
        name: Row(name, "x")
        for name in (
            "Exp Expm1 Log Log1p Log2 Log10 Sqrt Rsqrt Sin Cos Tan Arcsin Arccos Arctan Sinh Cosh "
            "Tanh Arcsinh Arccosh Arctanh Erf Erfc Erfinv Reciprocal Floor Ceil Trunc Negative "
            "Absolute Sign Square Isnan Isinf Isfinite LogicalNot"
        ).split()
    },
    "Round": Row("Round", "x decimals", rework=_round),
    "Copy": Row("Identity", "x"),
    "StopGradient": Row("Identity", "variable=x"),
    **{
        name: Row(name, _REDUCED + " initial=! dtype=!")
        for name in "Sum Mean Prod Max Min Any All Logsumexp Var Std".split()
    },
    "Moments": Row("Moments", "x axes=axis keepdims synchronized=!"),
    "Norm": Row("Norm", "x ord axis keepdims", rework=order),
    "CountNonzero": Row("CountNonzero", "x axis", {"dtype": "int32"}),
    "Argmax": Row("Argmax", _REDUCED, {"dtype": "int32"}),
    "Argmin": Row("Argmin", _REDUCED, {"dtype": "int32"}),
    "Average": Row("Average", "x axis weights", rework=_average),
    "Normalize": Row("Normalize", "x axis order epsilon", rework=_normalize),
    "Cumsum": Row("Cumsum", "x axis dtype=!"),
    "Cumprod": Row("Cumprod", "x axis dtype=!"),
    "Sort": Row("Sort", "x axis"),
    "Argsort": Row("Argsort", "x axis", {"dtype": "int32"}),
    "TopK": Row("TopK", "x k sorted", rework=only_pairs("top_k")),
    "Tensordot": Row("Tensordot", "x1 x2 axes", rework=total_axes),
    "Reshape": Row("Reshape", "x newshape=shape", rework=move_sizes),
    "Ravel": Row("Reshape", "x", rework=_ravel),
    "BroadcastTo": Row("BroadcastTo", "x shape", rework=move_sizes),
    "Tile": Row("Tile", "x repeats=shape", rework=move_sizes),
    "GetItem": Row("GetItem", "x key", rework=_key),
    "Slice": Row("GetItem", "inputs=x start_indices=begin shape=size", rework=begin_and_size),
    "Transpose": Row("Transpose", "x axes"),
    "Swapaxes": Row("Swapaxes", "x axis1 axis2"),
    "Moveaxis": Row("Moveaxis", "x source destination"),
    "Squeeze": Row("Squeeze", "x axis"),
    "ExpandDims": Row("ExpandDims", "x axis"),
    "Flip": Row("Flip", "x axis"),
    "Roll": Row("Roll", "x shift axis", rework=one_shift),
    "Repeat": Row("Repeat", "x repeats axis"),
    "Pad": Row("Pad", "x pad_width mode constant_values=value", rework=padding),
    "Diff": Row("Diff", "a=x n axis"),
    "Tril": Row("Tril", "x k"),
    "LayerNorm": Row(
        "LayerNorm",
        "x gamma beta axis epsilon rms_scaling=!",
        rework=_normalization(gamma=1.0, beta=0.0),
    ),
    "RMSNorm": Row("RMSNorm", "x scale axis epsilon", rework=_normalization(scale=1.0)),
    "BatchNorm": Row(
        "BatchNorm",
        "x mean variance offset scale axis epsilon",
        rework=chain(_last_axis, _normalization(offset=0.0, scale=1.0)),
    ),
    "DotProductAttention": Row("DotProductAttention", _ATTENTION),
    "MaxPool": Row("MaxPool", "inputs=x pool_size strides padding data_format", rework=pool),
    "AveragePool": Row(
        "AveragePool", "inputs=x pool_size strides padding data_format", rework=pool
    ),
    "Threshold": Row("Threshold", "x threshold default_value=value"),
    "Size": Row("Size", "x"),
    "Hstack": Row("Concatenate", "xs", rework=_join(1)),
    "Vstack": Row("Concatenate", "xs", rework=_join(0)),
    "Append": Row("Concatenate", "x1 x2 axis", rework=_append),
    "Diagonal": Row("Diagonal", "x offset axis1 axis2"),
    "Trace": Row("Trace", "x offset axis1 axis2"),
    "Triu": Row("Triu", "x k"),
    "Split": Row("Split", "x indices_or_sections=sections axis", rework=at_places),
    "Unstack": Row("Unstack", "x num axis"),
    "Concatenate": Row("Concatenate", "xs axis"),
    "Stack": Row("Stack", "x=xs axis"),
    "Where": Row("Where", "condition x1 x2"),
    "Clip": Row("Clip", "x x_min x_max"),
    "Take": Row("Take", "x indices axis"),
    "TakeAlongAxis": Row("TakeAlongAxis", "x indices axis"),
    "OneHot": Row("OneHot", "x num_classes=depth axis dtype sparse=!", rework=_one_hot),
    "Cast": Row("Cast", "x dtype", rework=cast),
    "ConvertToTensor": Row("ConvertToTensor", "x dtype sparse=! ragged=!", rework=convert_dtype()),
    "ZerosLike": Row("ZerosLike", "x dtype sparse=!", rework=convert_dtype()),
    "OnesLike": Row("OnesLike", "x dtype sparse=!", rework=convert_dtype()),
    "FullLike": Row("FullLike", "x fill_value=value dtype sparse=!", rework=_full_like),
    "Relu": activation("relu"),
    "ReLU": activation("relu", "negative_slope", "max_value", "threshold"),
    "Relu6": activation("relu6"),
    "LeakyRelu": activation("leaky_relu", "negative_slope"),
    "Elu": activation("elu", "alpha"),
    "Celu": activation("celu", "alpha"),
    "Selu": activation("selu"),
    "Gelu": activation("gelu", "approximate"),
    "Silu": activation("silu"),
    "Sigmoid": activation("sigmoid"),
    "HardSigmoid": activation("hard_sigmoid_1/6"),
    "HardSilu": activation("hard_silu"),
    "HardTanh": activation("hard_tanh"),
    "TanhShrink": activation("tanh_shrink"),
    "HardShrink": activation("hard_shrink", "threshold"),
    "SoftShrink": activation("soft_shrink", "threshold"),
    "Softplus": activation("softplus"),
    "Softsign": activation("softsign"),
    "LogSigmoid": activation("log_sigmoid"),
    "Softmax": activation("softmax", "axis"),
    "LogSoftmax": activation("log_softmax", "axis"),
    "Sparsemax": activation("sparsemax", "axis"),
    "SparsePlus": activation("sparse_plus"),
    "SparseSigmoid": activation("sparse_sigmoid"),
    "Squareplus": activation("squareplus", "b"),
    "Glu": activation("glu", "axis"),
}
ROWS: Mapping[str, Row] = {**_BARE, "Einsum": Row("Einsum", "subscripts")}


def translate(
    class_name: str, config: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> NormalCall:
    """Translate one call of an operation.

    Raises:
        UnsupportedOptionError: something about it is not supported.
    """
    row, function = ROWS[class_name], f"operation {class_name}"
    named = {
        key: value
        for key, value in {**config, **kwargs}.items()
        if key not in ("name", "trainable") and not (key == "dtype" and "dtype" not in row.names)
    }
    if class_name == "Einsum":
        operands, args = list(args), []
        named["subscripts"] = numbers_in(named.get("subscripts"))
        return NormalCall("Einsum", (operands,), named)
    # Options of the config come between the arguments of a call.
    names = list(row.parameters())
    free = [name for name in names if name not in named]
    named.update(zip(free, args, strict=False))
    if class_name == "DotProductAttention":
        if named.get("mask") is not None:
            row = _MASKED
        else:
            named.pop("mask", None)
    return bind(row, function, (), named)
