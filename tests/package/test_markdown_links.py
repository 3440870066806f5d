"""Links of Markdown are rewritten for the site and for a package index, code is left alone."""

from __future__ import annotations

import runpy
from pathlib import Path

import make_site
import pytest
from markdown_links import rewrite_links

ROOT = Path(__file__).parents[2]
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))

CODE = {
    "a fence": "```python\nlayers[mode](x)[0]\n```\n",
    "a fence of tildes": "~~~\nlayers[mode](x)\n\n```\nlayers[mode](x)\n~~~\n",
    "a longer fence": "````text\n```\nlayers[mode](x)\n```\nlayers[mode](x)\n````\n",
    "a fence in a list": "- first\n\n  ```python\n  layers[mode](x)\n  ```\n",
    "a fence in a quotation": "> ```\n> layers[mode](x)\n> ```\n",
    "a fence without an end": "text\n```\nlayers[mode](x)\n",
    "indented code": "Text:\n\n    layers[mode](x)\n\n    layers[mode](y)\n",
    "code indented by a tab": "Text:\n\n\tlayers[mode](x)\n",
    "indented code in a list": "- first\n\n      layers[mode](x)\n",
    "code after a list": "- first\n\ntext\n\n    layers[mode](x)\n",
    "a span": "It is `layers[mode](x)[0]` here.\n",
    "a span of two backticks": "It is ``a ` layers[mode](x)`` here.\n",
    "a span over a line": "It is `layers[mode](x)\nlayers[mode](y)` here.\n",
    "a span after a lone backtick": "A ` here.\n\nAnd `layers[mode](x)` there.\n",
}
LINKS = {
    "plain": ("See [the page](docs/a.md).", "See <the page|docs/a.md>."),
    "two": ("[a](b.md), [c](d.md)", "<a|b.md>, <c|d.md>"),
    "with code as its text": ("See [`k2t`](docs/cli.md).", "See <`k2t`|docs/cli.md>."),
    "with brackets in code": ("See [`x[0]`](docs/a.md).", "See <`x[0]`|docs/a.md>."),
    "beside code": ("`a[0](x)` and [b](c.md), `d`", "`a[0](x)` and <b|c.md>, `d`"),
    "in a list": ("- one\n\n    [a](b.md) goes on\n", "- one\n\n    <a|b.md> goes on\n"),
    "in a longer line of a list": ("1. one\n   [a](b.md)\n", "1. one\n   <a|b.md>\n"),
    "after a fence": ("```\nx\n```\n[a](b.md)\n", "```\nx\n```\n<a|b.md>\n"),
    "in an indented line of a paragraph": ("text\n    [a](b.md)\n", "text\n    <a|b.md>\n"),
    "after what looks like a fence": ("```x``` and\n[a](b.md)\n", "```x``` and\n<a|b.md>\n"),
    "around a picture": ("[![p](q.svg)](b.md)", "<![p](q.svg)|b.md>"),
    "in a table": ("| [a](b.md) | `c` |\n", "| <a|b.md> | `c` |\n"),
}


@pytest.mark.parametrize("text", CODE.values(), ids=CODE)
def test_code_is_left_as_it_is(text: str) -> None:
    assert rewrite_links(text, lambda *_: "REWRITTEN") == text
    around = f"[a](b.md)\n\n{text}"
    assert rewrite_links(around, lambda *_: "REWRITTEN") == f"REWRITTEN\n\n{text}"


@pytest.mark.parametrize(("text", "wanted"), LINKS.values(), ids=LINKS)
def test_a_link_is_rewritten(text: str, wanted: str) -> None:
    assert rewrite_links(text, lambda shown, target: f"<{shown}|{target}>") == wanted
    assert rewrite_links(text, lambda *_: None) == text


@pytest.mark.parametrize("text", ["![a](b.png)", r"\[a](b.md)", "a[0] (b)", ""])
def test_what_is_no_link_is_left_as_it_is(text: str) -> None:
    assert rewrite_links(text, lambda *_: "REWRITTEN") == text


def test_every_link_of_a_page_looks_like_one() -> None:
    targets = []

    def keep(_: str, target: str) -> None:
        targets.append(target)

    for page in PAGES:
        text = page.read_text("utf-8")
        assert rewrite_links(text, keep) == text, page
    assert [one for one in targets if not {"#", "/", "."} & set(one)] == []


def test_the_site_keeps_code_and_turns_links_to_no_page_into_text(tmp_path: Path) -> None:
    page = tmp_path / "index.md"
    (tmp_path / "known.md").touch()
    (tmp_path / "shown.md").touch()
    page.write_text(
        "[known](known.md#part), [shown](shown.ipynb), [`lost`](lost.py), [web](https://a.b)\n\n"
        "```python\nlayers[mode](x)[0], f('a.ipynb')\n```\n"
    )
    assert make_site.link_outside(page) == (
        "[known](known.md#part), [shown](shown.md), `lost`, [web](https://a.b)\n\n"
        "```python\nlayers[mode](x)[0], f('a.ipynb')\n```\n"
    )


def test_the_site_names_pages_by_their_titles(tmp_path: Path) -> None:
    (tmp_path / "guides").mkdir()
    (tmp_path / "guides" / "first.md").write_text("# The `first` guide\n")
    page = tmp_path / "index.md"
    page.write_text("".join(f"[{name}](guides/first.md)\n" for name in PAGE_NAMES))
    assert make_site.link_outside(page).split("](guides/first.md)\n")[:-1] == [
        f"[{name}" for name in PAGE_NAMES.values()
    ]


# What a link is called in a file, and on the site.
PAGE_NAMES = {
    "guides/first.md": "The first guide",
    "first.md": "The first guide",
    "docs/guides": "docs/guides",
    "guides/": "Guides",
    "how to": "how to",
}


def test_the_description_of_the_package_keeps_code(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.chdir(ROOT)
    describe = runpy.run_path("setup.py")["describe_project"]
    text = "See [cli](docs/cli.md), `layers[mode](x)`:\n\n    layers[mode](x)[0]\n"
    assert describe(text, None) == text.replace("[cli](docs/cli.md)", "cli (`docs/cli.md`)")
    assert describe(text, "https://a.b/c/") == text.replace("docs/cli", "https://a.b/c/docs/cli")
