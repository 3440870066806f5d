"""Lay a statement out as ruff's formatter does, at its default width and at any larger one."""

from __future__ import annotations

from collections.abc import Iterable

WIDTH = 88
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def lay_out(statement: str, indent: int = 0, comment: str = "") -> list[str]:
    """Return the lines of a statement; a comment goes behind the first where it fits.

    A statement that is too long has the last bracket at its outermost level opened, one element per
    line, with a comma behind the last: that no formatter joins again.
    """
    spaces = " " * indent
    lines = [spaces + statement] if len(spaces + statement) <= WIDTH else _opened(statement, indent)
    if comment and "\n" not in statement:
        with_comment = f"{lines[-1]}  # {comment}"
        if len(with_comment) <= WIDTH:
            lines[-1] = with_comment
    return lines


def _opened(statement: str, indent: int) -> list[str]:
    spaces = " " * indent
    start, end = _last_bracket(statement)
    if start < 0:
        return [spaces + statement]
    head, inner, tail = statement[: start + 1], statement[start + 1 : end], statement[end:]
    lines = [spaces + head]
    for part in split_top(inner):
        lines += lay_out(f"{part},", indent + 4)
    return [*lines, spaces + tail]


def _last_bracket(text: str) -> tuple[int, int]:
    """Find the last call at the outermost level; (-1, -1) if there is none.

    A subscript is never opened: a comma in it would change its meaning.
    """
    found, stack = (-1, -1), []
    for place, char in _code(text):
        if char in _PAIRS:
            stack.append(place)
        elif char in _PAIRS.values():
            start = stack.pop()
            if not stack and char == ")" and text[start + 1 : place].strip():
                found = (start, place)
    return found


def split_top(text: str) -> list[str]:
    """Split at the commas outside of all brackets and strings."""
    parts, depth, start = [], 0, 0
    for place, char in _code(text):
        depth += (char in _PAIRS) - (char in _PAIRS.values())
        if char == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def _code(text: str) -> Iterable[tuple[int, str]]:
    """Yield the characters outside of strings, with their places."""
    inside, skip = "", False
    for place, char in enumerate(text):
        if skip:
            skip = False
        elif inside and char == "\\":
            skip = True
        elif inside:
            inside = "" if char == inside else inside
        elif char in "'\"":
            inside = char
        else:
            yield place, char
