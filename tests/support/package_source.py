"""The package's modules as syntax trees, each parsed once in a process."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import keras2torch_birnn

PACKAGE = Path(keras2torch_birnn.__file__).parent
MODULES = tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def nodes(module: Path) -> tuple[ast.AST, ...]:
    """All nodes of a module, in the order of ``ast.walk``."""
    return tuple(ast.walk(ast.parse(module.read_text("utf-8"))))


@cache
def imported(module: Path) -> frozenset[str]:
    """Top names of everything that a module imports, wherever in it."""
    names = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names.add((node.module or "").partition(".")[0])
    return frozenset(names)


def name_of(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(module): module for module in MODULES}


@cache
def modules_imported(module: Path) -> frozenset[str]:
    """Names of the package's modules that one imports, wherever in it."""
    found = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else str(node.module) for name in full}
    return frozenset(found & NAMES.keys())


def part_in_name(module: str) -> str:
    """Return the package or module right below the root; nothing for the root."""
    return module.partition(".")[2].partition(".")[0]
