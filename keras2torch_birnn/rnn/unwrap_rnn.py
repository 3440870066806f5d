"""RNN over one cell is the layer of that cell: the same options, the same weights. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema import cells_in_order
from keras2torch_birnn.schema.cells import CELL_LAYERS
from keras2torch_birnn.spec import LayerSpec

# How a cell in a stack reads: all steps, forward.
_ALONE: Mapping[str, Any] = {
    "return_sequences": True,
    "return_state": True,
    "go_backwards": False,
    "stateful": False,
    "unroll": False,
    "time_major": False,
}


def unwrap(layer: LayerSpec) -> LayerSpec:
    """Return an RNN over one cell as an LSTM, GRU or SimpleRNN; any other layer unchanged."""
    cell = layer.parts.get("cell")
    if cell is None or cell.class_name not in CELL_LAYERS:
        return layer
    return _as_layer(cell, layer.config, layer.semantics, layer)


def layers_of_stack(layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """Return the cells of an RNN's stack as layers: each reads the outputs of the one before.

    Exact under any mask: a masked step leaves the states of all cells unchanged.
    """
    return tuple(layer_of_cell(cell, layer) for cell in cells_in_order(layer.parts["cell"]))


def layer_of_cell(cell: LayerSpec, layer: LayerSpec) -> LayerSpec:
    """Return a cell of Keras in the stack of an RNN as a layer."""
    loop = {**_ALONE, "trainable": layer.parts["cell"].config.get("trainable", True)}
    return _as_layer(cell, loop, {"masked_output": "zeros"}, layer)


def _as_layer(
    cell: LayerSpec, loop: Mapping[str, Any], semantics: Mapping[str, Any], outer: LayerSpec
) -> LayerSpec:
    learns = all(part.get("trainable", True) for part in (outer.config, loop, cell.config))
    return LayerSpec(
        CELL_LAYERS[cell.class_name],
        outer.name,
        {**cell.config, **loop, "trainable": learns},
        cell.weights,
        place=outer.place,
        input_shape=outer.input_shape,
        output_shape=outer.output_shape,
        semantics=semantics,
    )
