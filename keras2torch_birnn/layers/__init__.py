"""One page per family of layers: torch module, weight mapping and converter together."""

from keras2torch_birnn.layers import (
    activation,
    convolution,
    dense,
    dropout,
    embedding,
    graph,
    normalization,
    operation,
    pooling,
    recurrent,
    shape,
    time_distributed,
)

__all__ = [
    "activation",
    "convolution",
    "dense",
    "dropout",
    "embedding",
    "graph",
    "normalization",
    "operation",
    "pooling",
    "recurrent",
    "shape",
    "time_distributed",
]
