"""Dtype rules of operations: the dtypes to which arguments are cast, and those of the results.

A dtype is "float" (the model's one precision), "int32", "int64", "bool", or "size": a tensor's
sizes and what is computed from them, which are Python integers in the converted model. A literal
number or list in a call is "a float", "an int" or "a bool": it adapts to the other arguments.

TensorFlow never promotes (``strict``), so no file of it mixes dtypes. Keras 3 promotes
(``backend/common/dtypes.py`` ``result_type``, 3.0 to 3.15): bool < int32 < int64 < float; a float
with integers makes floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Dtypes: TypeAlias = tuple[str, ...]
_RANK = {"bool": 0, "int32": 1, "int64": 2, "float": 3}
_INTEGERS = ("int32", "int64")
_LITERALS: Mapping[str, str] = {"a bool": "bool", "an int": "int32", "a float": "float"}


class DtypeError(ValueError):
    """An operation is not supported for these dtypes; the text says why."""


@dataclass(frozen=True)
class Promotion:
    """The dtype to which each argument is cast, and the dtypes of the results.

    A single dtype in ``outputs`` is that of all results.
    """

    casts: Dtypes
    outputs: Dtypes


Rule: TypeAlias = Callable[[Dtypes, Mapping[str, Any], bool], Promotion]


def common(dtypes: Dtypes, *, strict: bool) -> str:
    """Return the common dtype of several arguments.

    Raises:
        DtypeError: TensorFlow (``strict``) refuses the mixture.
    """
    firm = [dtype for dtype in dtypes if dtype not in _LITERALS]
    loose = [dtype for dtype in dtypes if dtype in _LITERALS]
    if not firm:
        firm, loose = [_LITERALS[dtype] for dtype in dtypes], []
    if all(dtype == "size" for dtype in firm) and "a float" not in loose:
        return "size"
    firm = ["int32" if dtype == "size" else dtype for dtype in firm]
    if not strict:
        return max([*firm, *(_LITERALS[dtype] for dtype in loose)], key=_RANK.__getitem__)
    if len(set(firm)) > 1 or any(_RANK[_LITERALS[dtype]] > _RANK[firm[0]] for dtype in loose):
        raise DtypeError(f"{', '.join(dtypes)} together, which TensorFlow refuses")
    return firm[0]


def _refuse(dtype: str, *refused: str) -> str:
    if dtype in refused:
        raise DtypeError(f"numbers of kind {dtype} are not supported here")
    return dtype


def together(*refused: str) -> Rule:
    """Make the rule: cast all arguments to their common dtype, which is also the result's."""

    def rule(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
        dtype = _refuse(common(dtypes, strict=strict), *refused)
        return Promotion((dtype,) * len(dtypes), (dtype,))

    return rule


def compared(*refused: str) -> Rule:
    """Make the rule: cast all arguments to their common dtype; the result is bool."""

    def rule(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
        dtype = _refuse(common(dtypes, strict=strict), *refused)
        return Promotion((dtype if dtype != "size" else "int32",) * len(dtypes), ("bool",))

    return rule


def floats(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Allow floats alone. Keras 3 casts integers to float; TensorFlow refuses them."""
    dtype = common(dtypes, strict=strict)
    if strict and dtype != "float":
        raise DtypeError(f"numbers of kind {dtype} where TensorFlow takes floats only")
    return Promotion(("float",) * len(dtypes), ("float",))


def reals(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Allow floats alone; for integers other rules hold, which are not supported."""
    dtype = common(dtypes, strict=strict)
    if dtype != "float":
        raise DtypeError(f"numbers of kind {dtype} are not supported here, only floats")
    return Promotion(("float",) * len(dtypes), ("float",))


def divided(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Divide: the result is float, of integers as well."""
    common(dtypes, strict=strict)
    return Promotion(("float",) * len(dtypes), ("float",))


def bools(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Cast arguments to bool: all but zero is True."""
    if strict and any(dtype not in ("bool", "a bool") for dtype in dtypes):
        raise DtypeError("numbers where TensorFlow takes bools only")
    return Promotion(("bool",) * len(dtypes), ("bool",))


def totalled(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Sum or multiply: bools become integers (Keras 3)."""
    dtype = common(dtypes, strict=strict)
    if dtype == "bool":
        if strict:
            raise DtypeError("a sum of bools, which TensorFlow refuses")
        dtype = "int32"
    return Promotion((dtype,) * len(dtypes), (dtype,))


def numbered(rule: Rule) -> Rule:
    """Make the rule of positions or counts, whose dtype is in the config."""

    def numbers(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
        return Promotion(rule(dtypes, config, strict).casts, (config["dtype"],))

    return numbers


def picked(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Cast the first argument, a condition, to bool and the others to their common dtype."""
    if strict and dtypes[0] != "bool":
        raise DtypeError("a condition that is not bool, which TensorFlow refuses")
    dtype = common(dtypes[1:], strict=strict)
    dtype = "int32" if dtype == "size" else dtype
    return Promotion(("bool", *(dtype,) * (len(dtypes) - 1)), (dtype,))


def indexed(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Keep the values and cast the integer indices to int64, which torch requires."""
    if any(dtype not in (*_INTEGERS, "size", "an int") for dtype in dtypes[1:]):
        raise DtypeError("indices that are not whole numbers")
    first = _LITERALS.get(dtypes[0], dtypes[0])
    first = "int32" if first == "size" else first
    return Promotion((first, *("int64",) * (len(dtypes) - 1)), (first,))


def shaped(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Keep a tensor's dtype; the arguments after it are sizes."""
    if any(dtype not in ("size", "an int") for dtype in dtypes[1:]):
        raise DtypeError("sizes that are computed from values, not from shapes")
    first = _LITERALS.get(dtypes[0], dtypes[0])
    return Promotion((first, *("size",) * (len(dtypes) - 1)), (first,))


def declared(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Cast to the dtype in the config, or keep the tensor's where that is None."""
    first = _LITERALS.get(dtypes[0], dtypes[0])
    dtype = config["dtype"] or first
    if first == "size" and dtype in _INTEGERS:
        return Promotion(dtypes[:1], ("size",))
    return Promotion((dtype,) * len(dtypes), (dtype,))


def created(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Make a tensor of the dtype in the config; arguments are sizes."""
    shaped(("float", *dtypes), config, strict)
    return Promotion(("size",) * len(dtypes), (config["dtype"],))


def marked(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Turn integers (and sizes after them) into the dtype in the config."""
    first = "int32" if dtypes[0] in ("size", "an int") else dtypes[0]
    if first not in _INTEGERS:
        raise DtypeError(f"numbers of kind {dtypes[0]} where whole ones are expected")
    shaped(dtypes, config, strict)
    return Promotion((first, *("size",) * (len(dtypes) - 1)), (config["dtype"],))


def measured(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Return a tensor's sizes."""
    return Promotion(dtypes, ("size",))


def ranked(dtypes: Dtypes, config: Mapping[str, Any], strict: bool) -> Promotion:
    """Return the largest values and their positions; the argument after the values is a count."""
    shaped(dtypes, config, strict)
    dtype = _refuse(common(dtypes[:1], strict=strict), "bool", "size")
    return Promotion((dtype, *("size",) * (len(dtypes) - 1)), (dtype, "int32"))
