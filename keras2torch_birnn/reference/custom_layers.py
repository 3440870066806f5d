"""Layers of plugins: by the NumPy equation that the plugin gives."""

from __future__ import annotations

import numpy as np

from keras2torch_birnn.errors import PluginError
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.schema.custom_cells import is_custom_cell
from keras2torch_birnn.schema.custom_layers import equation_of, naming_plugin, shown
from keras2torch_birnn.spec import LayerSpec, Structure, with_dtype


def by_plugin(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
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
