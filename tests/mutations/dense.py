"""Mutations of Dense and EinsumDense."""

from __future__ import annotations

from mutations.patches import K3, TF, Mutation, edit

MUTATIONS = {
    "Dense kernel not transposed": Mutation(
        edit("layers.core:linear", "kernel.T", "kernel"), ("square Dense",)
    ),
    "EinsumDense without its activation": Mutation(
        edit("layers.core:_activated", 'layer.config["activation"]', '"linear"'),
        (f"{TF}/einsum_variable.h5", f"{K3}/einsum.keras"),
    ),
    "EinsumDense without its bias": Mutation(
        edit("layers.core:EinsumDense.forward", "y if self.bias is None else y + self.bias", "y"),
        (f"{TF}/einsum.h5", f"{K3}/einsum_variable.h5"),
    ),
}
