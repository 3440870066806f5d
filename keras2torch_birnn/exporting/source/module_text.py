"""The text of a generated module: docstring, imports, helpers, the model's class, ``load``.

Statements are laid out as ruff's formatter does, at its default width and at any larger one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap

from keras2torch_birnn.exporting.source.code import Expression, Statement, code, symbol
from keras2torch_birnn.exporting.source.names import plain_text
from keras2torch_birnn.exporting.source.snippets import Copied

WIDTH = 88
FIRST_LINE = "# Written by keras2torch_birnn: plain PyTorch, without that package."
_ALWAYS = (
    ("__future__", "annotations"),
    ("pathlib", "Path"),
    ("safetensors.torch", "load_file"),
    ("torch", "Tensor"),
    ("torch", "nn"),
)
_IF_USED: Mapping[str, tuple[str, str]] = {
    "torch": ("torch", ""),
    "functional": ("torch.nn", "functional"),
    "partial": ("functools", "partial"),
    "math": ("math", ""),
}


def write_class(
    name: str, docstring: Sequence[str], annotations: Sequence[Expression], methods: Sequence[str]
) -> list[str]:
    """Write the class of a model; ``docstring`` is any text."""
    lines = [f"class {symbol(name).text}(nn.Module):", *_docstring(docstring, 4), ""]
    if annotations:
        lines += [*(f"    {line.text}" for line in annotations), ""]
    return [*lines, *methods]


def write_init(members: Sequence[Expression], carried: Sequence[Expression]) -> list[str]:
    """Write ``__init__``; ``carried``: statements that forget the states of the last batch."""
    lines = ["    def __init__(self) -> None:", "        super().__init__()"]
    for member in members:
        several = member.text.split("\n")
        lines += lay_out(several[0], 8) if not several[1:] else [" " * 8 + one for one in several]
    if carried:
        lines += ["        self.reset_states()", "", "    def reset_states(self) -> None:"]
        lines.append('        """Forget the states that the last batch left."""')
        lines += [f"        {line.text}" for line in carried]
    return [*lines, ""]


def write_forward(
    inputs: Sequence[str],
    docstring: str,
    statements: Sequence[Statement],
    result: Expression,
    result_type: Expression,
) -> list[str]:
    """Write ``forward``; the last statement and a single result have a type of their own."""
    arguments = ", ".join(["self", *(f"{symbol(name).text}: Tensor" for name in inputs)])
    lines = lay_out(f"def forward({arguments}) -> {result_type.text}:", 4)
    lines += _docstring([docstring], 8)
    if statements and statements[-1].target == result:
        result = symbol("y" if "y" not in inputs else "result")
        last = replace(statements[-1], target=result, declares=True)
        statements = [*statements[:-1], last]
    for one in statements:
        lines += lay_out(one.code.text, 8, plain_text(one.comment))
    return [*lines, *lay_out(code("return {}", result).text, 8)]


def _docstring(lines: Sequence[str], indent: int) -> list[str]:
    spaces, width = " " * indent, WIDTH - 3 - indent
    lines = [plain_text(line, most=None) for line in lines]
    if len(lines) == 1 and len(lines[0]) + indent + 6 <= WIDTH:
        return [f'{spaces}"""{lines[0]}"""']
    first, *rest = (
        part
        for line in lines
        for part in wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
    )
    return [
        f'{spaces}"""{first}',
        *(f"{spaces}{line}".rstrip() for line in rest),
        f'{spaces}"""',
    ]


def write_load(model: str, *, double: bool) -> list[str]:
    """Write the function that reads the weights."""
    made = f"{model}().double()" if double else f"{model}()"
    return [
        f"def load(path: str | Path = WEIGHTS) -> {model}:",
        '    """Build the model and read its weights; in eval mode, on the CPU."""',
        f"    model = {made}",
        "    model.load_state_dict(load_file(path))",
        "    return model.eval()",
    ]


def write_module(docstring: Sequence[str], copied: Copied, classes: Sequence[str]) -> str:
    """Join all parts; the imports are those that the code uses."""
    code = "\n".join(classes)
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    imports = {*copied.imports, *_ALWAYS, *(_IF_USED[name] for name in _IF_USED.keys() & used)}
    parts = [FIRST_LINE, *_docstring(docstring, 0), "", *write_imports(imports)]
    before = ""
    for text in copied.texts:
        close = _is_assignment(text) and _is_assignment(before)
        parts += [*([""] if close else ["", ""]), text]
        before = text
    parts += [
        "",
        *([""] if copied.texts else []),
        'WEIGHTS = Path(__file__).with_suffix(".safetensors")',
        "",
        "",
        *classes,
        "",
    ]
    return "\n".join(parts)


def _is_assignment(text: str) -> bool:
    return not text.startswith(("def ", "class ", "@"))


def write_imports(imports: Iterable[tuple[str, str]]) -> list[str]:
    """Write imports in the order of isort: three sections, modules before names of modules."""
    by_section: Mapping[int, dict[str, set[str]]] = {0: {}, 1: {}, 2: {}}
    for module, name in imports:
        standard = module.partition(".")[0] in sys.stdlib_module_names
        section = 0 if module == "__future__" else 1 if standard else 2
        by_section[section].setdefault(module, set()).add(name)
    lines: list[str] = []
    for modules in by_section.values():
        if not modules:
            continue
        lines += [""] if lines else []
        lines += [f"import {module}" for module in sorted(modules) if "" in modules[module]]
        for module in sorted(modules):
            names = sorted(modules[module] - {""}, key=_order)
            if names:
                lines += lay_out_import(module, names)
    return lines


def lay_out_import(module: str, names: Sequence[str]) -> list[str]:
    """Write ``from module import names``."""
    text = f"from {module} import {', '.join(names)}"
    if len(text) <= WIDTH:
        return [text]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def _order(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name


# ---- layout ----

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
