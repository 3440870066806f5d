"""Mutations of reshaping."""

from __future__ import annotations

from mutations.patches import TF, Mutation, edit

MUTATIONS = {
    "Flatten ignores channels_first": Mutation(
        edit("layers.reshaping:Flatten.forward", "self.channels_first and", "False and"),
        (f"{TF}/flatten_channels_first.h5",),
    ),
}
