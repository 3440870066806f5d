"""Mutations of Dense, EinsumDense, Embedding, Highway and Maxout."""

from __future__ import annotations

from keras2torch_birnn.layers import registry
from mutations.patches import K3, TF, Mutation, change_mask_flow, edit

MUTATIONS = {
    "Dense kernel not transposed": Mutation(
        edit("layers.dense:linear", "kernel.T", "kernel"), ("square Dense",)
    ),
    "EinsumDense without its activation": Mutation(
        edit("layers.dense:_activated", 'layer.config["activation"]', '"linear"'),
        (f"{TF}/einsum_variable.h5", f"{K3}/einsum.keras"),
    ),
    "EinsumDense without its bias": Mutation(
        edit("layers.dense:EinsumDense.forward", "y if self.bias is None else y + self.bias", "y"),
        (f"{TF}/einsum.h5", f"{K3}/einsum_variable.h5"),
    ),
    "inputs of layers in int8 as they are": Mutation(
        edit("layers.dense:to_eight_bits", ".round()", ""),
        (f"{K3}/quantized.keras", f"{K3}/quantized_einsum.keras"),
    ),
    "no mask after a ReversibleEmbedding": Mutation(
        change_mask_flow("ReversibleEmbedding", registry.NONE), (f"{K3}/reversible.keras",)
    ),
    "random projections without their scale": Mutation(
        edit("layers.dense:RandomFourierFeatures.forward", " / self.scale", ""),
        (f"{TF}/random_fourier.keras",),
    ),
    "a highway carries what it should let through": Mutation(
        edit("layers.dense:Highway.forward", "(1 - gate) * x", "gate * x"),
        ("keras-1.2.2/highway_maxout.h5", "keras-2.2.4/highway_maxout.h5"),
    ),
    "the smallest of several products": Mutation(
        edit("layers.dense:Maxout.forward", ".amax(dim=1)", ".amin(dim=1)"),
        ("keras-1.2.2/highway_maxout.h5", "keras-2.2.4/highway_maxout.h5"),
    ),
    "a maxout's features and units change places": Mutation(
        edit("layers.dense:maxout", "kernel.transpose(0, 2, 1)", "kernel.transpose(2, 0, 1)"),
        ("keras-1.2.2/highway_maxout.h5", "keras-2.3.1/highway_maxout.h5"),
    ),
}
