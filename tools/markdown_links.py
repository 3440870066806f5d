"""Rewrite the links of a Markdown text; code in it is left as it is.

It imports nothing of the package: ``setup.py`` runs this file before there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

# A span of code begins and ends with as many backticks, and has no empty line.
_SPAN = r"(?<![`\\])(?P<{0}>`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)(?P={0})(?!`)"
_PICTURE = r"!\[[^\]]*\]\([^)\s]*\)"
_LINK = re.compile(
    _SPAN.format("code")
    + rf"|(?<![!\\])\[(?P<text>(?:{_PICTURE}|{_SPAN.format('inside')}|[^\[\]`])+)\]"
    + r"\((?P<target>[^)\s]+)\)",
    re.DOTALL,
)
_FENCE = re.compile(r"[ >\t]*(`{3,}(?=[^`]*$)|~{3,})")
_ITEM = re.compile(r" *(?:[-*+]|\d+[.)])(?: +|$)")
_INDENT = 4  # of code, from the text around it


def rewrite_links(text: str, rewrite: Callable[[str, str], str | None]) -> str:
    """Return a text with other links.

    rewrite: gets the text and the target of a link, and returns what is written instead; None to
    leave it. Links in fenced code, indented code and spans of code are none.
    """

    def replace(match: re.Match[str]) -> str:
        if match["target"] is None:
            return match[0]
        found = rewrite(match["text"], match["target"])
        return match[0] if found is None else found

    return "".join(part if is_code else _LINK.sub(replace, part) for is_code, part in _split(text))


def _split(text: str) -> Iterator[tuple[bool, str]]:
    """Yield the parts of a text in order, each with whether it is a block of code."""
    part: list[str] = []
    was_code = False
    for is_code, line in _classify(text.splitlines(keepends=True)):
        if is_code != was_code:
            yield was_code, "".join(part)
            part, was_code = [], is_code
        part.append(line)
    yield was_code, "".join(part)


def _classify(lines: list[str]) -> Iterator[tuple[bool, str]]:
    """Yield each line with whether it belongs to a block of code."""
    fence = ""
    items: list[int] = []  # where the text of each list item around a line begins
    may_begin = True  # code that is indented follows an empty line or other such code
    for line in lines:
        found = _FENCE.match(line)
        if fence:
            yield True, line
            if found and found[1].startswith(fence) and not line[found.end() :].strip():
                fence = ""
            continue
        indent = len(line.expandtabs(_INDENT)) - len(line.expandtabs(_INDENT).lstrip(" "))
        if not line.strip():
            yield False, line
            may_begin = True
            continue
        while items and indent < items[-1]:
            items.pop()
        if may_begin and indent >= (items[-1] if items else 0) + _INDENT:
            yield True, line
            continue
        may_begin = False
        if found:
            fence = found[1]
        elif item := _ITEM.match(line):
            items.append(item.end())
        yield bool(found), line
