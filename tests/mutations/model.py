"""Mutations of what is called with a model or Pipeline."""

from __future__ import annotations

from mutations.patches import K3, Mutation, edit, mutation

_FIND = "readers.config.calls:_resolve_passed_mask"
MUTATIONS: list[Mutation] = [
    mutation(
        "a mask reaches what follows a first layer of a Pipeline that takes none",
        edit(_FIND, "not _takes_mask(layer)", "False"),
        f"{K3}/pipeline_masked.keras",
        rereads=True,
    ),
    mutation(
        "a mask that is passed to a Pipeline is lost",
        edit(_FIND, "not _takes_mask(layer)", "True"),
        f"{K3}/pipeline_masked.keras",
        rereads=True,
    ),
]
