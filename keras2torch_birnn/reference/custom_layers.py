"""Layers of plugins: by the NumPy equation that the plugin gives."""

from __future__ import annotations

import numpy as np

from keras2torch_birnn.errors import PluginError
from keras2torch_birnn.reference.context import Context, OwnEquations, Result
from keras2torch_birnn.schema.custom_cells import is_custom_cell, sizes_of
from keras2torch_birnn.schema.custom_layers import (
    equation_of,
    initial_states_of,
    naming_plugin,
    shown,
)
from keras2torch_birnn.spec import Array, LayerSpec, Structure, with_dtype


def by_plugin(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Run the user's equation, ``(layer, x, mask) -> (output, mask)``, in this run's precision.

    Of a cell: ``(cell, x, states) -> (output, states)``, with the states in the place of the mask.

    Raises:
        PluginError: there is none, it fails, or does not return a pair.
    """
    equation = equation_of(layer)
    if equation is None:
        raise PluginError(f"{shown(layer)}: it has no NumPy equation", place=layer.place)
    exact = with_dtype(layer, np.dtype(context.dtype))
    with naming_plugin(layer, "its equation"):
        result = equation(exact, inputs, mask, **context.call_options)
    if not isinstance(result, tuple) or len(result) != 2:
        second = "states" if is_custom_cell(layer) else "mask of the output"
        raise PluginError(
            f"{shown(layer)}: its equation returns {type(result).__name__}",
            f"a pair is expected: (output, {second})",
            place=layer.place,
        )
    output, after = result
    return output, after


def initial_states_by_plugin(cell: LayerSpec, rows: int, context: Context) -> tuple[Array, ...]:
    """Run the user's function of a cell's initial states, ``(cell, rows) -> arrays (rows, size)``.

    Raises:
        PluginError: there is none, it fails, or its arrays do not fit ``state_size=``.
    """
    function = initial_states_of(cell)
    if function is None:
        raise PluginError(
            f"{shown(cell)}: its equation has no initial states",
            "say initial_state= in k2t.equation",
            place=cell.place,
        )
    with naming_plugin(cell, "its initial_state= function"):
        states = function(with_dtype(cell, np.dtype(context.dtype)), rows)
        found = tuple(map(context.number, states if isinstance(states, tuple | list) else [states]))
    wanted = [(rows, size) for size in sizes_of(cell).states]
    if [state.shape for state in found] != wanted:
        raise PluginError(
            f"{shown(cell)}: its initial_state= function returns arrays of shapes "
            f"{[state.shape for state in found]}, {wanted} is expected",
            "state_size= says that",
            place=cell.place,
        )
    return found


BY_PLUGIN = OwnEquations(by_plugin, initial_states_by_plugin)
