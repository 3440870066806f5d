"""``k2t map``: the table of weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from keras2torch_birnn.cli.console import Output
from keras2torch_birnn.cli.options import ConfigPath, First, Last, ModelPath, Plugins
from keras2torch_birnn.cli.tables import print_table
from keras2torch_birnn.errors import printable
from keras2torch_birnn.html import Table, format_cell
from keras2torch_birnn.spec import cut_at
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from keras2torch_birnn.porting.weight_map import MapRow

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
