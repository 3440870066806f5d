"""JSON of a file, read strictly: no repeated keys, no NaN, within limits."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from keras2torch_birnn import limits
from keras2torch_birnn.errors import invalid, printable

_VALUE_STARTS = re.compile(r"[\[{,]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _UnfitError(ValueError):
    """A value that JSON allows and we do not."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        ((repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise _UnfitError(f"the key '{printable(repeated)}' occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > limits.MAX_JSON_DIGITS:
        raise _UnfitError(f"an integer of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _UnfitError(f"the number {printable(digits)} is too large")
    return value


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _is_text(value: object) -> bool:
    # A lone surrogate ("\ud800") is no character; it would fail later, when printed or stored.
    return not isinstance(value, str) or _SURROGATE.search(value) is None


def _check_levels(root: object) -> None:
    level: list[object] = [root]
    for _ in range(limits.MAX_JSON_DEPTH):
        if not all(map(_is_text, level)):
            raise _UnfitError("a text holds half a character (a lone surrogate)")
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise _UnfitError(f"nested deeper than {limits.MAX_JSON_DEPTH} levels")


def _parse(text: str) -> Any:
    if len(_VALUE_STARTS.findall(text)) > limits.MAX_JSON_VALUES:
        raise _UnfitError(f"more than {limits.MAX_JSON_VALUES} values")
    value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_integer, parse_float=_float)
    _check_levels(value)
    return value


def decode_text(data: bytes, *, place: str) -> str:
    """Decode UTF-8 text; refuse anything else."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"not UTF-8 text (byte {error.start})", place) from None


def parse_json(text: str, *, place: str) -> Any:
    """Parse the JSON ``text`` found at ``place`` of a model file."""
    if len(text) > limits.MAX_JSON_BYTES:
        raise invalid(
            f"JSON of {len(text)} characters where {limits.MAX_JSON_BYTES} are allowed", place
        )
    try:
        return _parse(text)
    except _UnfitError as error:
        found = str(error)
    except json.JSONDecodeError as error:
        found = f"not JSON ({error.msg}, line {error.lineno} column {error.colno})"
    except RecursionError:
        found = f"nested deeper than {limits.MAX_JSON_DEPTH} levels"
    raise invalid(found, place)


def parse_object(text: str, *, place: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Parse JSON that must be an object with the keys ``needed``."""
    value = parse_json(text, place=place)
    if not isinstance(value, dict):
        raise invalid(f"a JSON {type(value).__name__} where an object is expected", place)
    missing = [key for key in needed if key not in value]
    if missing:
        raise invalid(f"without {', '.join(missing)}", place)
    return value


def objects_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object in nested lists and objects, inner ones first."""
    if isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from objects_in(part)
    if isinstance(value, Mapping):
        yield value
