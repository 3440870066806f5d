"""Mutations of what is called with a model or Pipeline."""

from __future__ import annotations

from mutations.patches import K3, Mutation, edit

_FIND = "readers.config.calls:_resolve_passed_mask"
MUTATIONS = {
    "a mask reaches what follows a first layer of a Pipeline that takes none": Mutation(
        edit(_FIND, "not _takes_mask(layer)", "False"),
        (f"{K3}/pipeline_masked.keras",),
        rereads=True,
    ),
    "a mask that is passed to a Pipeline is lost": Mutation(
        edit(_FIND, "not _takes_mask(layer)", "True"),
        (f"{K3}/pipeline_masked.keras",),
        rereads=True,
    ),
}
