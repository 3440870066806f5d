"""Specs from the JSON text in an OUT file, parsed field by field, and from options given by name.

The text may come from a stranger. The tables below list every field of it; anything that
``ModelSpec.to_json`` does not write is a ``SpecTextError`` that says where it is. What layers
and calls may hold is checked later (``saving.spec_checks``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.limits import (
    MAX_INT64,
    MAX_MODEL_DEPTH,
    MAX_PRINTED_NAME,
    MAX_RANK,
    MAX_SIZE,
)
from keras2torch_birnn.schema import REQUIRED, SCHEMA
from keras2torch_birnn.schema.custom_layers import LAMBDA
from keras2torch_birnn.spec import (
    Array,
    Call,
    Constant,
    Cut,
    Generation,
    Graph,
    LayerSpec,
    ModelSpec,
    Structure,
    TensorRef,
    is_encoded,
    map_structure,
    split_settings,
)

_OF_LAMBDA = frozenset({"makes_mask"})
_WEIGHT_DTYPES = (
    *("float64", "float32", "float16", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
)


class SpecTextError(ValueError):
    """A text is not what ``ModelSpec.to_json`` writes; the message says where."""


def semantic_names(class_name: str) -> Container[str]:
    """Return the settings of a class that are no options of Keras; none of a plugin's class."""
    if class_name == LAMBDA:
        return _OF_LAMBDA
    return SCHEMA[class_name].semantics if class_name in SCHEMA else ()


def layer_of_settings(
    class_name: str, name: str, settings: Mapping[str, Any], **fields: Any
) -> LayerSpec:
    """Make a LayerSpec of settings in one mapping; ``fields``: its other fields."""
    config, semantics = split_settings(settings, semantic_names(class_name))
    return LayerSpec(class_name, name, config, semantics=semantics, **fields)


def model_from_json(data: Any) -> ModelSpec:
    """Build a ModelSpec from the parsed text of ``ModelSpec.to_json``, of any age.

    The arrays are zeros that take no memory; their shapes and dtypes are right.

    Raises:
        SpecTextError: the text is not what ``to_json`` writes.
    """
    return ModelSpec(**_record(_MODEL, data, ""))


# ---- parsers: (value, its place in the text) -> what the spec holds -----------------------------

_Parser: TypeAlias = Callable[[Any, str], Any]


@dataclass(frozen=True)
class _Field:
    """One key of an object: its parser, and what it means if it is left out."""

    parse: _Parser
    default: Any = REQUIRED


def _wrong(place: str, finding: str) -> SpecTextError:
    return SpecTextError(f"{printable(place)}: {finding}" if place else finding)


def _record(table: Mapping[str, _Field], value: Any, place: str) -> dict[str, Any]:
    """Parse an object that has these keys and no other."""
    if not isinstance(value, Mapping):
        raise _wrong(place, "an object is expected")
    for key in value:
        if key not in table:
            raise _wrong(place, f"{printable(repr(key))} is unknown")
    for key, field in table.items():
        if key not in value and field.default is REQUIRED:
            raise _wrong(place, f"without {key}")
    return {
        key: field.parse(value[key], f"{place}.{key}" if place else key)
        for key, field in table.items()
        if key in value
    }


