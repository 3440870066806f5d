"""List the supported layers from the schema, for ``k2t layers`` and the documentation."""

from __future__ import annotations

from dataclasses import dataclass

from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.readers.operations import operation_names
from keras2torch_birnn.schema import LAYERS, OPS


@dataclass(frozen=True)
class Row:
    """One layer class: its other names and the options that are refused.

    ``plugin``: the shipped plugin that has to be switched on for it.
    """

    class_name: str
    aliases: tuple[str, ...]
    refused: tuple[str, ...]
    plugin: str = ""


def catalogue() -> tuple[Row, ...]:
    """Every class of the schema, in its order."""
    return tuple(Row(name, row.aliases, row.refused) for name, row in LAYERS.items())


def operation_rows() -> tuple[Row, ...]:
    """The operations (``ops.X``) with the functions, graph nodes and classes that they are."""
    return tuple(Row(name, operation_names(name.removeprefix("ops.")), ()) for name in OPS)


def plugin_rows() -> tuple[Row, ...]:
    """The classes of shipped plugins, one row for each plugin and class."""
    return tuple(
        Row(name.rpartition(">")[2], (), (), plugin)
        for plugin, shipped in SHIPPED.items()
        for name in shipped.classes
    )
