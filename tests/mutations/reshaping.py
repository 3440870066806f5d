"""Mutations of reshaping."""

from __future__ import annotations

from mutations.patches import TF, by_name, edit, mutation

BUGS = {
    "Flatten ignores channels_first": mutation(
        edit("layers.reshaping:Flatten.forward", "self.channels_first and", "False and"),
        f"{TF}/flatten_channels_first.h5",
    )
}
MUTATIONS = by_name(BUGS)
