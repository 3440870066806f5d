"""Mutations of layers that change images in training only."""

from __future__ import annotations

from torch import Tensor, nn

from keras2torch_birnn.layers import registry
from mutations.patches import K3, TF, by_name, mutation, put

BUGS = {
    "RandomFlip flips at inference": mutation(
        put(
            registry.CONVERTERS,
            "RandomFlip",
            registry.Converter(lambda layer: _Flip(), registry.NONE),
        ),
        f"{TF}/augmented.h5",
        f"{K3}/augmented_nested.keras",
    )
}
MUTATIONS = by_name(BUGS)


class _Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(2)
