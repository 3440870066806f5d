"""Cells of an RNN, and stacks of cells.

A cell is no layer: it computes one step (B, F) inside an RNN, or in a stack of cells inside
one. ``RNN`` over one cell computes what that cell's layer does.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import REQUIRED, choice
from keras2torch_birnn.schema.recurrent import CELL_GATES, CELL_OPTIONS, OWN_OPTIONS, cell_weights
from keras2torch_birnn.schema.row import Config, Schema, known
from keras2torch_birnn.spec import LayerSpec, Shape

# class of a cell -> class of its layer
CELL_LAYERS: Mapping[str, str] = {f"{layer}Cell": layer for layer in CELL_GATES}
STACK = "StackedRNNCells"


def cells_in_order(cell: LayerSpec) -> tuple[LayerSpec, ...]:
    """Return the cells that every step goes through."""
    return tuple(cell.parts.values()) if cell.class_name == STACK else (cell,)


def _cell_output(config: Config, shape: Shape | None) -> Shape:
    step = known(shape, rank=2)
    return (step[0] if step else None, config["units"])


def _cell(layer: str) -> Schema:
    options = {**CELL_OPTIONS, **OWN_OPTIONS[layer]}
    return Schema(options, cell_weights(CELL_GATES[layer], rank=2), _cell_output)


CELLS: Mapping[str, Schema] = {
    **{cell: _cell(layer) for cell, layer in CELL_LAYERS.items()},
    # states: the order in which all the cells' states are handed in and out
    STACK: Schema(
        semantics={"states": choice(REQUIRED, "first cell first", "last cell first")},
        parts=("cells",),
    ),
}
