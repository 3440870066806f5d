"""``k2t inspect``: the layers of a model as a table, with reasons as footnotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import typer

from keras2torch_birnn.cli.console import (
    Output,
    count_words,
    describe_failure,
    print_error,
    print_line,
    print_lines,
)
from keras2torch_birnn.cli.options import ConfigPath, First, Last, ModelPath, Plugins
from keras2torch_birnn.cli.tables import format_cell, print_columns
from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    gather,
    printable,
)
from keras2torch_birnn.plugins import load_plugins

if TYPE_CHECKING:
    from keras2torch_birnn.inspection import Inspection, LayerRow

_HEAD = ("layer", "class", "shape", "merge", "activ.", "mask", "params", "engine")
_FOLDS = tuple(map(_HEAD.index, ("activ.", "shape", "mask", "engine", "class", "layer")))
_NUMBERS = (_HEAD.index("params"),)


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
        _print_rows(found.rows, verbose=output.verbose)
        if found.layers is not None and found.parameters is not None:
            print_line("")
            layers = count_words(found.layers, "layer")
            print_line(f"{layers}, {found.parameters:,} parameters, as Keras counts")
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


def _print_rows(rows: Sequence[LayerRow], *, verbose: bool) -> None:
    """Print the layers; reasons that several have are one footnote."""
    shown = rows if verbose else _without_equal_halves(rows)
    reasons = dict.fromkeys(row.reason for row in shown if row.engine and row.reason)
    notes = {reason: at for at, reason in enumerate(reasons, 1)}
    print_columns(_HEAD, [_cells(row, notes) for row in shown], numbers=_NUMBERS)
    print_line("")
    print_lines(f"[{at}] {printable(reason)}" for reason, at in notes.items())
    trained = [(printable(row.path), row.training) for row in rows if row.training]
    if trained:
        print_line("")
        print_columns(("layer", "in training"), trained)


def _cells(row: LayerRow, notes: dict[str, int]) -> tuple[str, ...]:
    mark = f" [{notes[row.reason]}]" if row.reason in notes else ""
    half = "  " + row.path.removeprefix(row.half_of).lstrip("/") if row.half_of else ""
    return (
        printable(half or row.path),
        printable(row.class_name),
        format_cell(row.output_shape),
        row.merge_mode,
        printable(row.gates),
        row.mask.removesuffix(" on").removesuffix(" it"),
        "" if row.parameters is None else f"{row.parameters:,}",
        f"{row.engine}{mark}" if row.engine else "unsupported",
    )


def _without_equal_halves(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Leave out the halves of a Bidirectional layer, which shows their activations, if equal."""
    halves: dict[str, list[LayerRow]] = {}
    for row in rows:
        if row.half_of:
            halves.setdefault(row.half_of, []).append(row)
    equal = {
        path: pair[0]
        for path, pair in halves.items()
        if len({(h.class_name, h.gates, h.engine, h.reason, h.parameters) for h in pair}) == 1
    }
    return [
        replace(row, gates=equal[row.path].gates) if row.path in equal else row
        for row in rows
        if row.half_of not in equal
    ]


def _print_weights(model: Any) -> None:
    """Print the names, shapes and dtypes of a file that holds only weights."""
    from keras2torch_birnn.readers.named_weights import weights

    found = weights(model)
    print_columns(
        ("weight", "shape", "dtype"),
        [(printable(name), format_cell(a.shape), str(a.dtype)) for name, a in found.items()],
    )
