"""Lay out the pages for ``mkdocs``: README first, and a reference of all public Python names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import gallery
from markdown_links import rewrite_links

import keras2torch_birnn

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
PAGES = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")


def main() -> None:
    """Copy the documentation into ``build/site-source``, where ``mkdocs.yml`` looks for it."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    for notebook in sorted((SOURCE / "docs" / "gallery").glob("*.ipynb")):
        notebook.with_suffix(".md").write_text(gallery.as_page(notebook), encoding="utf-8")
        notebook.unlink()
    for name in PAGES:
        shutil.copyfile(ROOT / name, SOURCE / name)
    readme = (ROOT / "README.md").read_text("utf-8")
    (SOURCE / "index.md").write_text(readme, encoding="utf-8")
    (SOURCE / "api.md").write_text(reference(), encoding="utf-8")
    for page in SOURCE.rglob("*.md"):
        page.write_text(link_outside(page), encoding="utf-8")


def reference() -> str:
    """Return the page that ``mkdocstrings`` fills: one heading for each public name."""
    names = sorted(name for name in keras2torch_birnn.__all__ if not name.startswith("_"))
    lines = ["# Python", ""]
    for name in names:
        found = getattr(keras2torch_birnn, name)
        lines += [f"::: {found.__module__}.{found.__qualname__}", ""]
    return "\n".join(lines)


def link_outside(page: Path) -> str:
    """Return a page's text, with links to notebooks, which are pages here, and without others.

    Links to files that are no pages become plain names.
    """

    def check(text: str, target: str) -> str | None:
        if "://" in target or target.startswith("#"):
            return None
        target = re.sub(r"\.ipynb(?=#|$)", ".md", target)
        inside = (page.parent / target.partition("#")[0]).exists()
        return f"[{text}]({target})" if inside else text

    return rewrite_links(page.read_text("utf-8"), check)


if __name__ == "__main__":
    main()