def _list(parse: _Parser) -> _Parser:
    def listed(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise _wrong(place, "a list is expected")
        return tuple(parse(part, f"{place}[{i}]") for i, part in enumerate(value))

    return listed


def _table(parse: _Parser) -> _Parser:
    def table(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(place, "an object is expected")
        return {key: parse(part, f"{place}.{key}") for key, part in value.items()}

    return table


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise _wrong(place, "a text is expected")
    return value


def _one_of(*allowed: Any) -> _Parser:
    def parse(value: Any, place: str) -> Any:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise _wrong(place, f"one of {', '.join(map(repr, allowed))} is expected")
        return value

    return parse


def _count(value: Any, place: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise _wrong(place, f"a whole number from 0 to {MAX_SIZE} is expected")
    return value


def _number(value: Any, place: str) -> Any:
    """Parse a number of an array; floats need not be finite."""
    if not isinstance(value, float) and not (isinstance(value, int) and abs(value) <= MAX_INT64):
        raise _wrong(place, "a number is expected")
    return value


def _plain(value: Any, place: str) -> Any:
    """Parse settings, whose values are checked by the schema or a plugin; lists become tuples."""
    if not isinstance(value, Mapping):
        raise _wrong(place, "an object is expected")
    return map_structure(lambda leaf: leaf, value)


def _shapes(value: Any, place: str) -> Structure:
    """Parse a shape, or a structure of shapes."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return _table(_shapes)(value, place)
    if not isinstance(value, list | tuple):
        raise _wrong(place, "a shape is expected")
    if all(part is None or isinstance(part, int) for part in value):
        return _sizes(value, place)
    return _list(_shapes)(value, place)


def _sizes(value: Any, place: str) -> tuple[int | None, ...]:
    if len(value) > MAX_RANK:
        raise _wrong(place, f"at most {MAX_RANK} dimensions are expected")
    return tuple(None if part is None else _count(part, place) for part in value)


def _fixed_shape(value: Any, place: str) -> tuple[int, ...]:
    shape: tuple[int, ...] = _list(_count)(value, place)
    # NumPy counts bytes; the numbers are compared with those of the file's tensors
    if len(shape) > MAX_RANK or math.prod(max(size, 1) for size in shape) > MAX_INT64 // 8:
        raise _wrong(place, "the shape of an array is expected")
    return shape


def _weight(value: Any, place: str) -> Array:
    """Make zeros that take no memory in the place of a weight."""
    facts = _record(_WEIGHT, value, place)
    return np.broadcast_to(np.zeros((), np.dtype(facts["dtype"])), facts["shape"])


def _argument(value: Any, place: str) -> Structure:
    """Parse an argument of a call: a structure of tensors, constants and plain values."""
    if isinstance(value, Mapping):
        if not is_encoded(value):
            return _table(_argument)(value, place)
        return _tensor(value["tensor"], place) if "tensor" in value else _constant(value, place)
    if isinstance(value, list | tuple):
        return _list(_argument)(value, place)
    if value is None or isinstance(value, str):
        return value
    return _number(value, place)


def _tensor(ref: Any, place: str) -> TensorRef:
    if len(ref) not in (3, 4) or (len(ref) == 4 and ref[3] is not False):
        raise _wrong(place, "a tensor is expected: layer, call, output, and false without a mask")
    return TensorRef(ref[0], _count(ref[1], place), _count(ref[2], place), len(ref) == 3)


def _constant(value: Any, place: str) -> Constant:
    facts = _record(_CONSTANT, value, place)
    if len(facts["constant"]) != math.prod(facts["shape"]):
        raise _wrong(place, f"{len(facts['constant'])} numbers of shape {facts['shape']}")
    return Constant(facts["constant"], facts["shape"], facts["kind"])


def _of_hint(hint: Any) -> _Parser:
    """Return the parser of a field of ``Generation``, by its annotation."""
    if hint in (float, str):
        return {float: _finite, str: _short}[hint]
    return _one_of(*_values_of(hint))


def _values_of(hint: Any) -> tuple[Any, ...]:
    """Return the values that an annotation allows: a Literal, bool, None, or a union of them."""
    if hint in (bool, type(None)):
        return {bool: (False, True), type(None): (None,)}[hint]
    if get_origin(hint) is Literal:
        return get_args(hint)
    if not get_args(hint):
        raise TypeError(f"{hint} does not list its values")
    return tuple(value for part in get_args(hint) for value in _values_of(part))


def _finite(value: Any, place: str) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise _wrong(place, "a number is expected")
    return value


def _short(value: Any, place: str) -> str:
    if len(text := _text(value, place)) > MAX_PRINTED_NAME:
        raise _wrong(place, f"at most {MAX_PRINTED_NAME} characters are expected")
    return text


def _cut(value: Any, place: str) -> Cut:
    ends = _record(_CUT, value, place)
    return Cut(ends.get("from", ()), ends.get("to", ()))


def _layer(depth: int) -> _Parser:
    """Return the parser of a layer inside so many others."""

    def parse(value: Any, place: str) -> LayerSpec:
        if depth > MAX_MODEL_DEPTH:
            raise _wrong("", f"layers nested deeper than {MAX_MODEL_DEPTH}")
        return layer_of_settings(
            **{_RENAMED.get(key, key): part for key, part in _record(table, value, place).items()}
        )

    def graph(value: Any, place: str) -> Graph | None:
        return None if value is None else Graph(**_record(graph_table, value, place))

    def parts(value: Any, place: str) -> Any:
        return _table(_layer(depth + 1))(value, place)

    def layers(value: Any, place: str) -> Any:
        return _list(_layer(depth + 1))(value, place)

    table = {**_LAYER, "parts": _Field(parts, {}), "graph": _Field(graph, None)}
    graph_table = {"layers": _Field(layers), **_GRAPH}
    return parse


_WEIGHT = {"shape": _Field(_fixed_shape), "dtype": _Field(_one_of(*_WEIGHT_DTYPES))}
_CONSTANT = {
    "constant": _Field(_list(_number)),
    "shape": _Field(_fixed_shape),
    "kind": _Field(_one_of(None, "float", "int32", "int64", "bool")),
}
_CALL = {
    "layer": _Field(_text),
    "index": _Field(_count),
    "args": _Field(_list(_argument)),
    "kwargs": _Field(_table(_argument)),
}
_GRAPH = {
    "calls": _Field(_list(lambda value, place: Call(**_record(_CALL, value, place)))),
    "inputs": _Field(_argument),
    "outputs": _Field(_argument),
}
_LAYER = {
    "class_name": _Field(_text),
    "name": _Field(_text),
    "config": _Field(_plain),
    "place": _Field(_text),
    "input_shape": _Field(_shapes),
    "output_shape": _Field(_shapes),
    "weights": _Field(_table(_weight), {}),
    "training": _Field(_table(_plain), {}),
}
_RENAMED = {"config": "settings"}
_GENERATION = {
    field.name: _Field(_of_hint(hint), REQUIRED if field.default is MISSING else field.default)
    for field in fields(Generation)
    for hint in [get_type_hints(Generation)[field.name]]
}
_CUT = {"from": _Field(_list(_text), ()), "to": _Field(_list(_text), ())}
_MODEL = {
    "root": _Field(_layer(0)),
    "generation": _Field(lambda value, place: Generation(**_record(_GENERATION, value, place))),
    "notes": _Field(_list(_text)),
    "cut": _Field(_cut, Cut()),
}
