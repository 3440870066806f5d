"""``k2t layers``, ``k2t map`` and ``k2t plugin new``: what can be converted, and where it goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from keras2torch_birnn.cli.console import Output, print_columns, print_line, print_table
from keras2torch_birnn.cli.options import (
    ConfigPath,
    First,
    Last,
    ModelPath,
    Plugins,
    with_common_options,
)
from keras2torch_birnn.comparison.html import Table, format_cell
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.suggestions import did_you_mean
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from keras2torch_birnn.porting.weight_map import MapRow


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
    """List every class of the schema, in its order."""
    from keras2torch_birnn.schema import ALIASES, LAYERS

    rows = (
        Row(name, tuple(alias for alias in ALIASES if ALIASES[alias] == name), row.refused)
        for name, row in LAYERS.items()
    )
    return tuple(rows)


def operation_rows() -> tuple[Row, ...]:
    """List the operations (``ops.X``) with their functions, graph nodes and classes."""
    from keras2torch_birnn.readers.operations import operation_names
    from keras2torch_birnn.schema import OPS

    return tuple(Row(name, operation_names(name.removeprefix("ops.")), ()) for name in OPS)


def plugin_rows() -> tuple[Row, ...]:
    """List the classes of shipped plugins, one row for each plugin and class."""
    return tuple(
        Row(name.rpartition(">")[2], (), (), plugin)
        for plugin, shipped in SHIPPED.items()
        for name in shipped.classes
    )


def layers(
    output: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="CLASS",
            help="Only this class, by any of its names.",
        ),
    ] = None,
) -> None:
    """List the supported Keras layers and their unsupported options.

    Also list the layers of other packages that shipped plugins convert (--plugin NAME).

    Example: k2t layers

    Of one class: k2t layers GRU
    """
    rows = [*catalogue(), *operation_rows(), *plugin_rows()]
    if name is not None:
        known = [one for row in rows for one in (row.class_name, *row.aliases)]
        rows = [row for row in rows if name in (row.class_name, *row.aliases)]
        if not rows:
            raise UsageError(
                f"{printable(name)} is no layer that can be converted",
                did_you_mean(name, known) or "k2t layers lists them",
            )
    if output.as_json:
        output.print_result({"layers": [asdict(row) for row in rows]})
        return
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.plugin and (name or not row.class_name.startswith("ops.")):
            facts = ", ".join(row.aliases), "; ".join(row.refused)
            alike.setdefault(facts, []).append(row.class_name)
    if alike:
        print_columns(
            ("layers", "also called", "not supported"),
            [(", ".join(names), *facts) for facts, names in alike.items()],
        )
    if name is None:
        operations = [row.class_name for row in rows if row.class_name.startswith("ops.")]
        print_columns(("", ""), [("operations", ", ".join(operations))])
    plugins = {row.plugin: [r.class_name for r in rows if r.plugin == row.plugin] for row in rows}
    if any(plugins):
        print_line("")
        print_columns(
            ("--plugin", "layers", "of"),
            [
                (plugin, ", ".join(classes), SHIPPED[plugin].origin)
                for plugin, classes in plugins.items()
                if plugin
            ],
        )


_HEAD = ("Keras weight", "shape", "torch name", "shape", "what is done", "in k2t.weights")


def list_weights(
    output: Output,
    model: ModelPath,
    config: ConfigPath = None,
    plugin: Plugins = None,
    first: First = None,
    last: Last = None,
) -> None:
    """List where each weight of MODEL goes in PyTorch.

    With -v also its name in k2t.weights, if that is another.

    Example: k2t map model.h5
    """
    with output.show_progress(f"reading {model.name}"):
        with loading_torch():
            from keras2torch_birnn.porting.weight_map import map_weights
        rows = map_weights(
            model,
            config=config,
            plugins=plugin or (),
            cut=cut_at(first or (), last or ()),
        )
    if output.as_json:
        output.print_result({"model": str(model), "weights": [asdict(row) for row in rows]})
    else:
        print_table(make_table(rows, verbose=output.verbose))


def make_table(rows: Iterable[MapRow], *, verbose: bool = False) -> Table:
    """Return the table of weights; verbose: with the names in ``k2t.weights``."""
    head = _HEAD if verbose else _HEAD[:-1]
    cells = tuple(_cells(row)[: len(head)] for row in rows)
    return Table("From Keras to torch", head, cells)


def _cells(row: MapRow) -> tuple[str, ...]:
    keras_shape = "" if row.keras_shape is None else format_cell(row.keras_shape)
    key = row.key if row.key != row.keras else ""
    cells = (row.keras or "-", keras_shape, row.torch, format_cell(row.torch_shape), row.done, key)
    return tuple(map(printable, cells))


def new(
    output: Output, model: ModelPath, config: ConfigPath = None, plugin: Plugins = None
) -> None:
    """Print a plugin with a stub for each class without a converter.

    The stubs have the options and the names of the weights in MODEL. --plugin: of classes that
    have a converter already.

    Example: k2t plugin new model.h5 > my_layers.py
    """
    with loading_torch():
        from keras2torch_birnn.plugins.stubs import write_plugin

    made = write_plugin(model, config=config, plugins=plugin or ())
    output.print_notes(made.notes)
    data = {"plugin": made.text, "names": made.names, "notes": made.notes}
    output.print_result(data, made.text.removesuffix("\n").split("\n"))


plugin_commands = typer.Typer(
    help="Begin a plugin for layers that k2t has no converter for.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@plugin_commands.callback()
def _root() -> None:
    """Keep ``new`` a command of its own, though it is the only one."""


plugin_commands.command()(with_common_options(new))
