"""Mutations of layers that merge."""

from __future__ import annotations

from mutations.patches import Mutation, edit

MUTATIONS = {
    "a cosine over one length only": Mutation(
        edit("layers.merging:Cosine.forward", "(y * y).sum(dim=1)", "(x * x).sum(dim=1)"),
        ("keras-1.2.2/merge_first_cosine.h5", "keras-1.2.2/merge_cosine.h5"),
    ),
}
