"""Mutations of Dense, EinsumDense, Embedding, Highway and Maxout."""

from __future__ import annotations

from keras2torch_birnn.layers import registry
from mutations.patches import (
    K3,
    TF,
    Mutation,
    change_mask_flow,
    edit,
    mutation,
)

MUTATIONS: list[Mutation] = [
    mutation(
        "Dense kernel not transposed",
        edit("layers.dense:linear", "kernel.T", "kernel"),
        "square Dense",
    ),
    mutation(
        "EinsumDense without its activation",
        edit("layers.dense:_activated", 'layer.config["activation"]', '"linear"'),
        f"{TF}/einsum_variable.h5",
        f"{K3}/einsum.keras",
    ),
    mutation(
        "EinsumDense without its bias",
        edit("layers.dense:EinsumDense.forward", "y if self.bias is None else y + self.bias", "y"),
        f"{TF}/einsum.h5",
        f"{K3}/einsum_variable.h5",
    ),
    mutation(
        "inputs of layers in int8 as they are",
        edit("layers.dense:to_eight_bits", ".round()", ""),
        f"{K3}/quantized.keras",
        f"{K3}/quantized_einsum.keras",
    ),
    mutation(
        "no mask after a ReversibleEmbedding",
        change_mask_flow("ReversibleEmbedding", registry.NONE),
        f"{K3}/reversible.keras",
    ),
    mutation(
        "random projections without their scale",
        edit("layers.dense:RandomFourierFeatures.forward", " / self.scale", ""),
        f"{TF}/random_fourier.keras",
    ),
    mutation(
        "a highway carries what it should let through",
        edit("layers.dense:Highway.forward", "(1 - gate) * x", "gate * x"),
        "keras-1.2.2/highway_maxout.h5",
        "keras-2.2.4/highway_maxout.h5",
    ),
    mutation(
        "the smallest of several products",
        edit("layers.dense:Maxout.forward", ".amax(dim=1)", ".amin(dim=1)"),
        "keras-1.2.2/highway_maxout.h5",
        "keras-2.2.4/highway_maxout.h5",
    ),
    mutation(
        "a maxout's features and units change places",
        edit("layers.dense:maxout", "kernel.transpose(0, 2, 1)", "kernel.transpose(2, 0, 1)"),
        "keras-1.2.2/highway_maxout.h5",
        "keras-2.3.1/highway_maxout.h5",
    ),
]
