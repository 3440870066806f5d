"""Operations of every dialect -> the normal form of ``schema.operations``.

An entry of ``layers`` that is an operation becomes one in the form of Keras 3 with our own names,
which the rest of the readers parses as any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import UnsupportedLayerError, UnsupportedOptionError
from keras2torch_birnn.readers.config.classes import TRANSLATED, is_operation
from keras2torch_birnn.readers.operations.values import (
    GRAPH_NODE,
    TF_FUNCTIONS,
    is_reference,
    tensor,
)
from keras2torch_birnn.schema import OPS


def translate_layers(entries: Sequence[Any]) -> list[Any]:
    """Translate the entries of a model that are operations to the normal form.

    One that cannot be converted gets its problem along.
    """
    names = frozenset(name for name in map(_name, entries) if name is not None)
    return [_translate_if_operation(entry, names) for entry in entries]


def _name(entry: Any) -> str | None:
    config = entry.get("config") if isinstance(entry, Mapping) else None
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if name is None and isinstance(config, Mapping):
        name = config.get("name")
    return name if isinstance(name, str) else None


def _translate_if_operation(entry: Any, names: Collection[str]) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    if entry.get("class_name") not in (*TF_FUNCTIONS, GRAPH_NODE) and not is_operation(entry):
        return entry
    try:
        # Most models have no operation and do without the dialects' modules.
        from keras2torch_birnn.readers.operations.translation import translate

        return translate(entry, names)
    except (UnsupportedLayerError, UnsupportedOptionError) as problem:
        found: list[Any] = []
        _references(entry.get("inbound_nodes"), names, found)
        return {
            "class_name": entry.get("class_name"),
            "module": TRANSLATED,
            "name": _name(entry),
            "config": {"name": _name(entry)},
            "inbound_nodes": [{"args": found, "kwargs": {}}],
            "problem": problem,
        }


def _references(value: Any, names: Collection[str], refs: list[Any]) -> None:
    """Collect every reference to a tensor of the model in a call."""
    if isinstance(value, list):
        if is_reference(value, names):
            refs.append(tensor(*value[:3]))
        for part in value:
            _references(part, names, refs)
    elif isinstance(value, Mapping):
        if value.get("class_name") == "__keras_tensor__":
            refs.append(value)
        else:
            for part in value.values():
                _references(part, names, refs)


def operation_names(op: str) -> tuple[str, ...]:
    """List an operation's names in files: functions, graph nodes, classes of Keras 3."""
    if op == "GetItem":
        return "x[...]", "tf.slice", "tf.strided_slice", "node StridedSlice", "keras.ops GetItem"
    forms = OPS[f"ops.{op}"].forms
    return (
        *(f"tf.{form.name}" for form in forms if form.dialect == "tf" and form.saved),
        *(f"node {form.name}" for form in forms if form.dialect == "node"),
        *(f"keras.ops {form.name}" for form in forms if form.dialect == "keras"),
    )
