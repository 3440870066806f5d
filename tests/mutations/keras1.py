"""Mutations of what only Keras 1 has: its words, its planes, its Merge."""

from __future__ import annotations

from mutations.patches import Mutation, edit

MUTATIONS = {
    "a mask leaves a branch of a Merge": Mutation(
        edit("readers.config.keras1:_makes_mask", "return any(", "return False and any("),
        ("keras-1.2.2/merge_first_masked.h5",),
        rereads=True,
    ),
    "rows and columns of a padding change places": Mutation(
        edit(
            "readers.config.keras1:_around",
            "[padding[:2], padding[2:]]",
            "[padding[2:], padding[:2]]",
        ),
        ("keras-1.2.2/plane_around_tf.h5",),
        rereads=True,
    ),
    "masks stay in the branches of a Merge of Keras 2": Mutation(
        edit("readers.config.keras1:_Writer._branch", "self.masks_stay and", "True and"),
        ("keras-2.0.8/merge_legacy_masked.h5",),
        rereads=True,
    ),
}
