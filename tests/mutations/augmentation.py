"""Mutations of layers that change images in training only."""

from __future__ import annotations

from torch import Tensor, nn

from keras2torch_birnn.layers import registry
from mutations.patches import K3, TF, Mutation, put

MUTATIONS = {
    "RandomFlip flips at inference": Mutation(
        put(
            registry.CONVERTERS,
            "RandomFlip",
            registry.Converter(lambda layer: _Flip(), registry.NONE),
        ),
        (f"{TF}/augmented.h5", f"{K3}/augmented_nested.keras"),
    ),
}


class _Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(2)
