"""The page for refused models quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from package_source import nodes

ROOT = Path(__file__).parents[2]


def texts(module: Path) -> Iterator[str]:
    """Yield the texts of a module; what is filled into one is "..."."""
    for node in nodes(module):
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_that_the_page_quotes_is_one_of_the_package() -> None:
    page = " ".join((ROOT / "docs" / "faq.md").read_text("utf-8").split())
    quoted = re.findall(r'\*\*"(.+?)"\*\*', page)
    assert len(quoted) > 15
    said = "\n".join(
        text for module in (ROOT / "keras2torch_birnn").rglob("*.py") for text in texts(module)
    )
    parts = {part.strip() for quote in quoted for part in quote.split("...") if part.strip()}
    assert [part for part in sorted(parts) if part not in said] == []
