"""``k2t layers``: what can be converted."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from keras2torch_birnn.cli.console import Output, print_line
from keras2torch_birnn.cli.tables import print_columns
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.suggestions import did_you_mean


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
    from keras2torch_birnn.cli.catalogue import catalogue, operation_rows, plugin_rows

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
    own = [row for row in rows if not row.plugin]
    if own:
        print_columns(
            ("layer", "also called", "not supported"),
            [(row.class_name, ", ".join(row.aliases), "; ".join(row.refused)) for row in own],
        )
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
