"""Patches for deliberate bugs: of one function, or of one entry of a table."""

from __future__ import annotations
import __future__

import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from keras2torch_birnn.schema.row import Pages

Patch = Callable[[pytest.MonkeyPatch], None]


def compile_edited(function: Any, old: str, new: str) -> Any:
    """Compile a function with one expression replaced; the source must contain it once."""
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]  # without decorators
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {function}"
    source = source.replace(old, new)
    cells = function.__code__.co_freevars  # ``__class__`` where the method calls super()
    name = function.__name__
    outer = source  # a function that calls itself finds itself in its module
    if cells:
        outer = f"def outer({', '.join(cells)}):\n{textwrap.indent(source, '    ')}"
        outer += f"\n    return {name}"
    namespace = dict(function.__globals__)
    flags = __future__.annotations.compiler_flag
    exec(compile(outer, f"<mutated {name}>", "exec", flags), namespace)
    return (namespace["outer"](*cells) if cells else namespace[name]).__code__


def edit(name: str, old: str, new: str) -> Patch:
    """Replace an expression in a function of the package, wherever it is used."""

    def patch(patching: pytest.MonkeyPatch) -> None:
        function = pkgutil.resolve_name(f"keras2torch_birnn.{name}")
        patching.setattr(function, "__code__", compile_edited(function, old, new))

    return patch


def wrap(table: Any, key: str, wrapper: Callable[[Any], Any]) -> Patch:
    """Replace an entry of a dict, or an attribute."""

    def patch(patching: pytest.MonkeyPatch) -> None:
        if isinstance(table, Mapping):
            # a dict behind a type that offers no writing
            entries: Any = table.find_table(key) if isinstance(table, Pages) else table
            patching.setitem(entries, key, wrapper(entries[key]))
        else:
            patching.setattr(table, key, wrapper(getattr(table, key)))

    return patch


def put(table: Any, key: str, value: Any) -> Patch:
    """Replace an entry of a dict, or an attribute, by a value."""
    return wrap(table, key, lambda _: value)


def both(*patches: Patch) -> Patch:
    """Join several patches into one bug."""

    def patch(patching: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(patching)

    return patch
