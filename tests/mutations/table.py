"""All deliberate bugs that change what whole models compute, and the files that notice each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from mutations import PAGES, operations
from mutations.patches import Mutation

OF_LAYERS = tuple(mutation for page in PAGES.values() for mutation in page)


def _noticed() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    mutations: tuple[Mutation, ...] = (*OF_LAYERS, *operations.MUTATIONS)
    for mutation in mutations:
        for file in mutation.files:
            found[file].append(mutation.name)
    return found


# File -> the names of the mutations that it notices: ``tests/parity/test_mutations.py`` proves it.
NOTICED = _noticed()
