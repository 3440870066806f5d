"""TensorFlow functions in files of tf.keras 2.4 to 2.15 and tf_keras: TFOpLambda, SlicingOpLambda.

``config.function`` is the function's public name. The first argument stands in ``inbound_nodes``,
the others beside it as keywords; what Keras could not name there is lost (``==`` loses its second
side, ``tf.einsum`` its tensors), and those are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.limits import MAX_SIZE
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
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
    convert_dtype,
    default_int64,
    dtype_kind,
    is_tensor,
    masked_key,
    move_sizes,
    one_diagonal,
    one_shift,
    only_pairs,
    order,
    padding,
    parts,
    pool,
    split_sizes,
    tensor,
    total_axes,
    translate_k,
    unsupported,
)

_TWO = "x=x1 y=x2"
_REDUCED = "input_tensor=x axis keepdims"


def _first_axis(values: Values) -> Values:
    """Fill in the axis of ``argmax``: the first (Keras 3: all)."""
    axis = values.get("axis")
    return default_int64({**values, "axis": 0 if axis is None else axis})


def _direction(values: Values) -> Values:
    direction = values.pop("direction", None) or "ASCENDING"
    return {**values, "descending": direction == "DESCENDING"}


def _gather(values: Values) -> Values:
    axis, batch = values.get("axis"), values.get("batch_dims") or 0
    return {**values, "axis": batch if axis is None else axis, "batch_dims": batch}


def _one_hot(values: Values) -> Values:
    if values.pop("on", None) not in (None, 1) or values.pop("off", None) not in (None, 0):
        raise unsupported("one_hot with values other than 1 and 0 is not supported")
    axis = values.get("axis")
    dtype = dtype_kind(values.get("dtype")) or "float"
    return {**values, "axis": -1 if axis is None else axis, "dtype": dtype}


def _l2(values: Values) -> Values:
    epsilon = values.pop("epsilon", None)
    epsilon = 1e-12 if epsilon is None else epsilon
    if not isinstance(epsilon, float | int) or epsilon < 0:
        raise unsupported("l2_normalize with an epsilon that is no number")
    return {**values, "smallest": float(epsilon) ** 0.5}


def _norm(values: Values) -> Values:
    if values.get("keepdims") is None:
        values.pop("keepdims", None)
    return order(values)


def _over(values: Values) -> Values:
    """Translate a reciprocal to 1 / x."""
    return {"x1": 1.0, "x2": values.get("x")}


def _fill(number: float | None) -> Any:
    """Return the rework of ``fill``, ``zeros``, ``ones``, whose shape may contain tensors."""

    def rework(values: Values) -> Values:
        shape, sizes = split_sizes(values.pop("shape", None))
        value = values.pop("value", number)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise unsupported("a fill with something else than a number is not supported")
        default = "float" if number is not None or isinstance(value, float) else "int32"
        dtype = dtype_kind(values.get("dtype")) or default
        return {"shape": shape, "sizes": sizes, "value": value, "dtype": dtype}

    return rework


def _range(values: Values) -> Values:
    start, stop, step = (values.pop(key, None) for key in ("start", "stop", "step"))
    if stop is None:
        start, stop = 0, start
    bounds = [0 if start is None else start, stop, 1 if step is None else step]
    return arange("range", bounds, dtype_kind(values.get("dtype")) or "int32")


def _sequence_mask(values: Values) -> Values:
    longest = values.pop("maxlen", None)
    if longest is None:
        raise unsupported("sequence_mask without maxlen is not supported")
    sizes = [longest] if is_tensor(longest) else []
    dtype = dtype_kind(values.get("dtype")) or "bool"
    return {**values, "maxlen": None if sizes else longest, "sizes": sizes, "dtype": dtype}


def _not_batched(values: Values) -> Values:
    where = values.pop("data_format", None)
    if where not in (None, "NHWC", "NWC", "N..C"):
        raise unsupported("bias_add with channels first is not supported")
    return values


def _matmul(values: Values) -> Values:
    for flag, adjoint in (("transpose_a", "adjoint_a"), ("transpose_b", "adjoint_b")):
        if values.pop(adjoint, None):
            values[flag] = True  # the same for real numbers
    return values


def _band(values: Values) -> Values:
    lower, upper = values.pop("lower", None), values.pop("upper", None)
    if type(lower) is not int or type(upper) is not int:
        raise unsupported("band_part whose numbers of diagonals are tensors is not supported")
    if lower >= 0 and upper >= 0:
        return {**values, "lower": lower, "upper": upper, "op": "BandPart"}
    if lower < 0 and upper < 0:
        return {**values, "k": MAX_SIZE, "op": "Tril"}
    return {**values, "k": upper if lower < 0 else -lower, "op": "Tril" if lower < 0 else "Triu"}


def _slice(values: Values) -> Values:
    key = masked_key(values)
    return {**values, "key": key}


_UNARY = {
    **{
        f"math.{name}": op
        for name, op in {
            "negative": "Negative", "abs": "Absolute", "sign": "Sign", "square": "Square",
            "sqrt": "Sqrt", "rsqrt": "Rsqrt", "reciprocal": "Reciprocal", "exp": "Exp",
            "expm1": "Expm1", "log": "Log", "log1p": "Log1p", "sin": "Sin", "cos": "Cos",
            "tan": "Tan", "asin": "Arcsin", "acos": "Arccos", "atan": "Arctan", "sinh": "Sinh",
            "cosh": "Cosh", "tanh": "Tanh", "asinh": "Arcsinh", "acosh": "Arccosh",
            "atanh": "Arctanh", "erf": "Erf", "erfc": "Erfc", "erfinv": "Erfinv",
            "lgamma": "Lgamma", "floor": "Floor", "ceil": "Ceil", "round": "Round",
            "rint": "Round", "is_nan": "Isnan", "is_inf": "Isinf", "is_finite": "Isfinite",
            "logical_not": "LogicalNot",
        }.items()
    },
    "identity": "Identity",
    "stop_gradient": "Identity",
}  # fmt: skip
_BINARY = {
    "__operators__.add": "Add", "math.add": "Add", "math.subtract": "Subtract",
    "math.multiply": "Multiply", "math.truediv": "Divide",
    "math.divide_no_nan": "DivideNoNan", "math.multiply_no_nan": "MultiplyNoNan",
    "math.xlogy": "Xlogy", "math.xlog1py": "Xlog1py", "math.xdivy": "Xdivy",
    "compat.v1.floor_div": "FloorDivide", "math.floormod": "Mod", "math.pow": "Power",
    "math.maximum": "Maximum", "math.minimum": "Minimum",
    "math.squared_difference": "SquaredDifference", "math.equal": "Equal",
    "math.not_equal": "NotEqual", "math.less": "Less", "math.less_equal": "LessEqual",
    "math.greater": "Greater", "math.greater_equal": "GreaterEqual",
    "math.logical_and": "LogicalAnd", "math.logical_or": "LogicalOr",
    "math.logical_xor": "LogicalXor",
}  # fmt: skip
_REDUCTIONS = {
    "sum": "Sum", "mean": "Mean", "max": "Max", "min": "Min", "prod": "Prod", "any": "Any",
    "all": "All", "logsumexp": "Logsumexp", "variance": "Var", "std": "Std",
    "euclidean_norm": "Norm",
}  # fmt: skip

ROWS: Mapping[str, Row] = {
    **{name: Row(op, "x input=x") for name, op in _UNARY.items()},
    **{name: Row(op, _TWO) for name, op in _BINARY.items()},
    "math.reciprocal_no_nan": Row("DivideNoNan", "x", rework=_over),
    "compat.v1.math.scalar_mul": Row("Multiply", "scalar=x1 x=x2"),
    "math.atan2": Row("Arctan2", "y=x1 x=x2"),
    "__operators__.eq": Row("Equal", "self=x1 other=x2", saved=False),
    "__operators__.ne": Row("NotEqual", "self=x1 other=x2", saved=False),
    **{f"math.reduce_{of}": Row(op, _REDUCED) for of, op in _REDUCTIONS.items()},
    "math.argmax": Row(
        "Argmax", "input=x axis output_type=dtype", rework=_first_axis
    ),
    "math.argmin": Row("Argmin", "input=x axis output_type=dtype", rework=_first_axis),
    "math.count_nonzero": Row("CountNonzero", "input=x axis keepdims dtype", rework=default_int64),
    "math.l2_normalize": Row("Normalize", "x axis epsilon dim=axis", rework=_l2),
    "compat.v1.norm": Row("Norm", "tensor=x ord axis keepdims keep_dims=keepdims", rework=_norm),
    "math.cumsum": Row("Cumsum", "x axis exclusive reverse", {"axis": 0}),
    "math.cumprod": Row("Cumprod", "x axis exclusive reverse", {"axis": 0}),
    "math.add_n": Row("AddN", "inputs=xs"),
    "math.accumulate_n": Row("AddN", "inputs=xs shape=- tensor_dtype=-"),
    "identity_n": Row("IdentityN", "input=xs"),
    "ensure_shape": Row("Identity", "x shape=-"),
    "keras.backend.batch_flatten": Row("BatchFlatten", "x"),
    "sort": Row("Sort", "values=x axis direction", rework=_direction),
    "argsort": Row(
        "Argsort", "values=x axis direction stable=-", {"dtype": "int32"}, _direction
    ),
    "math.top_k": Row(
        "TopK", "input=x k sorted index_type=!", {"k": 1}, chain(only_pairs("top_k"), translate_k)
    ),
    "clip_by_norm": Row("ClipByNorm", "t=x clip_norm=largest axes=axis"),
    "linalg.matmul": Row(
        "Matmul",
        "a=x1 b=x2 transpose_a transpose_b adjoint_a adjoint_b a_is_sparse=- b_is_sparse=- "
        "output_type=! grad_a=- grad_b=-",
        rework=_matmul,
    ),
    "tensordot": Row("Tensordot", "a=x1 b=x2 axes", rework=total_axes),
    "einsum": Row("Einsum", "equation=subscripts inputs=xs", saved=False),
    "nn.bias_add": Row("Add", "value=x1 bias=x2 data_format", rework=_not_batched),
    "reshape": Row("Reshape", "tensor=x shape", rework=move_sizes),
    "broadcast_to": Row("BroadcastTo", "input=x shape", rework=move_sizes),
    "tile": Row("Tile", "input=x multiples=shape", rework=move_sizes),
    "fill": Row("Full", "dims=shape value layout=-", rework=_fill(None)),
    "zeros": Row("Full", "shape dtype layout=-", rework=_fill(0.0)),
    "ones": Row("Full", "shape dtype layout=-", rework=_fill(1.0)),
    "range": Row("Arange", "start limit=stop delta=step dtype", rework=_range),
    **{
        f"nn.{name}": Row(op, "input=x ksize=pool_size strides padding data_format", rework=pool)
        for name, op in {
            "max_pool1d": "MaxPool", "max_pool2d": "MaxPool",
            "avg_pool1d": "AveragePool", "avg_pool2d": "AveragePool", "avg_pool": "AveragePool",
        }.items()
    },
    **{
        f"compat.v1.nn.{name}": Row(
            op, "value=x ksize=pool_size strides padding data_format input=x", rework=pool
        )
        for name, op in {"max_pool": "MaxPool", "avg_pool": "AveragePool"}.items()
    },
    "compat.v1.transpose": Row("Transpose", "a=x perm=axes conjugate=!"),
    "compat.v1.squeeze": Row("Squeeze", "input=x axis squeeze_dims=axis"),
    "expand_dims": Row("ExpandDims", "input=x axis"),
    "reverse": Row("Flip", "tensor=x axis"),
    "roll": Row("Roll", "input=x shift axis", rework=one_shift),
    "repeat": Row("Repeat", "input=x repeats axis"),
    "compat.v1.pad": Row(
        "Pad", "tensor=x paddings=pad_width mode constant_values=value", rework=padding
    ),
    "linalg.adjoint": Row("Swapaxes", "matrix=x", {"axis1": -2, "axis2": -1}),
    "linalg.diag_part": Row(
        "Diagonal",
        "input=x k=offset padding_value=! align=-",
        {"axis1": -2, "axis2": -1},
        one_diagonal,
    ),
    "linalg.trace": Row("Trace", "x", {"offset": 0, "axis1": -2, "axis2": -1}),
    "linalg.diag": Row(
        "MatrixDiag", "diagonal=x k=offset num_rows=! num_cols=! padding_value=! align=-",
        rework=one_diagonal,
    ),
    "linalg.band_part": Row("Tril", "input=x num_lower=lower num_upper=upper", rework=_band),
    "split": Row(
        "Split", "value=x num_or_size_splits=sections axis num=-", {"axis": 0}, parts
    ),
    "unstack": Row("Unstack", "value=x num axis"),
    "concat": Row("Concatenate", "values=xs axis"),
    "stack": Row("Stack", "values=xs axis"),
    "slice": Row("GetItem", "input_=x begin size", rework=begin_and_size),
    "strided_slice": Row(
        "GetItem", f"input_=x begin end strides {' '.join(MASKS)} var=!", rework=_slice
    ),
    "where": Row("Where", "condition x=x1 y=x2"),
    "compat.v1.where": Row("Where", "condition x=x1 y=x2", {"broadcasts": False}),
    "clip_by_value": Row("Clip", "t=x clip_value_min=x_min clip_value_max=x_max"),
    "compat.v1.gather": Row(
        "Take", "params=x indices validate_indices=- axis batch_dims", rework=_gather
    ),
    "compat.v1.gather_nd": Row("GatherNd", "params=x indices batch_dims bad_indices_policy=!"),
    "compat.v1.nn.embedding_lookup": Row(
        "Take", "params=x ids=indices partition_strategy=- validate_indices=- max_norm=!",
        {"axis": 0},
    ),
    "reverse_sequence": Row(
        "ReverseSequence", "input=x seq_lengths=lengths seq_axis batch_axis seq_dim=! batch_dim=!"
    ),
    "one_hot": Row(
        "OneHot", "indices=x depth on_value=on off_value=off axis dtype", rework=_one_hot
    ),
    "sequence_mask": Row("SequenceMask", "lengths=x maxlen dtype", rework=_sequence_mask),
    "cast": Row("Cast", "x dtype", rework=cast),
    "compat.v1.shape": Row("Shape", "input=x out_type=-"),
    "compat.v1.size": Row("Size", "input=x out_type=-"),
    "rank": Row("Rank", "input=x"),
    "zeros_like": Row("ZerosLike", "input=x dtype layout=-", rework=convert_dtype()),
    "compat.v1.zeros_like": Row("ZerosLike", "tensor=x dtype optimize=-", rework=convert_dtype()),
    "compat.v1.ones_like": Row("OnesLike", "tensor=x dtype optimize=-", rework=convert_dtype()),
    "ones_like": Row("OnesLike", "input=x dtype layout=-", rework=convert_dtype()),
    "nn.softmax": activation("softmax", "logits=x", "axis", "dim=axis"),
    "compat.v1.nn.softmax": activation("softmax", "logits=x", "axis", "dim=axis"),
    "nn.log_softmax": activation("log_softmax", "logits=x", "axis", "dim=axis"),
    "nn.relu": activation("relu", "features=x"),
    "nn.relu6": activation("relu6", "features=x"),
    "nn.leaky_relu": activation("leaky_relu", "features=x", "alpha=negative_slope"),
    "nn.elu": activation("elu", "features=x"),
    "nn.selu": activation("selu", "features=x"),
    "nn.gelu": activation("gelu", "features=x", "approximate"),
    "nn.silu": activation("silu", "features=x"),
    "math.sigmoid": activation("sigmoid"),
    "math.log_sigmoid": activation("log_sigmoid"),
    "math.softplus": activation("softplus", "features=x"),
    "nn.softsign": activation("softsign", "features=x"),
}  # fmt: skip

_REASONS: Mapping[str, str] = {
    "nn.dropout": "draws random numbers, at inference too",
    "compat.v1.boolean_mask": "gives a tensor whose shape depends on its values",
    "boolean_mask": "gives a tensor whose shape depends on its values",
}


def translate(
    class_name: str, config: Mapping[str, Any], node: Any, names: Collection[str]
) -> NormalCall:
    """Translate one call; ``names``: of all layers of the model.

    Raises:
        UnsupportedLayerError: not a function that is supported; UnsupportedOptionError: not with
            these arguments.
    """
    function = config.get("function")
    first, kwargs = _unfold(node, names)
    if class_name == "SlicingOpLambda" and function == "__operators__.getitem":
        return _translate_slice(first, kwargs)
    if not isinstance(function, str) or function not in ROWS:
        reason = _REASONS.get(str(function), "is not supported")
        raise UnsupportedLayerError(
            f"operation tf.{printable(function)} {reason}",
            HOW_TO_REPLACE,
        )
    found = bind(ROWS[function], f"tf.{function}", (first,), kwargs)
    op = found.options.get("op", found.op)
    return NormalCall(op, found.arguments, {k: v for k, v in found.options.items() if k != "op"})


def _unfold(node: Any, names: Collection[str]) -> tuple[Any, dict[str, Any]]:
    """Return the first argument, and the keywords that are repeated beside its tensors."""
    found: list[Mapping[str, Any]] = []

    def value(part: Any) -> Any:
        if isinstance(part, list) and len(part) == 4 and isinstance(part[3], Mapping):
            found.append(part[3])
            if part[0] == "_CONSTANT_VALUE":
                return part[2]
            if isinstance(part[0], str) and part[0] in names:
                return tensor(*part[:3])
            raise unsupported(f"an input from {printable(repr(part[0]))}, no layer of the model")
        return [value(inner) for inner in part] if isinstance(part, list) else part

    first = value(node)
    return first, {key: _value(v, names) for key, v in (found[0] if found else {}).items()}


def _value(value: Any, names: Collection[str]) -> Any:
    """Convert a keyword's value; a list [name, int, int] is a reference."""
    if isinstance(value, list):
        kinds = [type(part) for part in value]
        if kinds == [str, int, int] and value[0] in names:
            return tensor(*value)
        return [_value(part, names) for part in value]
    if isinstance(value, Mapping) and set(value) == {"start", "stop", "step"}:
        return {key: _value(part, names) for key, part in value.items()}
    return value


def _translate_slice(x: Any, kwargs: Mapping[str, Any]) -> NormalCall:
    spec = kwargs.get("slice_spec")
    key: list[Any] = []
    sizes: list[Any] = []

    def bound(part: Any) -> Any:
        if is_tensor(part):
            sizes.append(part)
            return "@"
        return constant_of_option(part)

    for part in spec if isinstance(spec, list) else [spec]:
        if isinstance(part, Mapping) and set(part) == {"start", "stop", "step"}:
            key.append([bound(part[name]) for name in ("start", "stop", "step")])
        elif part == "Ellipsis" or (
            isinstance(part, Mapping) and part.get("class_name") == "__ellipsis__"
        ):
            key.append("...")
        else:
            key.append(bound(part))
    return NormalCall("GetItem", (x, *sizes), {"key": key})
