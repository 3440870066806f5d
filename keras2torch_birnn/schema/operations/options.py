"""Options of operations: the axes, shapes, indices and equations that a call is given."""

from __future__ import annotations

import re
from typing import Any

from keras2torch_birnn.limits import (
    MAX_AXIS,
    MAX_EINSUM_LENGTH,
    MAX_PARTS,
    MAX_RANK,
    MAX_SIZE,
)
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    axes,
    choice,
    optional,
    size,
    sizes,
)

WHOLE = ("int32", "int64", "bool")


def one_axis(default: Any = REQUIRED) -> Option:
    """Make an option that is the number of an axis."""

    def parse(value: Any) -> int:
        if type(value) is not int or not -MAX_AXIS <= value <= MAX_AXIS:
            raise BadOptionError("the number of an axis is expected")
        return value

    return Option(default, parse)


def several_axes(default: Any = None) -> Option:
    """Make an option that is one axis or several; None, unless required: all."""
    every = axes(None)

    def parse(value: Any) -> tuple[int, ...]:
        return tuple(one_axis().parse(axis) for axis in every.parse(value))

    option = Option(default, parse)
    return option if default is REQUIRED else optional(option)


def dtype(default: Any = REQUIRED) -> Option:
    """Make an option that is one of the dtypes that are computed."""
    return choice(default, "float", "int32", "int64", "bool")


def many(option: Option, most: int = MAX_PARTS) -> Option:
    """Make an option that is a tuple of such values."""

    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise BadOptionError("a list is expected")
        return tuple(option.parse(part) for part in value)

    return Option(option.default, parse)


def target_shape(least: int) -> Option:
    """Make an option that is a shape, None if one tensor holds all its sizes."""
    return optional(many(optional(size(least=least)), MAX_RANK))


def parse_sections(value: Any) -> Any:
    """Parse the number of parts of a split, or a list of sizes or places."""
    if isinstance(value, list | tuple):
        return many(size(least=-1), MAX_PARTS).parse(value)
    count: int = size().parse(value)
    if count > MAX_PARTS:
        raise BadOptionError(f"at most {MAX_PARTS} parts are expected")
    return count


PLACE = size(least=-MAX_SIZE - 1)


def parse_key(value: Any) -> tuple[Any, ...]:
    """Parse an index: integers, (start, stop, step), None for a new axis, "..." """
    if not isinstance(value, list | tuple) or len(value) > MAX_RANK or list(value).count("...") > 1:
        raise BadOptionError("a list of indices is expected")
    return tuple(_part(part) for part in value)


def _part(part: Any) -> Any:
    if part is None or (isinstance(part, str) and part in ("...", "@")):
        return part
    if isinstance(part, list | tuple) and len(part) == 3:
        start, stop, step = (p if p is None or p == "@" else PLACE.parse(p) for p in part)
        if step == 0:
            raise BadOptionError("a slice with step 0")
        return start, stop, step
    return PLACE.parse(part)


def parse_bounds(value: Any) -> tuple[Any, ...]:
    """Parse start, stop and step of a range."""
    if not isinstance(value, list | tuple) or len(value) != 3 or value[2] == 0:
        raise BadOptionError("start, stop and step are expected")
    return tuple(part if part == "@" else PLACE.parse(part) for part in value)


_EINSUM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*(,[A-Za-z]*(\.\.\.)?[A-Za-z]*)*")


def parse_subscripts(value: Any) -> str:
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
        raise BadOptionError("every letter of the output occurs once in it, and in an input")
    if "..." in inputs and "..." not in output:
        raise BadOptionError("an ellipsis that is summed over")
    if any(len(set(t)) < len(t) for t in inputs.replace("...", "").split(",")):
        raise BadOptionError("a letter twice in one term")
    return f"{inputs}->{output}"


def parse_pairs(value: Any) -> tuple[tuple[int, ...], ...]:
    """Parse widths of padding: [before, after] of each axis."""
    pair = sizes(least=0)
    found = tuple(pair.parse(part) for part in value) if isinstance(value, list | tuple) else ()
    if not found or any(len(part) != 2 for part in found):
        raise BadOptionError("a list of [before, after] is expected")
    return found
