"""Nodes of a TensorFlow graph in files of TF 1.13 to 2.3: ``TensorFlowOpLayer``.

``node_def`` is a protocol buffer written as JSON: ``op``, ``input`` (names), ``attr``. Inputs that
are constants are in ``constants`` by their number; the tensors fill the other places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.readers.operations.bind_arguments import NormalCall, bind
from keras2torch_birnn.readers.operations.values import unsupported
from keras2torch_birnn.readers.strict_json import parse_object
from keras2torch_birnn.schema.operations import forms_in

FORMS = forms_in("node")
# Attributes without information: dtypes, numbers of inputs.
_NOTHING_NEW = ("T", "N", "Tidx", "TI", "SrcT", "Index", "num", "index_type")


def translate(config: Mapping[str, Any], tensors: Sequence[Any]) -> NormalCall:
    """Translate one node.

    Raises:
        UnsupportedLayerError: not an operation that is supported; UnsupportedOptionError: not with
            these inputs.
    """
    node = config.get("node_def")
    if isinstance(node, str):
        node = parse_object(node, place="node_def")
    node = node if isinstance(node, Mapping) else {}
    op = node.get("op")
    if not isinstance(op, str) or op not in FORMS:
        raise UnsupportedLayerError(
            f"operation {printable(op)} of TensorFlow is not supported",
            HOW_TO_REPLACE,
        )
    form = FORMS[op]
    inputs = _inputs(node, config.get("constants"), tensors)
    wanted = form.parameters
    attributes = node.get("attr")
    named = {
        key: _attribute(value)
        for key, value in (attributes if isinstance(attributes, Mapping) else {}).items()
        if key in wanted or not (key in _NOTHING_NEW or key.startswith("T"))
    }
    if next(iter(wanted)) == "inputs":
        return bind(form, f"operation {op}", (inputs,), named)
    return bind(form, f"operation {op}", inputs, named)


def _inputs(node: Mapping[str, Any], constants: Any, tensors: Sequence[Any]) -> list[Any]:
    names = node.get("input")
    names = [n for n in names if not str(n).startswith("^")] if isinstance(names, list) else []
    constants = constants if isinstance(constants, Mapping) else {}
    held = {str(key): value for key, value in constants.items()}
    free = iter(tensors)
    found = [held[str(i)] if str(i) in held else next(free, None) for i in range(len(names))]
    if any(value is None for value in found) or next(free, None) is not None:
        raise unsupported(
            f"{len(tensors)} tensors and {len(held)} constants for {len(names)} inputs"
        )
    return found


def _attribute(value: Any) -> Any:
    """Parse an attribute: {"b": true}, {"i": "2"}, {"f": 0.1}, {"type": ...}, lists."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((form, held),) = value.items()
    if form == "list":
        held = held if isinstance(held, Mapping) else {}
        several = [(key, some) for key, some in held.items() if isinstance(some, list)]
        return [_attribute({key: one}) for key, some in several for one in some]
    try:
        return int(held) if form == "i" else held
    except (TypeError, ValueError, OverflowError):
        raise unsupported(f"an attribute that is no number: {printable(repr(held))}") from None
