"""Build the torch module of a ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from keras2torch_birnn.layers.graph import graph_module
from keras2torch_birnn.rnn.engines import requested_engine
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import ModelSpec, with_dtype

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


def build(model: ModelSpec, *, dtype: str | None = None) -> fx.GraphModule:
    """Build the torch module of a spec: eval mode, CPU, the file's dtype or ``dtype``.

    Parameters share the memory of the spec's arrays where the layout allows (no copy of a large
    Embedding), so a model that is trained in place changes the spec it was built from.

    Raises:
        UnsupportedLayerError, UnsupportedOptionError: lists everything that cannot be built.
        UsageError: no such dtype, or no such engine as ``K2T_ENGINE`` names.
    """
    requested_engine()  # for its refusal: once, not once a layer
    root = with_training_rules(model.root, model.generation)  # these need the file's own dtype
    root = root if dtype is None else with_dtype(root, _numpy_dtype(dtype))
    module = graph_module(root).eval()
    return module if dtype is None else module.to(DTYPES[dtype])  # constants of layers as well


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name not in DTYPES:
        from keras2torch_birnn.suggestions import unknown_value

        raise unknown_value(f"dtype {name!r}", DTYPES, name)
    return np.dtype(name)
