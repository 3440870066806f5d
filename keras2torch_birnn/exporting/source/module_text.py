"""The text of a generated module: docstring, imports, helpers, the model's class, ``load``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap

from keras2torch_birnn.exporting.source.code import Expression, Statement, code, symbol
from keras2torch_birnn.exporting.source.layout import lay_out
from keras2torch_birnn.exporting.source.names import plain_text
from keras2torch_birnn.exporting.source.snippets import Copied

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


@dataclass(frozen=True)
class ModelText:
    """Parts of the class of a model.

    members: statements of ``__init__``; annotations: of the class; inputs: arguments of
    ``forward``; result: the returned expression, and its type. Docstrings and comments are plain
    text: ``names.plain_text`` is applied to them here.
    """

    name: str
    docstring: Sequence[str]
    annotations: Sequence[Expression]
    members: Sequence[Expression]
    inputs: Sequence[str]
    forward_doc: str
    statements: Sequence[Statement]
    result: Expression
    result_type: Expression
    carried: Sequence[Expression]
    double: bool


def write_class(model: ModelText) -> list[str]:
    """Write the class of a model."""
    lines = [f"class {model.name}(nn.Module):", *_docstring(model.docstring, 4), ""]
    if model.annotations:
        lines += [*(f"    {line.text}" for line in model.annotations), ""]
    lines += ["    def __init__(self) -> None:", "        super().__init__()"]
    for member in model.members:
        several = member.text.split("\n")
        lines += lay_out(several[0], 8) if not several[1:] else [" " * 8 + one for one in several]
    if model.carried:
        lines += ["        self.reset_states()", "", "    def reset_states(self) -> None:"]
        lines.append('        """Forget the states that the last batch left."""')
        lines += [f"        {line.text}" for line in model.carried]
    arguments = ", ".join(["self", *(f"{name}: Tensor" for name in model.inputs)])
    lines.append("")
    lines += lay_out(f"def forward({arguments}) -> {model.result_type.text}:", 4)
    lines += _docstring([model.forward_doc], 8)
    for one in model.statements[:-1]:
        lines += _lay_out_statement(one)
    return [*lines, *_last_statements(model)]


def _lay_out_statement(statement: Statement) -> list[str]:
    return lay_out(statement.code.text, 8, plain_text(statement.comment))


def _last_statements(model: ModelText) -> list[str]:
    """Write the last statement and the return; a single result has a type of its own."""
    last, result = model.statements[-1:], model.result
    if last and last[0].target == result:
        result = symbol("y" if "y" not in model.inputs else "result")
        last = [replace(last[0], target=result, declares=True)]
    return [
        *(line for one in last for line in _lay_out_statement(one)),
        *lay_out(code("return {}", result).text, 8),
    ]


def _docstring(lines: Sequence[str], indent: int) -> list[str]:
    spaces = " " * indent
    lines = [plain_text(line, most=None) for line in lines]
    if len(lines) == 1 and len(lines[0]) + indent + 6 <= 88:
        return [f'{spaces}"""{lines[0]}"""']
    first, *rest = (
        part
        for line in lines
        for part in wrap(line, 85 - indent, break_long_words=False, break_on_hyphens=False) or [""]
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
    if len(text) <= 88:
        return [text]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def _order(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name
