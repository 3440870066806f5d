"""Kinds of numbers: what an operation brings its arguments to, and what it gives.

A kind is "float" (the model's one precision), "int32", "int64", "bool", or "size": a tensor's
sizes and what is computed of them, which are plain whole numbers in the converted model. A number
or list that stands in a call itself is "a float", "an int" or "a bool": it fits in with the others.

TensorFlow never promotes (``strict``): what does not agree was never written by it. Keras 3 does
(``backend/common/dtypes.py`` ``result_type``, 3.0 to 3.15): bool < int32 < int64 < float; a float
beside whole numbers gives floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Kinds: TypeAlias = tuple[str, ...]
_RANK = {"bool": 0, "int32": 1, "int64": 2, "float": 3}
_WHOLE = ("int32", "int64")
_LITERALS: Mapping[str, str] = {"a bool": "bool", "an int": "int32", "a float": "float"}


class KindError(ValueError):
    """An operation is not known to work on such numbers; the text says why."""


@dataclass(frozen=True)
class Settled:
    """``wants``: the kind that each argument is brought to; ``gives``: that of each result.

    One kind in ``gives`` is that of all results.
    """

    wants: Kinds
    gives: Kinds


Rule: TypeAlias = Callable[[Kinds, Mapping[str, Any], bool], Settled]


def common(kinds: Kinds, *, strict: bool) -> str:
    """The one kind of several arguments."""
    firm = [kind for kind in kinds if kind not in _LITERALS]
    loose = [kind for kind in kinds if kind in _LITERALS]
    if not firm:
        firm, loose = [_LITERALS[kind] for kind in kinds], []
    if all(kind == "size" for kind in firm) and "a float" not in loose:
        return "size"
    firm = ["int32" if kind == "size" else kind for kind in firm]
    if not strict:
        return max([*firm, *(_LITERALS[kind] for kind in loose)], key=_RANK.__getitem__)
    if len(set(firm)) > 1 or any(_RANK[_LITERALS[kind]] > _RANK[firm[0]] for kind in loose):
        raise KindError(f"{', '.join(kinds)} together, which TensorFlow refuses")
    return firm[0]


def _refuse(kind: str, *refused: str) -> str:
    if kind in refused:
        raise KindError(f"numbers of kind {kind} are not supported here")
    return kind


def together(*refused: str) -> Rule:
    """All arguments are brought to their common kind, which is also the result's."""

    def rule(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
        kind = _refuse(common(kinds, strict=strict), *refused)
        return Settled((kind,) * len(kinds), (kind,))

    return rule


def compared(*refused: str) -> Rule:
    """The same, but the result is bool."""

    def rule(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
        kind = _refuse(common(kinds, strict=strict), *refused)
        return Settled((kind if kind != "size" else "int32",) * len(kinds), ("bool",))

    return rule


def floats(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Floats only. Keras 3 makes floats of whole numbers; TensorFlow refuses those."""
    kind = common(kinds, strict=strict)
    if strict and kind != "float":
        raise KindError(f"numbers of kind {kind} where TensorFlow takes floats only")
    return Settled(("float",) * len(kinds), ("float",))


def reals(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Floats only; among whole numbers other rules hold, which are not supported."""
    kind = common(kinds, strict=strict)
    if kind != "float":
        raise KindError(f"numbers of kind {kind} are not supported here, only floats")
    return Settled(("float",) * len(kinds), ("float",))


def divided(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """True division gives floats, of whole numbers as well."""
    common(kinds, strict=strict)
    return Settled(("float",) * len(kinds), ("float",))


def truths(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Arguments are taken for true where they are not zero."""
    if strict and any(kind not in ("bool", "a bool") for kind in kinds):
        raise KindError("numbers where TensorFlow takes bools only")
    return Settled(("bool",) * len(kinds), ("bool",))


def averaged(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """A mean. Of whole numbers: floats in Keras 3; TensorFlow divides whole numbers by rules of
    its own.
    """
    return floats(kinds, config, strict)


def totalled(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """A sum or product; of bools whole numbers (Keras 3)."""
    kind = common(kinds, strict=strict)
    if kind == "bool":
        if strict:
            raise KindError("a sum of bools, which TensorFlow refuses")
        kind = "int32"
    return Settled((kind,) * len(kinds), (kind,))


def numbered(rule: Rule) -> Rule:
    """Positions or counts: the config says their kind."""

    def numbers(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
        return Settled(rule(kinds, config, strict).wants, (config["dtype"],))

    return numbers


def picked(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """The first argument is a condition, the others are brought together."""
    if strict and kinds[0] != "bool":
        raise KindError("a condition that is not bool, which TensorFlow refuses")
    kind = common(kinds[1:], strict=strict)
    kind = "int32" if kind == "size" else kind
    return Settled(("bool", *(kind,) * (len(kinds) - 1)), (kind,))


def indexed(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Values and whole-numbered indices, which become int64 (torch takes no others)."""
    if any(kind not in (*_WHOLE, "size", "an int") for kind in kinds[1:]):
        raise KindError("indices that are not whole numbers")
    first = _LITERALS.get(kinds[0], kinds[0])
    first = "int32" if first == "size" else first
    return Settled((first, *("int64",) * (len(kinds) - 1)), (first,))


def shaped(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """A tensor whose values stay; what follows are sizes."""
    if any(kind not in ("size", "an int") for kind in kinds[1:]):
        raise KindError("sizes that are computed from values, not from shapes")
    first = _LITERALS.get(kinds[0], kinds[0])
    return Settled((first, *("size",) * (len(kinds) - 1)), (first,))


def declared(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """The config says the result's kind, or leaves it (None) as the tensor's; values are cast."""
    first = _LITERALS.get(kinds[0], kinds[0])
    kind = config["dtype"] or first
    if first == "size" and kind in _WHOLE:
        return Settled(kinds[:1], ("size",))
    return Settled((kind,) * len(kinds), (kind,))


def made(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """A new tensor of the kind that the config says; arguments are sizes."""
    shaped(("float", *kinds), config, strict)
    return Settled(("size",) * len(kinds), (config["dtype"],))


def marked(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Whole numbers (and sizes after them) -> the kind that the config says."""
    first = "int32" if kinds[0] in ("size", "an int") else kinds[0]
    if first not in _WHOLE:
        raise KindError(f"numbers of kind {kinds[0]} where whole ones are expected")
    shaped(kinds, config, strict)
    return Settled((first, *("size",) * (len(kinds) - 1)), (config["dtype"],))


def measured(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """A tensor's sizes."""
    return Settled(kinds, ("size",))


def ranked(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Values, and how many of them -> values and their places."""
    shaped(kinds, config, strict)
    kind = _refuse(common(kinds[:1], strict=strict), "bool", "size")
    return Settled((kind, *("size",) * (len(kinds) - 1)), (kind, "int32"))


def attended(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Query, key and value; what follows is true or not."""
    common(kinds[:3], strict=strict)
    return Settled((*("float",) * 3, *("bool",) * (len(kinds) - 3)), ("float",))


def each(kinds: Kinds, config: Mapping[str, Any], strict: bool) -> Settled:
    """Every argument stays what it is."""
    own = tuple(_refuse(_LITERALS.get(kind, kind), "size") for kind in kinds)
    return Settled(own, own)
