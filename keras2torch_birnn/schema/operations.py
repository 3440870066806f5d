"""Operations: arithmetic that a file holds beside the layers, under one name each in every dialect.

``tf.*`` and ``keras.backend.*`` of tf.keras (TFOpLambda, SlicingOpLambda, TensorFlowOpLayer) and
``keras.ops`` of Keras 3 all come to these rows. The names are those of Keras 3. An argument is a
tensor, a number or a ``Constant``; everything else is an option. "shape", "key" and "bounds" hold
None or "@" where a size comes as one more argument. Masks neither go in nor come out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keras2torch_birnn.limits import MAX_AXIS, MAX_EINSUM_LENGTH, MAX_PARTS, MAX_RANK, MAX_SIZE
from keras2torch_birnn.schema import kinds, op_moves, op_shapes
from keras2torch_birnn.schema.kinds import Rule
from keras2torch_birnn.schema.op_shapes import Output
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
from keras2torch_birnn.schema.row import Schema

_TOGETHER = kinds.together()


@dataclass(frozen=True)
class Operation(Schema):
    """A row of an operation. ``kinds``: what its arguments are brought to, what it gives."""

    kinds: Rule = _TOGETHER


_KINDS_OF_ALL = ("float", "int32", "int64", "bool", "size", "a float", "an int", "a bool")


def _kinds(value: Any) -> Any:
    """Check what ``readers.operations.infer_dtypes`` found; no file of Keras says it."""
    lists = ("has", "wants", "gives")
    if not isinstance(value, Mapping) or set(value) != {*lists, "passes_mask"}:
        raise BadOptionError("kinds are expected")
    if not all(kind in _KINDS_OF_ALL for name in lists for kind in value[name]):
        raise BadOptionError("unknown kinds")
    return {**{name: tuple(value[name]) for name in lists}, "passes_mask": value["passes_mask"]}


# every operation's: what its arguments are, what they are brought to, what comes out
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
    """A tuple of such values."""

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


_PLACE = size(least=-MAX_SIZE - 1)


def _key(value: Any) -> tuple[Any, ...]:
    """Parts of an index: a whole number, (start, stop, step), None for a new axis, "..." """
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
    """An einsum's text, its output made explicit, without blanks."""
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
    """A row with one argument."""
    return Operation(options, output=op_shapes.checked(output), arguments=("x",), kinds=rule)


def _two(output: Output, rule: Rule, **options: Option) -> Operation:
    """A row with two arguments."""
    return Operation(options, output=op_shapes.checked(output), arguments=("x1", "x2"), kinds=rule)


def _listed(output: Output, rule: Rule, **options: Option) -> Operation:
    """A row whose argument is a list."""
    shape = op_shapes.checked(output)
    return Operation(options, output=shape, arguments=("xs",), listed=True, kinds=rule)


def _sized(output: Output, rule: Rule, *arguments: str, **options: Option) -> Operation:
    """A row with arguments and, after them, sizes."""
    names = (*arguments, "sizes")
    return Operation(options, output=op_shapes.checked(output), arguments=names, kinds=rule)


