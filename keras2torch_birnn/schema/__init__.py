"""Schema of Keras' layers: options, weights and output shapes.

One row per class, on the page of its family; ``SCHEMA`` joins them. Readers parse options and
weights by it, the builder and the reference never meet a value that did not pass through it. No
torch, no h5py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema import (
    activation,
    attention,
    augmentation,
    cells,
    conv_lstm,
    convolution,
    dense,
    dropout,
    embedding,
    hashing,
    local,
    masking,
    merging,
    model,
    normalization,
    operations,
    pooling,
    preprocessing,
    recurrent,
    reshaping,
    resizing,
    spectrograms,
    time_distributed,
)
from keras2torch_birnn.schema.cells import cells_in_order
from keras2torch_birnn.schema.conv_lstm import CONV_LSTMS
from keras2torch_birnn.schema.options import (
    ACTIVATION_OPTIONS,
    ACTIVATIONS,
    REQUIRED,
    BadOptionError,
    Option,
    parse_activation,
)
from keras2torch_birnn.schema.recurrent import CELL_GATES, CELL_STATES, merged_output
from keras2torch_birnn.schema.row import Schema, ShapeError, joined, normalized_axes

# In the order of lists and tables.
_PAGES: tuple[Any, ...] = (
    model,
    recurrent,
    conv_lstm,
    time_distributed,
    dense,
    embedding,
    masking,
    activation,
    dropout,
    normalization,
    reshaping,
    resizing,
    spectrograms,
    pooling,
    convolution,
    local,
    preprocessing,
    hashing,
    merging,
    attention,
    augmentation,
)
LAYERS: Mapping[str, Schema] = joined(*(page.LAYERS for page in _PAGES))
# The page of each class; other packages have pages of the same names.
PAGES: Mapping[str, str] = {
    name: page.__name__.rpartition(".")[2] for page in _PAGES for name in page.LAYERS
}
OPS = operations.OPS
CELLS = cells.CELLS
SCHEMA: Mapping[str, Schema] = joined(LAYERS, OPS, CELLS)

# What can be half of a Bidirectional.
RECURRENT: tuple[str, ...] = (*CELL_GATES, "RNN", *CONV_LSTMS)

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
    "PAGES",
    "RECURRENT",
    "REQUIRED",
    "SCHEMA",
    "BadOptionError",
    "Option",
    "Schema",
    "ShapeError",
    "cells_in_order",
    "joined",
    "merged_output",
    "normalized_axes",
    "parse_activation",
]
