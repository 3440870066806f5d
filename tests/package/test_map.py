"""The map of the code in ``docs/architecture.md`` names every part, and what it may import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from package_source import MODULES, PACKAGE, modules_imported, part_in_name

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
BASE = {
    "spec",
    "errors",
    "suggestions",
    "limits",
    "progress",
    "torch_import",
}
# It runs exports, which are around the core.
AGAINST_THE_ORDER = {("verification", "exporting")}


def rows() -> Mapping[str, set[str]]:
    """Read the rows of the map: part -> the parts that it may import, in the order of the page."""
    head, _, _ = PAGE.read_text("utf-8").partition("## The way of `convert`")
    found = re.findall(r"^\| `(\w+)` \| .* \|(.*)\|$", head, re.MULTILINE)
    return {part: set(re.findall(r"`(\w+)`", imports)) for part, imports in found}


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(module: Path) -> set[str]:
    """Return the parts of the package that a module imports, wherever in it."""
    return {*map(part_in_name, modules_imported(module))}


def test_every_part_is_on_the_map() -> None:
    parts = {part_of(module) for module in MODULES}
    assert parts - BASE - {"__init__", "__main__"} == rows().keys()


def test_a_part_imports_only_what_the_map_allows() -> None:
    allowed = rows()
    found = {
        f"{module.relative_to(PACKAGE)} imports {imported}"
        for module in MODULES
        if (part := part_of(module)) in allowed
        for imported in imports_of(module)
        if imported in allowed.keys() - allowed[part] - {part}
    }
    assert found == set()


def test_the_base_imports_no_part() -> None:
    modules = [PACKAGE / f"{name}.py" for name in BASE]
    assert {name for module in modules for name in imports_of(module)} <= BASE


def test_imports_go_one_way() -> None:
    """A part imports those above it on the map."""
    order = list(rows())
    upward = {
        (part, imported)
        for part, imports in rows().items()
        for imported in imports
        if order.index(imported) >= order.index(part)
    }
    assert upward == AGAINST_THE_ORDER
