"""Deliberate bugs, a page of them for each family of layers.

A mutation edits one expression of the package (``edit``) or replaces one entry of a table. Each
has a name, and names the fixtures that must notice it. ``tests/parity/test_mutations.py`` applies
them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from mutations.patches import Mutation, by_name

# Modules that are no such page.
_OTHERS = {"checks", "cutting", "models", "operations", "patches", "table"}
PAGES: Mapping[str, list[Mutation]] = {
    page.name: by_name(import_module(f"mutations.{page.name}").MUTATIONS)
    for page in iter_modules(__path__)
    if page.name not in _OTHERS
}
