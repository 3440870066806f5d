"""Operations: the calls of a graph that are not layers, under one name for all dialects.

``tf.*`` and ``keras.backend.*`` of tf.keras (TFOpLambda, SlicingOpLambda, TensorFlowOpLayer) and
``keras.ops`` of Keras 3 are all read into these rows. The names are those of Keras 3. An argument
is a tensor, a number or a ``Constant``; everything else is an option. "shape", "key" and "bounds"
hold None or "@" for a size that is one more argument. Operations take and return no masks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.limits import (
    MAX_AXIS,
    MAX_EINSUM_LENGTH,
    MAX_JSON_VALUES,
    MAX_PARTS,
    MAX_RANK,
    MAX_SIZE,
)
from keras2torch_birnn.schema.operations import dtypes, indexing, movement, shapes
from keras2torch_birnn.schema.operations.dtypes import Rule
from keras2torch_birnn.schema.operations.shapes import Output
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    axes,
    choice,
    flag,
    number,
    optional,
    parse_activation,
    size,
    sizes,
)
from keras2torch_birnn.schema.row import Schema, ShapeError

_TOGETHER = dtypes.together()


@dataclass(frozen=True)
class Operation(Schema):
    """A row of an operation. ``dtypes``: the rule of its argument and result dtypes."""

    dtypes: Rule = _TOGETHER


_KINDS_OF_ALL = ("float", "int32", "int64", "bool", "size", "a float", "an int", "a bool")


def _kinds(value: Any) -> Any:
    """Check the dtypes that ``readers.operations.infer_dtypes`` found; no Keras file has them."""
    lists = ("has", "wants", "gives")
    if not isinstance(value, Mapping) or set(value) != {*lists, "passes_mask"}:
        raise BadOptionError("kinds are expected")
    kind = choice(REQUIRED, *_KINDS_OF_ALL)
    return {
        **{name: _many(kind, MAX_JSON_VALUES).parse(value[name]) for name in lists},
        "passes_mask": choice(None, None, False, True).parse(value["passes_mask"]),
    }


# Of every operation, in the words of the OUT file: the dtypes of its arguments ("has"), those to
# which they are cast ("wants") and those of its results ("gives").
_SETTLED: Mapping[str, Option] = {"kinds": optional(Option(None, _kinds))}

_WHOLE = ("int32", "int64", "bool")


def _axis(default: Any = REQUIRED) -> Option:
    def parse(value: Any) -> int:
        if type(value) is not int or not -MAX_AXIS <= value <= MAX_AXIS:
            raise BadOptionError("the number of an axis is expected")
        return value

    return Option(default, parse)


def _axes(default: Any = None) -> Option:
    every = axes(None)

    def parse(value: Any) -> tuple[int, ...]:
        return tuple(_axis().parse(axis) for axis in every.parse(value))

    option = Option(default, parse)
    return option if default is REQUIRED else optional(option)


def _kind(default: Any = REQUIRED) -> Option:
    return choice(default, "float", "int32", "int64", "bool")


def _many(option: Option, most: int = MAX_PARTS) -> Option:
    """Make an option that is a tuple of such values."""

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise BadOptionError("a list is expected")
        return tuple(option.parse(part) for part in value)

    return Option(option.default, parse)


def _shape(least: int) -> Option:
    return optional(_many(optional(size(least=least)), MAX_RANK))


def _sections(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return _many(size(least=-1), MAX_PARTS).parse(value)
    count: int = size().parse(value)
    if count > MAX_PARTS:
        raise BadOptionError(f"at most {MAX_PARTS} parts are expected")
    return count


def check_sizes(class_name: str, config: Mapping[str, Any], count: int) -> None:
    """Refuse an operation that is called with another number of sizes than its options leave open.

    count: of all arguments.

    Raises:
        ShapeError: it is.
    """
    row = OPS.get(class_name)
    if row is None or "sizes" not in row.arguments:
        return
    wanted = len(row.arguments) - 1 + _count_open(config)
    if count != wanted:
        raise ShapeError(f"{wanted} arguments are expected, found {count}")


def _count_open(config: Mapping[str, Any]) -> int:
    """Count the sizes that an operation's options leave to its arguments."""
    shape = config.get("shape", ())
    whole = sum(config.get(key, 0) is None for key in ("shape", "k", "maxlen"))
    bounds = (*config.get("key", ()), config.get("bounds", ()))
    parts = [p for part in bounds for p in (part if isinstance(part, tuple) else (part,))]
    return whole + sum(size is None for size in shape or ()) + parts.count("@")


