"""Change the code of functions in place: one operator, constant, condition or argument at a time.

A function is found by its code, wherever it lives: in a module, a class or a table, or made by
another function. What runs at import is not changed, nor what only words or refuses: strings,
``raise``, and conditions of an ``if`` that does nothing but raise.
"""

from __future__ import annotations
import __future__

import ast
import gc
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from package_source import PACKAGE

# An operator -> those that take its place, and how they are written.
OPERATORS: Mapping[type[ast.AST], Mapping[type[Any], str]] = {
    ast.Add: {ast.Sub: "-"},
    ast.Sub: {ast.Add: "+"},
    ast.Mult: {ast.Div: "/"},
    ast.Div: {ast.Mult: "*"},
    ast.FloorDiv: {ast.Mult: "*"},
    ast.Mod: {ast.Mult: "*"},
    ast.Pow: {ast.Mult: "*"},
    ast.MatMult: {ast.Mult: "*"},
    ast.BitAnd: {ast.BitOr: "|"},
    ast.BitOr: {ast.BitAnd: "&"},
    ast.And: {ast.Or: "or"},
    ast.Or: {ast.And: "and"},
    ast.Lt: {ast.LtE: "<=", ast.GtE: ">="},
    ast.LtE: {ast.Lt: "<", ast.Gt: ">"},
    ast.Gt: {ast.GtE: ">=", ast.LtE: "<="},
    ast.GtE: {ast.Gt: ">", ast.Lt: "<"},
    ast.Eq: {ast.NotEq: "!="},
    ast.NotEq: {ast.Eq: "=="},
    ast.In: {ast.NotIn: "not in"},
    ast.NotIn: {ast.In: "in"},
    ast.Is: {ast.IsNot: "is not"},
    ast.IsNot: {ast.Is: "is"},
}
# Functions that fail at once, or do the same, if their arguments are exchanged.
TYPED = {
    *"isinstance issubclass getattr setattr hasattr cast map filter".split(),
    *"max min maximum minimum transpose".split(),
}
NEUTRAL = {"strict", "stacklevel"}  # keywords that change no result
REFUSALS = {"problems", "refuse", "unknown"}  # where a refusal is noted to be told with others
IMPORTING = (ast.Import, ast.ImportFrom, ast.If, ast.Try)
SKIPPED = (ast.Raise, ast.Assert, ast.JoinedStr)


@dataclass(frozen=True)
class Mutant:
    """A change of one field of one node of a module's tree."""

    file: str
    name: str  # the function, method, or table of a lambda, and the change
    line: int
    words: frozenset[str]  # names and texts in the expression that is changed
    module: ast.Module  # the statement with the node, and the imports, which tell the compiler more
    node: ast.AST
    field: str
    value: Any

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name}"


def mutants_of(file: str) -> Iterator[Mutant]:
    """Yield all mutants of a module of the package; changes of the same text are numbered."""
    statements = ast.parse((PACKAGE / file).read_text("utf-8")).body
    imports = [one for one in statements if isinstance(one, IMPORTING)]
    seen: Counter[str] = Counter()
    for statement in statements:
        module = ast.Module([*imports, statement], [])
        for function, node, parent in _parts(statement, "", inside=False):
            for field, value, new in _changes(node):
                text = ast.unparse(getattr(node, "test", node))
                words = _words(parent if isinstance(node, ast.Constant) else node)
                if isinstance(node, ast.Constant):
                    text = f"{text} of {ast.unparse(parent)}".partition("\n")[0]
                name = f"{function}: {text} => {new}"
                seen[name] += 1
                name += f" #{seen[name]}" * (seen[name] > 1)
                assert isinstance(node, ast.expr | ast.stmt)
                yield Mutant(file, name, node.lineno, words, module, node, field, value)


