"""List the supported layers from the schema, for ``k2t layers`` and the documentation."""

from __future__ import annotations

from dataclasses import dataclass

from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.readers.operations import operation_names
from keras2torch_birnn.schema import ALIASES, LAYERS, OPS


@dataclass(frozen=True)
class Row:
    """Layer class: its other names and the options that are refused.

    ``plugin``: the shipped plugin that must be loaded for it.
    """

    class_name: str
    aliases: tuple[str, ...]
    refused: tuple[str, ...]
    plugin: str = ""


def catalogue() -> tuple[Row, ...]:
    """List every class of the schema, in its order, and the wrapper that is read as its layer."""
    rows = (
        Row(name, tuple(alias for alias in ALIASES if ALIASES[alias] == name), row.refused)
        for name, row in LAYERS.items()
    )
    return tuple(rows)


def operation_rows() -> tuple[Row, ...]:
    """List the operations (``ops.X``) with their functions, graph nodes and classes."""
    return tuple(Row(name, operation_names(name.removeprefix("ops.")), ()) for name in OPS)


def plugin_rows() -> tuple[Row, ...]:
    """List the classes of shipped plugins, one row for each plugin and class."""
    return tuple(
        Row(name.rpartition(">")[2], (), (), plugin)
        for plugin, shipped in SHIPPED.items()
        for name in shipped.classes
    )
