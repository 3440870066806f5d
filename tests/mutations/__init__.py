"""Deliberate bugs, a page of them for each family of layers, of the same name as in `schema/`.

A mutation edits one expression of the package (``edit``) or replaces one entry of a table. Each
has a name, and names the fixtures that must notice it. ``tests/parity/test_mutations.py`` applies
them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from keras2torch_birnn.schema import PAGES as FAMILIES
from mutations.patches import Mutation, by_name

# Families without a page, and why.
NOT_MUTATED: Mapping[str, str] = {
    "model": "its mistakes are those of graphs and masks, on the pages of these",
    "dropout": "the identity but in training, which tests of its layers compare with Keras",
}
PAGES: Mapping[str, list[Mutation]] = {
    page.name: by_name(import_module(f"mutations.{page.name}").MUTATIONS)
    for page in iter_modules(__path__)
    if page.name in {*FAMILIES.values(), "cells", "keras1"}
}
