"""Copy definitions out of modules of this package, with all that they use there.

The modules are parsed, never run: what a generated module holds is the text of tested code.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from keras2torch_birnn.errors import UnsupportedLayerError
from keras2torch_birnn.exporting.source.code import Helper

PACKAGE = "keras2torch_birnn"
_ROOT = Path(__file__).parents[3]
# The base of modules that print their arguments, which a copy does not.
_PRINTED = "Described"


@dataclass(frozen=True)
class Page:
    """One parsed module.

    definitions: name -> (its text, the names that it uses, its line). imported: name -> (module,
    name there, or "" for the module itself).
    """

    definitions: dict[str, tuple[str, frozenset[str], int]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Copied:
    """Definitions in an order in which they work, and imports: (module, name or "", alias)."""

    texts: list[str] = field(default_factory=list)
    imports: set[tuple[str, str]] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


@functools.cache
def read_page(module: str) -> Page:
    """Parse a module of this package."""
    path = _ROOT.joinpath(*module.split("."))
    source = path.with_suffix(".py")
    text = (source if source.is_file() else path / "__init__.py").read_text("utf-8")
    page, lines = Page(), text.splitlines()
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                page.imported[alias.asname or alias.name] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                page.imported[alias.asname or alias.name] = (node.module or "", alias.name)
        else:
            for name in _defined(node):
                page.definitions[name] = (_text(node, lines), _used(node), node.lineno)
    return page


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _text(node: ast.stmt, lines: list[str]) -> str:
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return "\n".join(lines[first - 1 : node.end_lineno]).replace(f"({_PRINTED})", "(nn.Module)")


def _used(node: ast.stmt) -> frozenset[str]:
    """Return the names that a definition reads and does not bind itself."""
    inside = [one for one in ast.walk(node) if one is not node]
    names = [one for one in inside if isinstance(one, ast.Name)]
    bound = {one.id for one in names if isinstance(one.ctx, ast.Store)}
    bound |= {one.arg for one in inside if isinstance(one, ast.arg)}
    bound |= {one.name for one in inside if isinstance(one, ast.FunctionDef)}
    return frozenset({one.id for one in names} - bound - {_PRINTED})


def copy(helpers: Iterable[Helper]) -> Copied:
    """Copy definitions with all that they use, what is used before what uses it."""
    out = Copied()
    seen: dict[str, str] = {}
    for helper in helpers:
        _visit(helper.__module__, helper.__name__, out, seen)
    return out


def _visit(module: str, name: str, out: Copied, seen: dict[str, str]) -> None:
    page = read_page(module)
    if name in page.imported and name not in page.definitions:
        other, original = page.imported[name]
        if name not in (original, other):
            raise UnsupportedLayerError(f"{other} has no place in plain PyTorch source")
        if not other.startswith(PACKAGE):
            out.imports.add((other, original))
            out.names.add(name)
            return
        if not original:
            raise LookupError(f"{module} imports a module")
        _visit(other, original, out, seen)
        return
    if seen.setdefault(name, module) != module:
        raise UnsupportedLayerError(
            f"two functions {name}, of {module} and {seen[name]}, "
            "have no form in one plain PyTorch module yet"
        )
    if name in out.names:
        return
    out.names.add(name)
    text, used, _ = page.definitions[name]
    own = [one for one in used if one in page.definitions and one != name]
    imported = sorted(used & page.imported.keys() - page.definitions.keys())
    for one in (*sorted(own, key=lambda one: page.definitions[one][2]), *imported):
        _visit(module, one, out, seen)
    out.texts.append(text)
