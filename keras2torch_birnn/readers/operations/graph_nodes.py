"""Nodes of a TensorFlow graph in files of TF 1.13 to 2.3: ``TensorFlowOpLayer``.

``node_def`` is a protocol buffer written as JSON: ``op``, ``input`` (names), ``attr``. Inputs that
are constants stand in ``constants`` by their number; the tensors fill the other places.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.readers.files.strict_json import parse_object
from keras2torch_birnn.readers.operations.bind_arguments import (
    MASKS,
    NormalCall,
    Row,
    Values,
    activation,
    arange,
    begin_and_size,
    bind,
    cast,
    chain,
    constant_of_option,
    default_int64,
    dtype_kind,
    masked_key,
    move_sizes,
    one_diagonal,
    one_shift,
    only_pairs,
    padding,
    parts,
    pool,
    split_sizes,
    translate_k,
    unsupported,
)


def _one_hot(values: Values) -> Values:
    if values.pop("on", 1) != 1 or values.pop("off", 0) != 0:
        raise unsupported("OneHot with values other than 1 and 0 is not supported")
    return {**values, "dtype": dtype_kind(values.get("dtype"))}


def _full(values: Values) -> Values:
    shape, sizes = split_sizes(values.pop("shape", None))
    if isinstance(values.get("value"), bool) or not isinstance(values.get("value"), int | float):
        raise unsupported("Fill with something else than a number is not supported")
    dtype = dtype_kind(values.pop("dtype", None))
    return {**values, "shape": shape, "sizes": sizes, "dtype": dtype}


def _range(values: Values) -> Values:
    bounds = [values.pop(key, None) for key in ("start", "stop", "step")]
    return arange("Range", bounds, "int32")


def _list_first(values: Values) -> Values:
    """Split the inputs into a list of tensors and, last, the axis."""
    inputs = list(values.pop("inputs"))
    if not inputs:
        raise unsupported("a list of no tensors")
    return {**values, "xs": inputs[:-1], "axis": constant_of_option(inputs[-1])}


def _all_listed(values: Values) -> Values:
    tensors = list(values.pop("inputs"))
    return {**values, "xs": tensors}


def _equation(values: Values) -> Values:
    text = _text(values.pop("equation", ""))
    return {**_all_listed(values), "subscripts": text}


def _squeeze(values: Values) -> Values:
    return {**values, "axis": values.get("axis") or None}


def _channels_last(values: Values) -> Values:
    if values.pop("data_format", "TkhXQw==") != "TkhXQw==":  # NHWC
        raise unsupported("BiasAdd with channels first is not supported")
    return values


def _text(value: Any) -> str:
    """Decode an attribute that is text."""
    try:
        return base64.b64decode(str(value), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        raise unsupported("a text that cannot be read") from None


def _pad(values: Values) -> Values:
    return padding({**values, "mode": _text(values.get("mode"))})


def _pool(values: Values) -> Values:
    for key in ("padding", "data_format"):
        values[key] = _text(values.get(key))
    return pool(values)


def _square(values: Values) -> Values:
    if (values.pop("num_rows", -1), values.pop("num_cols", -1)) != (-1, -1):
        raise unsupported("MatrixDiagV3 of a wanted size is not supported")
    return one_diagonal(values)


def _slice(values: Values) -> Values:
    key = masked_key(values)
    return {**values, "key": key}


def _gather(values: Values) -> Values:
    return {**values, "axis": constant_of_option(values.get("axis"))}


# inputs in order, then attributes
_REDUCED = "x axis keep_dims=keepdims"
_POOLED = "x ksize=pool_size strides padding data_format"
_MATRICES = {
    name: Row("Matmul", f"x1 x2 {a}=transpose_a {b}=transpose_b")
    for name, a, b in (
        ("MatMul", "transpose_a", "transpose_b"),
        ("BatchMatMulV2", "adj_x", "adj_y"),
    )
}
ROWS: Mapping[str, Row] = {
    **{
        name: Row(op, "x1 x2 incompatible_shape_error=-")
        for name, op in {
            "Add": "Add", "AddV2": "Add", "Sub": "Subtract", "Mul": "Multiply",
            "RealDiv": "Divide", "DivNoNan": "DivideNoNan", "FloorDiv": "FloorDivide",
            "FloorMod": "Mod", "Pow": "Power", "Maximum": "Maximum", "Minimum": "Minimum",
            "Atan2": "Arctan2", "SquaredDifference": "SquaredDifference", "Equal": "Equal",
            "NotEqual": "NotEqual", "Less": "Less", "LessEqual": "LessEqual",
            "Greater": "Greater", "GreaterEqual": "GreaterEqual", "LogicalAnd": "LogicalAnd",
            "LogicalOr": "LogicalOr", "MulNoNan": "MultiplyNoNan", "Xlogy": "Xlogy",
            "Xdivy": "Xdivy",
        }.items()
    },
    **{
        name: Row(op, "x")
        for name, op in {
            "Neg": "Negative", "Abs": "Absolute", "Sign": "Sign", "Square": "Square",
            "Sqrt": "Sqrt", "Rsqrt": "Rsqrt", "Reciprocal": "Reciprocal", "Exp": "Exp",
            "Expm1": "Expm1", "Log": "Log", "Log1p": "Log1p", "Sin": "Sin", "Cos": "Cos",
            "Tan": "Tan", "Asin": "Arcsin", "Acos": "Arccos", "Atan": "Arctan", "Sinh": "Sinh",
            "Cosh": "Cosh", "Tanh": "Tanh", "Asinh": "Arcsinh", "Acosh": "Arccosh",
            "Atanh": "Arctanh", "Erf": "Erf", "Erfc": "Erfc", "Erfinv": "Erfinv",
            "Lgamma": "Lgamma", "Floor": "Floor", "Ceil": "Ceil",
            "Round": "Round", "Rint": "Round", "IsNan": "Isnan", "IsInf": "Isinf",
            "IsFinite": "Isfinite", "LogicalNot": "LogicalNot", "Identity": "Identity",
            "StopGradient": "Identity", "ZerosLike": "ZerosLike",
        }.items()
    },
    **{name: Row(name, _REDUCED) for name in ("Sum", "Mean", "Prod", "Max", "Min", "Any", "All")},
    **_MATRICES,
    "ArgMax": Row("Argmax", "x axis output_type=dtype", rework=default_int64),
    "ArgMin": Row("Argmin", "x axis output_type=dtype", rework=default_int64),
    "Cumsum": Row("Cumsum", "x axis exclusive reverse"),
    "Cumprod": Row("Cumprod", "x axis exclusive reverse"),
    "TopKV2": Row("TopK", "x k sorted", rework=chain(only_pairs("TopKV2"), translate_k)),
    "AddN": Row("AddN", "inputs", rework=_all_listed),
    "Einsum": Row("Einsum", "inputs equation", rework=_equation),
    "BiasAdd": Row("Add", "x1 x2 data_format", rework=_channels_last),
    **{
        name: Row(op, f"{_POOLED} explicit_paddings=-", rework=_pool)
        for name, op in {"MaxPool": "MaxPool", "AvgPool": "AveragePool"}.items()
    },
    "Reshape": Row("Reshape", "x shape", rework=move_sizes),
    "BroadcastTo": Row("BroadcastTo", "x shape", rework=move_sizes),
    "Tile": Row("Tile", "x shape", rework=move_sizes),
    "Fill": Row("Full", "shape value T=dtype", rework=_full),
    "Range": Row("Arange", "start stop step", rework=_range),
    "Transpose": Row("Transpose", "x axes"),
    "Squeeze": Row("Squeeze", "x squeeze_dims=axis", rework=_squeeze),
    "ExpandDims": Row("ExpandDims", "x axis"),
    "ReverseV2": Row("Flip", "x axis"),
    "Roll": Row("Roll", "x shift axis", rework=one_shift),
    "Pad": Row("Pad", "x pad_width", rework=padding),
    "PadV2": Row("Pad", "x pad_width value", rework=padding),
    "Split": Row("Split", "axis x num_split=sections", rework=parts),
    "SplitV": Row("Split", "x sections axis num_split=-", rework=parts),
    "MirrorPad": Row("Pad", "x pad_width mode", rework=_pad),
    "MatrixDiagV3": Row(
        "MatrixDiag", "x offset num_rows num_cols padding_value=! align=-", rework=_square
    ),
    "MatrixDiagPartV3": Row(
        "Diagonal",
        "x offset padding_value=! align=-",
        {"axis1": -2, "axis2": -1},
        one_diagonal,
    ),
    "MatrixBandPart": Row("BandPart", "x lower upper"),
    "Unpack": Row("Unstack", "x axis num"),
    "ConcatV2": Row("Concatenate", "inputs", rework=_list_first),
    "Pack": Row("Stack", "inputs axis", rework=_all_listed),
    "Slice": Row("GetItem", "x begin size", rework=begin_and_size),
    "StridedSlice": Row("GetItem", f"x begin end strides {' '.join(MASKS)}", rework=_slice),
    "Select": Row("Where", "condition x1 x2", {"broadcasts": False}),
    "SelectV2": Row("Where", "condition x1 x2"),
    "GatherV2": Row("Take", "x indices axis batch_dims", rework=_gather),
    "GatherNd": Row("GatherNd", "x indices"),
    "ReverseSequence": Row("ReverseSequence", "x lengths seq_dim=seq_axis batch_dim=batch_axis"),
    "OneHot": Row("OneHot", "x depth on off axis T=dtype", rework=_one_hot),
    "Cast": Row("Cast", "x DstT=dtype Truncate=!", rework=cast),
    "Shape": Row("Shape", "x out_type=-"),
    "Size": Row("Size", "x out_type=-"),
    "Softmax": activation("softmax"),
    "LogSoftmax": activation("log_softmax"),
    "Relu": activation("relu"),
    "Relu6": activation("relu6"),
    "LeakyRelu": activation("leaky_relu", "alpha=negative_slope"),
    "Elu": activation("elu"),
    "Selu": activation("selu"),
    "Sigmoid": activation("sigmoid"),
    "Softplus": activation("softplus"),
    "Softsign": activation("softsign"),
}  # fmt: skip
# Attributes without information: dtypes, numbers of inputs.
_NOTHING_NEW = ("T", "N", "Tidx", "TI", "SrcT", "Index", "num", "index_type")


def translate(config: Mapping[str, Any], tensors: Sequence[Any]) -> NormalCall:
    """Translate one node.

    Raises:
        UnsupportedLayerError: not an operation that is supported; UnsupportedOptionError: not with
            these inputs.
    """
    node = config.get("node_def")
    if isinstance(node, str):
        node = parse_object(node, place="node_def")
    node = node if isinstance(node, Mapping) else {}
    op = node.get("op")
    if not isinstance(op, str) or op not in ROWS:
        raise UnsupportedLayerError(
            f"operation {printable(op)} of TensorFlow is not supported",
            HOW_TO_REPLACE,
        )
    row = ROWS[op]
    inputs = _inputs(node, config.get("constants"), tensors)
    wanted = row.parameters()
    attributes = node.get("attr")
    named = {
        key: _attribute(value)
        for key, value in (attributes if isinstance(attributes, Mapping) else {}).items()
        if key in wanted or not (key in _NOTHING_NEW or key.startswith("T"))
    }
    if next(iter(wanted)) == "inputs":
        return bind(row, f"operation {op}", (inputs,), named)
    return bind(row, f"operation {op}", inputs, named)


def _inputs(node: Mapping[str, Any], constants: Any, tensors: Sequence[Any]) -> list[Any]:
    names = node.get("input")
    names = [n for n in names if not str(n).startswith("^")] if isinstance(names, list) else []
    constants = constants if isinstance(constants, Mapping) else {}
    held = {str(key): value for key, value in constants.items()}
    free = iter(tensors)
    found = [held[str(i)] if str(i) in held else next(free, None) for i in range(len(names))]
    if any(value is None for value in found) or next(free, None) is not None:
        raise unsupported(
            f"{len(tensors)} tensors and {len(held)} constants for {len(names)} inputs"
        )
    return found


def _attribute(value: Any) -> Any:
    """Parse an attribute: {"b": true}, {"i": "2"}, {"f": 0.1}, {"type": ...}, lists."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((form, held),) = value.items()
    if form == "list":
        held = held if isinstance(held, Mapping) else {}
        several = [(key, some) for key, some in held.items() if isinstance(some, list)]
        return [_attribute({key: one}) for key, some in several for one in some]
    try:
        return int(held) if form == "i" else held
    except (TypeError, ValueError, OverflowError):
        raise unsupported(f"an attribute that is no number: {printable(repr(held))}") from None