@contextmanager
def applied(mutant: Mutant, functions: Mapping[CodeType, list[FunctionType]]) -> Iterator[None]:
    """Let all functions whose code holds the mutant run the changed code."""
    before = _compile(mutant)
    old_value = getattr(mutant.node, mutant.field)
    setattr(mutant.node, mutant.field, mutant.value)
    try:
        after = _compile(mutant)
    finally:
        setattr(mutant.node, mutant.field, old_value)
    changed = [
        (function, function.__code__, new.replace(co_filename=function.__code__.co_filename))
        for old, new in zip(_codes(before), _codes(after), strict=True)
        if old != new
        for function in functions.get(old, ())
    ]
    assert changed, f"no function has the code of {mutant}"
    try:
        for function, _, new in changed:
            function.__code__ = new
        yield
    finally:
        for function, old, _ in changed:
            function.__code__ = old


def living_functions() -> Mapping[CodeType, list[FunctionType]]:
    """Return the functions of the package by their code."""
    gc.unfreeze()  # what conftest.py froze is not listed
    found = defaultdict(list)
    for one in gc.get_objects():
        if type(one) is FunctionType and one.__code__.co_filename.startswith(str(PACKAGE)):
            found[one.__code__].append(one)
    gc.freeze()
    return found


def _compile(mutant: Mutant) -> CodeType:
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(mutant.module, mutant.file, "exec", flags, dont_inherit=True)
    return code


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code objects inside of one, in the order of the text."""
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _codes(one)


def _parts(node: ast.AST, name: str, *, inside: bool) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Yield the nodes inside of functions, with the function's name and what each is part of."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        name = f"{name}.{node.name}".lstrip(".")
        for statement in node.body:
            if not _refuses(statement):
                yield from _parts(statement, name, inside=isinstance(node, ast.FunctionDef))
        return
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and not name:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = ast.unparse(target)
    if isinstance(node, ast.Lambda) and not inside:
        yield name, node.body, node
        yield from _parts(node.body, name, inside=True)
        return
    for child in ast.iter_child_nodes(node):
        annotated = isinstance(node, ast.AnnAssign) and child is node.annotation
        neutral = isinstance(child, ast.keyword) and child.arg in NEUTRAL
        if not (annotated or neutral or isinstance(child, SKIPPED) or _refuses(child)):
            if inside:
                yield name, child, node
            yield from _parts(child, name, inside=inside)


def _words(node: ast.AST) -> frozenset[str]:
    """Return the names and texts of an expression; of a statement, those of its condition."""
    found = set()
    for one in ast.walk(getattr(node, "test", node)):
        match one:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.keyword(arg=str(word)):
                found.add(word)
            case ast.Constant(value=str(word)):
                found.add(word)
    return frozenset(found)


def _refuses(node: ast.AST) -> bool:
    """Tell whether this is a condition with nothing but a refusal below it."""
    if not isinstance(node, ast.If) or node.orelse:
        return False
    last = node.body[-1]
    return isinstance(last, ast.Raise) or bool(REFUSALS & _words(last))


def _changes(node: ast.AST) -> Iterator[tuple[str, Any, str]]:
    """Yield the changes of one node: a field, its other value, and that in words."""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            for other, sign in OPERATORS.get(type(op), {}).items():
                yield "op", other(), sign
        case ast.Compare(ops=[op]):
            for other, sign in OPERATORS[type(op)].items():
                yield "ops", [other()], sign
        case ast.Constant(value=bool(value)):
            yield "value", not value, str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "value", value + 1, str(value + 1)
        case ast.UnaryOp(op=ast.Not() | ast.USub() as op, operand=operand):
            if not isinstance(operand, ast.Constant):
                yield "operand", _twice(op, operand), "twice"
        case ast.Call(func=function, args=[first, second, *rest]):
            spread = isinstance(first, ast.Starred) or isinstance(second, ast.Starred)
            typed = getattr(function, "attr", getattr(function, "id", "")) in TYPED
            if not (spread or typed) and ast.dump(first) != ast.dump(second):
                yield "args", [second, first, *rest], "exchanged"
        case ast.IfExp(test=test) | ast.If(test=test):
            plain = not isinstance(test, (ast.Compare, ast.BoolOp, ast.UnaryOp))
            if plain:
                yield "test", _twice(ast.Not(), test), "not"


def _twice(operator: ast.unaryop, operand: ast.expr) -> ast.expr:
    return ast.copy_location(ast.UnaryOp(operator, operand), operand)
