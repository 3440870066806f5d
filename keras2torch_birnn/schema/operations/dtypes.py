"""Dtypes of operations: the dtypes to which arguments are cast, and those of the results.

A dtype is "float" (the model's one precision), "int32", "int64", "bool", or "size": a tensor's
sizes and what is computed from them, which are Python integers in the converted model. A literal
number or list in a call is "a float", "an int" or "a bool": it adapts to the other arguments.

A row has a word for its arguments: "floats" and "bools" become such; "reals" must be floats; "any",
"numbers" (not bools) and "totals" (bools are counted) become their common dtype; "dtype" is that in
the config. "or sizes" is said where what computes it takes sizes, too. After an arrow it has a word
for the result, where that is another: "bool", "size", "dtype", "positions" (of a second result).
Promotion is that of Keras 3 (``backend/common/dtypes.py`` ``result_type``, 3.0 to 3.15): bool <
int32 < int64 < float. TensorFlow refuses mixtures, so no file of it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Dtypes: TypeAlias = tuple[str, ...]
_ORDER = ("size", "bool", "int32", "int64", "float")
_LITERALS: Mapping[str, str] = {"a bool": "bool", "an int": "int32", "a float": "float"}
_WHOLE = frozenset({"int32", "int64", "size", "an int"})
# Arguments that are of one dtype in every operation; torch requires int64 of indices.
_BY_NAME: Mapping[str, str] = {"sizes": "size", "indices": "int64", "condition": "bool"}


class DtypeError(ValueError):
    """An operation is not supported for these dtypes; the text says why."""


@dataclass(frozen=True)
class Promotion:
    """The dtype to which each argument is cast, and the dtypes of the results.

    A single dtype in ``outputs`` is that of all results.
    """

    casts: Dtypes
    outputs: Dtypes


def promote(dtypes: Sequence[str]) -> str:
    """Return the common dtype of several arguments; literals alone are what they look like."""
    firm = [dtype for dtype in dtypes if dtype not in _LITERALS]
    loose = [_LITERALS[dtype] for dtype in dtypes if dtype in _LITERALS]
    if firm and set(firm) == {"size"} and "float" not in loose:
        return "size"
    firm = ["int32" if dtype == "size" else dtype for dtype in firm]
    return max([*firm, *loose], key=_ORDER.index, default="float")


def settle(words: str, names: Sequence[str], has: Dtypes, config: Mapping[str, Any]) -> Promotion:
    """Return the dtypes of a call from a row's words, the names of its arguments and their dtypes.

    Raises:
        DtypeError: the operation is not supported for these.
    """
    takes, _, gives = words.partition("->")
    takes, _, of_sizes = takes.partition(" or ")
    names = [names[min(place, len(names) - 1)] for place in range(len(has))]
    sizes = [dtype for dtype, name in zip(has, names, strict=True) if name == "sizes"]
    if not {"size", "an int"}.issuperset(sizes):
        raise DtypeError("sizes that are computed from values, not from shapes")
    indices = [dtype for dtype, name in zip(has, names, strict=True) if name == "indices"]
    if not _WHOLE.issuperset(indices):
        raise DtypeError("indices that are not whole numbers")
    dtype = promote([dtype for dtype, name in zip(has, names, strict=True) if name not in _BY_NAME])
    if dtype == "size" and (gives not in ("", "size") or {"indices", "condition"} & set(names)):
        dtype = "int32"
    if dtype == "size" and takes in ("any", "numbers") and not of_sizes:
        raise DtypeError("numbers of kind size are not supported here")
    if takes in ("floats", "bools"):
        dtype = takes.removesuffix("s")
    elif dtype != "float" and takes == "reals":
        raise DtypeError(f"numbers of kind {dtype} are not supported here, only floats")
    elif dtype == "bool" and takes == "numbers":
        raise DtypeError("bools where numbers are expected")
    elif dtype == "bool" and takes == "totals":
        dtype = "int32"
    elif takes == "dtype":
        wanted = config["dtype"] or dtype
        dtype = "size" if dtype == "size" and wanted in ("int32", "int64") else wanted
    casts = tuple(_BY_NAME.get(name, dtype) for name in names)
    if gives == "positions":
        return Promotion(casts, (dtype, "int32"))
    return Promotion(casts, (config["dtype"] if gives == "dtype" else gives or dtype,))
