"""What Keras' layers are: their options, the weights they own and the shapes they produce.

One row per class, on the page of its family; ``SCHEMA`` joins them. Readers parse options and
weights by it, the builder and the reference never meet a value that did not pass through it. No
torch, no h5py.
"""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import (
    attention,
    cells,
    convolution,
    core,
    einsum,
    local,
    merging,
    operations,
    preprocessing,
    recurrent,
    reshaping,
    windows,
)
from keras2torch_birnn.schema.cells import RECURRENT, cells_in_order, states_of
from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    ACTIVATIONS,
    REQUIRED,
    BadOptionError,
    Option,
    parse_activation,
)
from keras2torch_birnn.schema.recurrent import CELL_GATES, CELL_STATES, merged_output
from keras2torch_birnn.schema.row import Schema, ShapeError, normalized_axes

_MODELS: Mapping[str, Schema] = {
    "InputLayer": Schema(
        {"shape": Option(None, lambda shape: shape), "dtype": Option("float32", lambda d: d)}
    ),
    "Sequential": Schema(),
    "Functional": Schema(aliases=("Model",)),
}

LAYERS: Mapping[str, Schema] = {
    **_MODELS,
    **recurrent.LAYERS,
    **cells.LAYERS,
    **core.LAYERS,
    **einsum.LAYERS,
    **reshaping.LAYERS,
    **windows.LAYERS,
    **convolution.LAYERS,
    **local.LAYERS,
    **preprocessing.LAYERS,
    **merging.LAYERS,
    **attention.LAYERS,
}
OPS = operations.OPS
CELLS = cells.CELLS
SCHEMA: Mapping[str, Schema] = {**LAYERS, **OPS, **CELLS}

CLASS_NAMES: Mapping[str, str] = {
    **{name: name for name in SCHEMA},
    **{alias: name for name, schema in SCHEMA.items() for alias in schema.aliases},
}

__all__ = [
    "ACTIVATIONS",
    "ACTIVATION_OPTIONS",
    "CELLS",
    "CELL_GATES",
    "CELL_STATES",
    "CLASS_NAMES",
    "LAYERS",
    "OPS",
    "RECURRENT",
    "REQUIRED",
    "SCHEMA",
    "BadOptionError",
    "Option",
    "Schema",
    "ShapeError",
    "cells_in_order",
    "merged_output",
    "normalized_axes",
    "parse_activation",
    "states_of",
]