_REDUCED = {"axis": _axes(), "keepdims": flag(False)}
_SMOOTH = (
    "Exp Expm1 Log Log1p Log2 Log10 Sqrt Rsqrt Sin Cos Tan Arcsin Arccos Arctan Sinh Cosh Tanh "
    "Arcsinh Arccosh Arctanh Erf Erfc Erfinv Lgamma Reciprocal"
).split()
_NUMBERS = kinds.together("bool")
_FIRM = kinds.together("bool", "size")
_ANY = kinds.together("size")
_BARE = {
    **dict.fromkeys(_SMOOTH, _one(op_shapes.same, kinds.floats)),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Trunc"), _one(op_shapes.same, kinds.reals)),
    **dict.fromkeys(("Negative", "Absolute", "Sign", "Square"), _one(op_shapes.same, _FIRM)),
    **dict.fromkeys(("Isnan", "Isinf", "Isfinite"), _one(op_shapes.same, kinds.compared("size"))),
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "FloorDivide", "Maximum", "Minimum"),
        _two(op_shapes.elementwise, _NUMBERS),
    ),
    **dict.fromkeys(("Mod", "Power", "SquaredDifference"), _two(op_shapes.elementwise, _FIRM)),
    **dict.fromkeys(
        ("Divide", "Arctan2", "Logaddexp", "Hypot"), _two(op_shapes.elementwise, kinds.divided)
    ),
    # 0 where x2 is 0, or (the last three) where x1 is
    **dict.fromkeys(
        ("DivideNoNan", "MultiplyNoNan", "Xlogy", "Xlog1py", "Xdivy"),
        _two(op_shapes.elementwise, kinds.floats),
    ),
    **dict.fromkeys(
        ("Less", "LessEqual", "Greater", "GreaterEqual"),
        _two(op_shapes.elementwise, kinds.compared("bool")),
    ),
    **dict.fromkeys(("Equal", "NotEqual"), _two(op_shapes.elementwise, kinds.compared())),
    **dict.fromkeys(
        ("LogicalAnd", "LogicalOr", "LogicalXor"), _two(op_shapes.elementwise, kinds.truths)
    ),
    "LogicalNot": _one(op_shapes.same, kinds.truths),
    "Identity": _one(op_shapes.same, kinds.together()),
    "IdentityN": _listed(op_shapes.each, kinds.each),
    # "named": the dtype in the file's own words; a cast to what a tensor is keeps its mask
    "Cast": _one(
        op_shapes.same,
        kinds.declared,
        dtype=_kind(),
        named=choice("float32", "float16", "bfloat16", "float32", "float64", *_WHOLE),
    ),
    "ConvertToTensor": _one(op_shapes.same, kinds.declared, dtype=optional(_kind(None))),
    "ZerosLike": _one(op_shapes.same, kinds.declared, dtype=optional(_kind(None))),
    "OnesLike": _one(op_shapes.same, kinds.declared, dtype=optional(_kind(None))),
    "FullLike": _one(
        op_shapes.same, kinds.declared, dtype=optional(_kind(None)), value=number(REQUIRED)
    ),
    "Activation": _one(
        op_shapes.activated, kinds.floats, function=Option(REQUIRED, parse_activation)
    ),
    # ---- one or several axes together ----
    "Sum": _one(op_shapes.reduced, kinds.totalled, **_REDUCED),
    "Prod": _one(op_shapes.reduced, kinds.totalled, **_REDUCED),
    "Mean": _one(op_shapes.reduced, kinds.averaged, **_REDUCED),
    "Var": _one(op_shapes.reduced, kinds.averaged, **_REDUCED),
    "Std": _one(op_shapes.reduced, kinds.averaged, **_REDUCED),
    "Moments": _one(op_shapes.reduced_twice, kinds.averaged, **_REDUCED),
    "Max": _one(op_shapes.reduced, _FIRM, **_REDUCED),
    "Min": _one(op_shapes.reduced, _FIRM, **_REDUCED),
    "Any": _one(op_shapes.reduced, kinds.truths, **_REDUCED),
    "All": _one(op_shapes.reduced, kinds.truths, **_REDUCED),
    "Logsumexp": _one(op_shapes.reduced, kinds.floats, **_REDUCED),
    "Norm": _one(op_shapes.reduced, kinds.floats, order=choice(2, 1, 2, "inf"), **_REDUCED),
    "CountNonzero": _one(
        op_shapes.reduced, kinds.numbered(kinds.together()), dtype=_kind(), **_REDUCED
    ),
    **dict.fromkeys(
        ("Argmax", "Argmin"),
        _one(
            op_shapes.reduced,
            kinds.numbered(_FIRM),
            axis=optional(_axis(None)),
            keepdims=flag(False),
            dtype=_kind(),
        ),
    ),
    "Average": Operation(
        {"axis": optional(_axis(None))},
        output=op_shapes.checked(
            lambda config, given: op_shapes.reduced(config, op_shapes.broadcast(given))
        ),
        arguments=("x", "weights"),
        kinds=kinds.floats,
    ),
    "Normalize": _one(
        op_shapes.along_axis, kinds.floats, axis=_axes(-1), smallest=number(REQUIRED)
    ),
    "ClipByNorm": _one(
        op_shapes.along_axis, kinds.floats, axis=_axes(), largest=number(REQUIRED, 0.0)
    ),
    "Cumsum": _one(
        op_shapes.along_axis,
        kinds.totalled,
        axis=_axis(),
        reverse=flag(False),
        exclusive=flag(False),
    ),
    "Cumprod": _one(
        op_shapes.along_axis,
        kinds.totalled,
        axis=_axis(),
        reverse=flag(False),
        exclusive=flag(False),
    ),
    "Sort": _one(op_shapes.along_axis, _FIRM, axis=_axis(-1), descending=flag(False)),
    "Argsort": _one(
        op_shapes.along_axis,
        kinds.numbered(_FIRM),
        axis=_axis(-1),
        descending=flag(False),
        dtype=_kind(),
    ),
    "TopK": _sized(op_shapes.ranked, kinds.ranked, "x", k=optional(size())),
    # ---- products ----
    "Matmul": _two(op_shapes.matmul, kinds.reals, transpose_a=flag(False), transpose_b=flag(False)),
    "Dot": _two(op_shapes.dot, kinds.reals),
    "Tensordot": _two(op_shapes.tensordot, kinds.reals, axes=Option(REQUIRED, _two_lists)),
    "Einsum": _listed(op_shapes.einsum, kinds.reals, subscripts=Option(REQUIRED, _subscripts)),
    "AddN": _listed(op_shapes.elementwise, _FIRM),
    # ---- what layers compute, with tensors in the place of weights ----
    "LayerNorm": Operation(
        {"axis": _axes(REQUIRED), "epsilon": number(REQUIRED, 0.0)},
        output=op_shapes.checked(op_shapes.normalized),
        arguments=("x", "gamma", "beta"),
        kinds=kinds.floats,
    ),
    "RMSNorm": Operation(
        {"axis": _axes(REQUIRED), "epsilon": number(REQUIRED, 0.0)},
        output=op_shapes.checked(op_shapes.normalized),
        arguments=("x", "scale"),
        kinds=kinds.floats,
    ),
    "BatchNorm": Operation(
        {"epsilon": number(REQUIRED, 0.0)},
        output=op_shapes.checked(op_shapes.elementwise),
        arguments=("x", "mean", "variance", "offset", "scale"),
        kinds=kinds.floats,
    ),
    **{
        name: Operation(
            {"scale": optional(number(None)), "is_causal": flag(False)},
            output=op_shapes.checked(op_shapes.attended),
            arguments=("query", "key", "value", *more),
            kinds=kinds.attended,
        )
        for name, more in (("DotProductAttention", ()), ("MaskedDotProductAttention", ("mask",)))
    },
    **dict.fromkeys(
        ("MaxPool", "AveragePool"),
        _one(
            op_shapes.pooled,
            kinds.reals,
            pool_size=sizes(),
            strides=optional(sizes(None)),
            padding=choice(REQUIRED, "valid", "same"),
        ),
    ),
    # ---- moving values ----
    "Reshape": _sized(op_moves.reshape, kinds.shaped, "x", shape=_shape(-1)),
    "BroadcastTo": _sized(op_moves.broadcast_to, kinds.shaped, "x", shape=_shape(-1)),
    "Tile": _sized(op_moves.tiled, kinds.shaped, "x", shape=_shape(0)),
    "Full": _sized(
        op_moves.wanted, kinds.made, shape=_shape(0), value=number(REQUIRED), dtype=_kind()
    ),
    "Arange": _sized(
        op_moves.counted, kinds.made, bounds=Option(REQUIRED, _bounds), dtype=_kind("int32")
    ),
    "GetItem": _sized(op_moves.items, kinds.shaped, "x", key=Option(REQUIRED, _key)),
    "Transpose": _one(op_moves.transpose, _ANY, axes=_axes()),
    "Swapaxes": _one(op_moves.swapped, _ANY, axis1=_axis(), axis2=_axis()),
    "Moveaxis": _one(op_moves.moved, _ANY, source=_axes(REQUIRED), destination=_axes(REQUIRED)),
    "Squeeze": _one(op_moves.squeezed, _ANY, axis=_axes()),
    "ExpandDims": _one(op_moves.expanded, _ANY, axis=_axes(REQUIRED)),
    "Flip": _one(op_shapes.along_axis, _ANY, axis=_axes()),
    "Roll": _one(op_shapes.along_axis, _ANY, shift=_many(_PLACE, MAX_RANK), axis=_axes(REQUIRED)),
    "Repeat": _one(op_moves.repeated, _ANY, repeats=size(), axis=optional(_axis(None))),
    "Pad": _one(
        op_moves.padded,
        _ANY,
        pad_width=Option(REQUIRED, _pairs),
        mode=choice("constant", "constant", "reflect", "symmetric"),
        value=number(0.0),
    ),
    "Diff": _one(op_moves.differences, _FIRM, n=size(1), axis=_axis(-1)),
    "Tril": _one(op_shapes.same, _ANY, k=_PLACE),
    "Triu": _one(op_shapes.same, _ANY, k=_PLACE),
    # so many diagonals below the main one and above it, all of them where below 0
    "BandPart": _one(op_moves.matrices, _ANY, lower=_PLACE, upper=_PLACE),
    "Diagonal": _one(op_moves.diagonal, _ANY, offset=_PLACE, axis1=_axis(), axis2=_axis()),
    "Trace": _one(op_moves.traced, kinds.reals, offset=_PLACE, axis1=_axis(), axis2=_axis()),
    "MatrixDiag": _one(op_moves.matrix_of_diagonal, _ANY, offset=_PLACE),
    "BatchFlatten": _one(op_moves.flattened, _ANY),
    "Split": _one(
        op_moves.split,
        _ANY,
        sections=Option(REQUIRED, _sections),
        by=choice(REQUIRED, "count", "sizes", "places"),
        axis=_axis(),
    ),
    "Unstack": _one(op_moves.unstacked, kinds.together(), axis=_axis(0), num=optional(size(None))),
    "Concatenate": _listed(op_moves.joined, kinds.together(), axis=_axis(-1)),
    "Stack": _listed(op_moves.stacked, kinds.together(), axis=_axis(0)),
    # ---- choosing values ----
    "Where": Operation(
        {"broadcasts": flag(True)},
        output=op_shapes.checked(op_shapes.chosen),
        arguments=("condition", "x1", "x2"),
        kinds=kinds.picked,
    ),
    "Threshold": _one(
        op_shapes.same, kinds.floats, threshold=number(REQUIRED), value=number(REQUIRED)
    ),
    "Clip": Operation(
        output=op_shapes.checked(op_shapes.elementwise),
        arguments=("x", "x_min", "x_max"),
        kinds=_FIRM,
    ),
    "Take": Operation(
        {"axis": optional(_axis(None)), "batch_dims": size(0, least=0)},
        output=op_shapes.checked(op_moves.taken),
        arguments=("x", "indices"),
        kinds=kinds.indexed,
    ),
    "GatherNd": Operation(
        {"batch_dims": size(0, least=0)},
        output=op_shapes.checked(op_moves.gathered),
        arguments=("x", "indices"),
        kinds=kinds.indexed,
    ),
    "ReverseSequence": Operation(
        {"seq_axis": _axis(), "batch_axis": _axis(0)},
        output=op_shapes.checked(op_moves.reversed_rows),
        arguments=("x", "lengths"),
        kinds=kinds.indexed,
    ),
    "TakeAlongAxis": Operation(
        {"axis": _axis()},
        output=op_shapes.checked(op_moves.taken_along),
        arguments=("x", "indices"),
        kinds=kinds.indexed,
    ),
    "OneHot": _one(op_moves.one_hot, kinds.marked, depth=size(), axis=_axis(-1), dtype=_kind()),
    "SequenceMask": _sized(
        op_moves.sequence_mask, kinds.marked, "x", maxlen=optional(size()), dtype=_kind("bool")
    ),
    "Shape": _one(op_moves.sizes_of, kinds.measured),
    "Rank": _one(op_moves.one_number, kinds.measured),
    "Size": _one(op_moves.one_number, kinds.measured),
}

OPS: Mapping[str, Operation] = {
    f"ops.{name}": replace(row, options={**row.options, **_SETTLED}) for name, row in _BARE.items()
}
