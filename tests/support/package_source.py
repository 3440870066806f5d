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
