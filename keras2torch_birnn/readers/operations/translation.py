"""Translation of one entry that is an operation, of any dialect, to the normal form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from keras2torch_birnn.errors import (
    UnsupportedLayerError,
    UnsupportedOptionError,
    invalid,
    printable,
)
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.readers.config.operation_entries import TRANSLATED
from keras2torch_birnn.readers.operations import graph_nodes, keras3, tf_functions
from keras2torch_birnn.readers.operations.bind_arguments import NormalCall
from keras2torch_birnn.readers.operations.values import (
    GRAPH_NODE,
    TF_FUNCTIONS,
    is_reference,
    tensor,
    unsupported,
)


def translate(entry: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Translate one entry to the normal form; ``names``: of all layers of its model.

    Raises:
        UnsupportedLayerError, UnsupportedOptionError: it cannot be converted; no place is named.
        InvalidModelFileError: it has not the form of an operation.
    """
    class_name, config, calls = (entry.get(k) for k in ("class_name", "config", "inbound_nodes"))
    if not isinstance(config, Mapping) or not isinstance(calls, list):
        raise invalid("an operation without config or inbound_nodes")
    if len(calls) != 1:
        raise unsupported(f"an operation that is called {len(calls)} times is not supported")
    found = _meaning(str(class_name), config, calls[0], names)
    return {
        "class_name": found.op,
        "module": TRANSLATED,
        "name": entry.get("name", config.get("name")),
        "config": {"name": config.get("name"), **found.options},
        "inbound_nodes": [{"args": list(found.arguments), "kwargs": {}}],
    }


def _meaning(
    class_name: str, config: Mapping[str, Any], call: Any, names: Collection[str]
) -> NormalCall:
    if class_name in TF_FUNCTIONS:
        return tf_functions.translate(class_name, config, call, names)
    if class_name == GRAPH_NODE:
        return graph_nodes.translate(config, _tensors(call, names))
    if class_name not in keras3.FORMS:
        raise UnsupportedLayerError(
            f"operation {printable(class_name)} is not supported",
            HOW_TO_REPLACE,
        )
    args, kwargs = (call.get(k) if isinstance(call, Mapping) else None for k in ("args", "kwargs"))
    if not isinstance(args, list) or not isinstance(kwargs, Mapping):
        raise invalid("an operation called in an unknown form")
    return keras3.translate(class_name, config, args, kwargs)


def _tensors(call: Any, names: Collection[str]) -> list[Any]:
    if not isinstance(call, list):
        raise invalid("an operation called in an unknown form")
    found = []
    for part in [call] if call and isinstance(call[0], str) else call:
        if not is_reference(part, names):
            raise UnsupportedOptionError(f"an input from {printable(repr(part))}", HOW_TO_REPLACE)
        found.append(tensor(*part[:3]))
    return found
