"""``k2t inspect``: the layers of a model as a table, with reasons as footnotes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from keras2torch_birnn.cli.console import (
    Output,
    describe_failure,
    print_columns,
    print_error,
    print_line,
    print_lines,
    print_table,
)
from keras2torch_birnn.cli.options import ConfigPath, First, Last, ModelPath, Plugins
from keras2torch_birnn.comparison.html import format_cell
from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    gather,
    printable,
)
from keras2torch_birnn.plugins import load_plugins

if TYPE_CHECKING:
    from keras2torch_birnn.inspection import Inspection


def inspect(
    output: Output,
    model: ModelPath,
    config: ConfigPath = None,
    plugin: Plugins = None,
    first: First = None,
    last: Last = None,
) -> None:
    """Show each layer with its engine, and what is not supported.

    MODEL may also be what `k2t convert` wrote. Of a file that holds only weights, list them.

    Example: k2t inspect model.h5
    """
    load_plugins(plugin or ())
    from keras2torch_birnn.inspection import inspect as look

    with output.show_progress(f"reading {model.name}"):
        try:
            found = look(model, config=config, from_layer=first or (), to_layer=last or ())
        except MissingArchitectureError:
            if not output.as_json:
                _print_weights(model)
            raise
    error = gather(found.problems) if found.problems else None
    if error is not None:
        error.file = str(model)
    if output.as_json:
        output.print_result(_as_data(found, error))
    else:
        _print_layers(found, verbose=output.verbose)
    output.print_notes(found.notes)
    if error is not None:
        print_error(error)
        raise typer.Exit(error.exit_code)


def _as_data(inspection: Inspection, error: K2TError | None) -> dict[str, Any]:
    verdict = {"ok": True, "exit": 0, "problems": []} if error is None else describe_failure(error)
    return {
        **verdict,
        "layers": [asdict(row) for row in inspection.rows],
        "parameters": inspection.parameters,
        "notes": inspection.notes,
        "unsupported": [line for problem in inspection.problems for line in problem.lines()],
    }


def _print_layers(found: Inspection, *, verbose: bool) -> None:
    """Print the layers, the reasons of their engines, and what they have in training."""
    table, footnotes = found.table(every_half=verbose)
    print_table(table)
    print_line("")
    print_lines(footnotes)
    trained = [(printable(row.path), row.training) for row in found.rows if row.training]
    if trained:
        print_line("")
        print_columns(("layer", "in training"), trained)
    if found.count():
        print_lines(("", found.count()))


def _print_weights(model: Any) -> None:
    """Print the names, shapes and dtypes of a file that holds only weights."""
    from keras2torch_birnn.readers.steps import weights

    found = weights(model)
    print_columns(
        ("weight", "shape", "dtype"),
        [(printable(name), format_cell(a.shape), str(a.dtype)) for name, a in found.items()],
    )
