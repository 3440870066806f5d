"""One page per family of layers: torch module, weight mapping and converter together."""

from keras2torch_birnn.layers import (
    activation,
    attention,
    convolution,
    dense,
    dropout,
    embedding,
    graph,
    highway,
    merging,
    normalization,
    operation,
    pooling,
    preprocessing,
    recurrent,
    shape,
    time_distributed,
)

__all__ = [
    "activation",
    "attention",
    "convolution",
    "dense",
    "dropout",
    "embedding",
    "graph",
    "highway",
    "merging",
    "normalization",
    "operation",
    "pooling",
    "preprocessing",
    "recurrent",
    "shape",
    "time_distributed",
]