_PLACE = size(least=-MAX_SIZE - 1)


def _key(value: Any) -> tuple[Any, ...]:
    """Parse an index: integers, (start, stop, step), None for a new axis, "..." """
    if not isinstance(value, list | tuple) or len(value) > MAX_RANK or list(value).count("...") > 1:
        raise BadOptionError("a list of indices is expected")
    return tuple(_part(part) for part in value)


def _part(part: Any) -> Any:
    if part is None or (isinstance(part, str) and part in ("...", "@")):
        return part
    if isinstance(part, list | tuple) and len(part) == 3:
        start, stop, step = (p if p is None or p == "@" else _PLACE.parse(p) for p in part)
        if step == 0:
            raise BadOptionError("a slice with step 0")
        return start, stop, step
    return _PLACE.parse(part)


def _bounds(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != 3 or value[2] == 0:
        raise BadOptionError("start, stop and step are expected")
    return tuple(part if part == "@" else _PLACE.parse(part) for part in value)


_EINSUM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*(,[A-Za-z]*(\.\.\.)?[A-Za-z]*)*")


def _subscripts(value: Any) -> str:
    """Parse an einsum's subscripts: no blanks, the output explicit."""
    text = value.replace(" ", "") if isinstance(value, str) else ""
    inputs, arrow, output = text.partition("->")
    if not text or len(text) > MAX_EINSUM_LENGTH or not _EINSUM.fullmatch(inputs):
        raise BadOptionError("terms such as 'bij,bjk->bik' are expected")
    letters = inputs.replace(",", "").replace(".", "")
    if not arrow:
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        output = ("..." if "..." in inputs else "") + "".join(once)
    plain = output.replace("...", "", 1)
    if not set(plain) <= set(letters) or len(set(plain)) < len(plain):
        raise BadOptionError("every letter of the output stands once in it, and in an input")
    if "..." in inputs and "..." not in output:
        raise BadOptionError("an ellipsis that is summed over")
    if any(len(set(t)) < len(t) for t in inputs.replace("...", "").split(",")):
        raise BadOptionError("a letter twice in one term")
    return f"{inputs}->{output}"


def _pairs(value: Any) -> tuple[tuple[int, ...], ...]:
    pair = sizes(least=0)
    found = tuple(pair.parse(part) for part in value) if isinstance(value, list | tuple) else ()
    if not found or any(len(part) != 2 for part in found):
        raise BadOptionError("a list of [before, after] is expected")
    return found


def _two_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    found: tuple[tuple[int, ...], ...] = _many(_many(_axis(), 32), 2).parse(value)
    if len(found) != 2 or len(found[0]) != len(found[1]):
        raise BadOptionError("as many axes of one tensor as of the other are expected")
    return found


def _one(output: Output, rule: Rule, **options: Option) -> Operation:
    """Make a row with one argument."""
    return Operation(options, output=shapes.checked(output), arguments=("x",), dtypes=rule)


def _two(output: Output, rule: Rule, **options: Option) -> Operation:
    """Make a row with two arguments."""
    return Operation(options, output=shapes.checked(output), arguments=("x1", "x2"), dtypes=rule)


def _listed(output: Output, rule: Rule, **options: Option) -> Operation:
    """Make a row whose argument is a list."""
    shape = shapes.checked(output)
    return Operation(options, output=shape, arguments=("xs",), listed=True, dtypes=rule)


def _sized(output: Output, rule: Rule, *arguments: str, **options: Option) -> Operation:
    """Make a row with arguments and, after them, sizes."""
    names = (*arguments, "sizes")
    return Operation(options, output=shapes.checked(output), arguments=names, dtypes=rule)


_REDUCED = {"axis": _axes(), "keepdims": flag(False)}
_SMOOTH = (
    "Exp Expm1 Log Log1p Log2 Log10 Sqrt Rsqrt Sin Cos Tan Arcsin Arccos Arctan Sinh Cosh Tanh "
    "Arcsinh Arccosh Arctanh Erf Erfc Erfinv Lgamma Reciprocal"
).split()
_NUMBERS = dtypes.together("bool")
_FIRM = dtypes.together("bool", "size")
_ANY = dtypes.together("size")
_BARE = {
    **dict.fromkeys(_SMOOTH, _one(shapes.same, dtypes.floats)),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Trunc"), _one(shapes.same, dtypes.reals)),
    **dict.fromkeys(("Negative", "Absolute", "Sign", "Square"), _one(shapes.same, _FIRM)),
    **dict.fromkeys(("Isnan", "Isinf", "Isfinite"), _one(shapes.same, dtypes.compared("size"))),
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "FloorDivide", "Maximum", "Minimum"),
        _two(shapes.elementwise, _NUMBERS),
    ),
    **dict.fromkeys(("Mod", "Power", "SquaredDifference"), _two(shapes.elementwise, _FIRM)),
    **dict.fromkeys(
        ("Divide", "Arctan2", "Logaddexp", "Hypot"), _two(shapes.elementwise, dtypes.divided)
    ),
    # 0 where x2 is 0, or (the last three) where x1 is
    **dict.fromkeys(
        ("DivideNoNan", "MultiplyNoNan", "Xlogy", "Xlog1py", "Xdivy"),
        _two(shapes.elementwise, dtypes.floats),
    ),
    **dict.fromkeys(
        ("Less", "LessEqual", "Greater", "GreaterEqual"),
        _two(shapes.elementwise, dtypes.compared("bool")),
    ),
    **dict.fromkeys(("Equal", "NotEqual"), _two(shapes.elementwise, dtypes.compared())),
    **dict.fromkeys(
        ("LogicalAnd", "LogicalOr", "LogicalXor"), _two(shapes.elementwise, dtypes.bools)
    ),
    "LogicalNot": _one(shapes.same, dtypes.bools),
    "Identity": _one(shapes.same, dtypes.together()),
    "IdentityN": _listed(shapes.each, dtypes.each),
    # "named": the dtype in the file's own words; a cast to what a tensor is keeps its mask
    "Cast": _one(
        shapes.same,
        dtypes.declared,
        dtype=_kind(),
        named=choice("float32", "float16", "bfloat16", "float32", "float64", *_WHOLE),
    ),
    "ConvertToTensor": _one(shapes.same, dtypes.declared, dtype=optional(_kind(None))),
    "ZerosLike": _one(shapes.same, dtypes.declared, dtype=optional(_kind(None))),
    "OnesLike": _one(shapes.same, dtypes.declared, dtype=optional(_kind(None))),
    "FullLike": _one(
        shapes.same, dtypes.declared, dtype=optional(_kind(None)), value=number(REQUIRED)
    ),
    "Activation": _one(
        shapes.activated, dtypes.floats, function=Option(REQUIRED, parse_activation)
    ),
    # ---- one or several axes together ----
    "Sum": _one(shapes.reduced, dtypes.totalled, **_REDUCED),
    "Prod": _one(shapes.reduced, dtypes.totalled, **_REDUCED),
    "Mean": _one(shapes.reduced, dtypes.averaged, **_REDUCED),
    "Var": _one(shapes.reduced, dtypes.averaged, **_REDUCED),
    "Std": _one(shapes.reduced, dtypes.averaged, **_REDUCED),
    "Moments": _one(shapes.reduced_twice, dtypes.averaged, **_REDUCED),
    "Max": _one(shapes.reduced, _FIRM, **_REDUCED),
    "Min": _one(shapes.reduced, _FIRM, **_REDUCED),
    "Any": _one(shapes.reduced, dtypes.bools, **_REDUCED),
    "All": _one(shapes.reduced, dtypes.bools, **_REDUCED),
    "Logsumexp": _one(shapes.reduced, dtypes.floats, **_REDUCED),
    "Norm": _one(shapes.reduced, dtypes.floats, order=choice(2, 1, 2, "inf"), **_REDUCED),
    "CountNonzero": _one(
        shapes.reduced, dtypes.numbered(dtypes.together()), dtype=_kind(), **_REDUCED
    ),
    **dict.fromkeys(
        ("Argmax", "Argmin"),
        _one(
            shapes.reduced,
            dtypes.numbered(_FIRM),
            axis=optional(_axis(None)),
            keepdims=flag(False),
            dtype=_kind(),
        ),
    ),
    "Average": Operation(
        {"axis": optional(_axis(None))},
        output=shapes.checked(
            lambda config, given: shapes.reduced(config, shapes.broadcast(given))
        ),
        arguments=("x", "weights"),
        dtypes=dtypes.floats,
    ),
    "Normalize": _one(shapes.along_axis, dtypes.floats, axis=_axes(-1), smallest=number(REQUIRED)),
    "ClipByNorm": _one(
        shapes.along_axis, dtypes.floats, axis=_axes(), largest=number(REQUIRED, 0.0)
    ),
    "Cumsum": _one(
        shapes.along_axis,
        dtypes.totalled,
        axis=_axis(),
        reverse=flag(False),
        exclusive=flag(False),
    ),
    "Cumprod": _one(
        shapes.along_axis,
        dtypes.totalled,
        axis=_axis(),
        reverse=flag(False),
        exclusive=flag(False),
    ),
    "Sort": _one(shapes.along_axis, _FIRM, axis=_axis(-1), descending=flag(False)),
    "Argsort": _one(
        shapes.along_axis,
        dtypes.numbered(_FIRM),
        axis=_axis(-1),
        descending=flag(False),
        dtype=_kind(),
    ),
    "TopK": _sized(shapes.ranked, dtypes.ranked, "x", k=optional(size())),
    # ---- products ----
    "Matmul": _two(shapes.matmul, dtypes.reals, transpose_a=flag(False), transpose_b=flag(False)),
    "Dot": _two(shapes.dot, dtypes.reals),
    "Tensordot": _two(shapes.tensordot, dtypes.reals, axes=Option(REQUIRED, _two_lists)),
    "Einsum": _listed(shapes.einsum, dtypes.reals, subscripts=Option(REQUIRED, _subscripts)),
    "AddN": _listed(shapes.elementwise, _FIRM),
    # ---- what layers compute, with tensors in the place of weights ----
    "LayerNorm": Operation(
        {"axis": _axes(REQUIRED), "epsilon": number(REQUIRED, 0.0)},
        output=shapes.checked(shapes.normalized),
        arguments=("x", "gamma", "beta"),
        dtypes=dtypes.floats,
    ),
    "RMSNorm": Operation(
        {"axis": _axes(REQUIRED), "epsilon": number(REQUIRED, 0.0)},
        output=shapes.checked(shapes.normalized),
        arguments=("x", "scale"),
        dtypes=dtypes.floats,
    ),
    "BatchNorm": Operation(
        {"epsilon": number(REQUIRED, 0.0)},
        output=shapes.checked(shapes.elementwise),
        arguments=("x", "mean", "variance", "offset", "scale"),
        dtypes=dtypes.floats,
    ),
    **{
        name: Operation(
            {"scale": optional(number(None)), "is_causal": flag(False)},
            output=shapes.checked(shapes.attended),
            arguments=("query", "key", "value", *more),
            dtypes=dtypes.attended,
        )
        for name, more in (("DotProductAttention", ()), ("MaskedDotProductAttention", ("mask",)))
    },
    **dict.fromkeys(
        ("MaxPool", "AveragePool"),
        _one(
            shapes.pooled,
            dtypes.reals,
            pool_size=sizes(),
            strides=optional(sizes(None)),
            padding=choice(REQUIRED, "valid", "same"),
        ),
    ),
    # ---- moving values ----
    "Reshape": _sized(movement.reshape, dtypes.shaped, "x", shape=_shape(-1)),
    "BroadcastTo": _sized(movement.broadcast_to, dtypes.shaped, "x", shape=_shape(-1)),
    "Tile": _sized(movement.tiled, dtypes.shaped, "x", shape=_shape(0)),
    "Full": _sized(
        movement.wanted, dtypes.made, shape=_shape(0), value=number(REQUIRED), dtype=_kind()
    ),
    "Arange": _sized(
        movement.counted, dtypes.made, bounds=Option(REQUIRED, _bounds), dtype=_kind("int32")
    ),
    "GetItem": _sized(indexing.items, dtypes.shaped, "x", key=Option(REQUIRED, _key)),
    "Transpose": _one(movement.transpose, _ANY, axes=_axes()),
    "Swapaxes": _one(movement.swapped, _ANY, axis1=_axis(), axis2=_axis()),
    "Moveaxis": _one(movement.moved, _ANY, source=_axes(REQUIRED), destination=_axes(REQUIRED)),
    "Squeeze": _one(movement.squeezed, _ANY, axis=_axes()),
    "ExpandDims": _one(movement.expanded, _ANY, axis=_axes(REQUIRED)),
    "Flip": _one(shapes.along_axis, _ANY, axis=_axes()),
    "Roll": _one(shapes.along_axis, _ANY, shift=_many(_PLACE, MAX_RANK), axis=_axes(REQUIRED)),
    "Repeat": _one(movement.repeated, _ANY, repeats=size(), axis=optional(_axis(None))),
    "Pad": _one(
        movement.padded,
        _ANY,
        pad_width=Option(REQUIRED, _pairs),
        mode=choice("constant", "constant", "reflect", "symmetric"),
        value=number(0.0),
    ),
    "Diff": _one(movement.differences, _FIRM, n=size(1), axis=_axis(-1)),
    "Tril": _one(shapes.same, _ANY, k=_PLACE),
    "Triu": _one(shapes.same, _ANY, k=_PLACE),
    # diagonals to keep below the main one and above it; all of them where negative
    "BandPart": _one(movement.matrices, _ANY, lower=_PLACE, upper=_PLACE),
    "Diagonal": _one(movement.diagonal, _ANY, offset=_PLACE, axis1=_axis(), axis2=_axis()),
    "Trace": _one(movement.traced, dtypes.reals, offset=_PLACE, axis1=_axis(), axis2=_axis()),
    "MatrixDiag": _one(movement.matrix_of_diagonal, _ANY, offset=_PLACE),
    "BatchFlatten": _one(movement.flattened, _ANY),
    "Split": _one(
        movement.split,
        _ANY,
        sections=Option(REQUIRED, _sections),
        by=choice(REQUIRED, "count", "sizes", "places"),
        axis=_axis(),
    ),
    "Unstack": _one(movement.unstacked, dtypes.together(), axis=_axis(0), num=optional(size(None))),
    "Concatenate": _listed(movement.joined, dtypes.together(), axis=_axis(-1)),
    "Stack": _listed(movement.stacked, dtypes.together(), axis=_axis(0)),
    # ---- choosing values ----
    "Where": Operation(
        {"broadcasts": flag(True)},
        output=shapes.checked(shapes.chosen),
        arguments=("condition", "x1", "x2"),
        dtypes=dtypes.picked,
    ),
    "Threshold": _one(
        shapes.same, dtypes.floats, threshold=number(REQUIRED), value=number(REQUIRED)
    ),
    "Clip": Operation(
        output=shapes.checked(shapes.elementwise),
        arguments=("x", "x_min", "x_max"),
        dtypes=_FIRM,
    ),
    "Take": Operation(
        {"axis": optional(_axis(None)), "batch_dims": size(0, least=0)},
        output=shapes.checked(indexing.taken),
        arguments=("x", "indices"),
        dtypes=dtypes.indexed,
    ),
    "GatherNd": Operation(
        {"batch_dims": size(0, least=0)},
        output=shapes.checked(indexing.gathered),
        arguments=("x", "indices"),
        dtypes=dtypes.indexed,
    ),
    "ReverseSequence": Operation(
        {"seq_axis": _axis(), "batch_axis": _axis(0)},
        output=shapes.checked(movement.reversed_rows),
        arguments=("x", "lengths"),
        dtypes=dtypes.indexed,
    ),
    "TakeAlongAxis": Operation(
        {"axis": _axis()},
        output=shapes.checked(indexing.taken_along),
        arguments=("x", "indices"),
        dtypes=dtypes.indexed,
    ),
    "OneHot": _one(indexing.one_hot, dtypes.marked, depth=size(), axis=_axis(-1), dtype=_kind()),
    "SequenceMask": _sized(
        indexing.sequence_mask, dtypes.marked, "x", maxlen=optional(size()), dtype=_kind("bool")
    ),
    "Shape": _one(movement.sizes_of, dtypes.measured),
    "Rank": _one(movement.one_number, dtypes.measured),
    "Size": _one(movement.one_number, dtypes.measured),
}

OPS: Mapping[str, Operation] = {
    f"ops.{name}": replace(row, semantics=_SETTLED) for name, row in _BARE.items()
}
