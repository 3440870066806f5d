"""Python code as a type of its own, which no text of a model file ever becomes.

An ``Expression`` is no ``str``, cannot be put into an f-string, and is made by the functions of
this module alone. They write every plain value, also a text, as a literal. Templates are constants
in the source of this package (a test reads them); they are filled with expressions and literals.
An ``Emission`` describes one layer by them: its members and its call.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias, final

import torch

from keras2torch_birnn.errors import UnsupportedLayerError, UnsupportedOptionError, printable
from keras2torch_birnn.spec import LayerSpec

_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)


@final
@dataclass(frozen=True, init=False, repr=False)
class Expression:
    """Code: an expression, mostly; ``text`` is for what writes it to a file."""

    text: str

    def __format__(self, _: str) -> NoReturn:
        """Refuse f-strings, which would make a text of the code."""
        raise TypeError("an Expression goes into code(), not into an f-string")

    def __str__(self) -> NoReturn:
        """Refuse as well."""
        raise TypeError("an Expression goes into code(), not into a text")

    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"


def _make_expression(text: str) -> Expression:
    expression = Expression()
    object.__setattr__(expression, "text", text)
    return expression


def literal(value: object) -> Expression:
    """Write a plain value as a literal, safe for any content; leave an expression as it is.

    Raises:
        TypeError: not a number, a text, a dtype, a slice, None, or a sequence of such.
    """
    return value if isinstance(value, Expression) else _make_expression(_literal(value))


def _literal(value: object) -> str:
    if isinstance(value, Expression):
        return value.text
    if value is Ellipsis:
        return "..."
    if value is None or type(value) in (bool, int):
        return repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) is str:
        return _quoted(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, slice):
        return f"slice({', '.join(map(_literal, (value.start, value.stop, value.step)))})"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        parts = ", ".join(map(_literal, value))
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    raise TypeError(f"{type(value).__name__} has no literal")


def _quoted(text: str) -> str:
    """Write a text in ASCII, in the quotes that need fewer escapes, as ruff's formatter does."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    inside = (f"\\{char}" if char == quote else ascii(char)[1:-1] for char in text)
    return f"{quote}{''.join(inside)}{quote}"


def code(template: str, *parts: object) -> Expression:
    """Fill the places ``{}`` of a template with expressions, and with plain values as literals."""
    return _make_expression(template.format(*map(_literal, parts)))


def symbol(path: str) -> Expression:
    """Return a name, or names with dots between them.

    Raises:
        UnsupportedLayerError: it is anything else.
    """
    if not _PATH.fullmatch(path) or any(map(keyword.iskeyword, path.split("."))):
        raise UnsupportedLayerError(f"{printable(path)!r} cannot be a name in Python source")
    return _make_expression(path)


def member(path: str) -> Expression:
    """Return an attribute of the model."""
    return symbol(f"self.{path}")


def join(separator: str, parts: Iterable[object]) -> Expression:
    """Join expressions and literals by ", " or an operator."""
    if not re.fullmatch(r", | [-+*/&|<>=!]{1,2} ", separator):
        raise ValueError(f"{separator!a} is no separator")
    return _make_expression(separator.join(map(_literal, parts)))


def arguments(*values: object, **named: object) -> Expression:
    """Write the arguments of a call."""
    pairs = [code("{}={}", symbol(key), value) for key, value in named.items()]
    return join(", ", [*values, *pairs])


def call(function: Expression, /, *values: object, **named: object) -> Expression:
    """Write a call."""
    return code("{}({})", function, arguments(*values, **named))


def bracketed(expression: Expression) -> Expression:
    """Put brackets around an expression of operators."""
    depth, outside = 0, ""
    for char in expression.text:
        depth -= char in ")]"
        outside += "" if depth else char
        depth += char in "(["
    return code("({})", expression) if " " in outside else expression


@dataclass(frozen=True)
class Statement:
    """An assignment; ``declares``: with the type of a tensor; ``comment`` is behind it."""

    target: Expression
    value: Expression
    declares: bool = False
    comment: str = ""

    @property
    def code(self) -> Expression:
        """The statement without its comment."""
        if self.declares:
            return code("{}: Tensor = {}", self.target, self.value)
        return code("{} = {}", self.target, self.value)


def used_names(structure: Any) -> frozenset[str]:
    """Return the names in an expression, or in a structure of expressions and plain values."""
    if isinstance(structure, Expression):
        return frozenset(re.findall(r"\w+", structure.text))
    if isinstance(structure, dict):
        structure = tuple(structure.values())
    if isinstance(structure, tuple | list):
        return frozenset().union(*map(used_names, structure))
    return frozenset()


# ---- the description of a layer ------------------------------------------------------------------

# An expression of a tensor; a value of the file; or a structure of both, a tuple for Keras' lists.
Value: TypeAlias = "Expression | object"
# A class or a function of this package, whose definition is copied into the module.
Helper: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """One call of a layer.

    mask: an expression, a tuple of such with None for inputs without mask, or None. out: the local
    name that the (first) result gets. fresh: makes a local name for a further one. declared:
    whether ``out`` has a type already.
    """

    args: tuple[Value, ...]
    mask: Value
    kwargs: Mapping[str, Value]
    out: Expression
    fresh: Callable[[str], Expression]
    declared: bool = True

    @property
    def x(self) -> Expression:
        """The only argument, a tensor."""
        if len(self.args) != 1:
            raise UnsupportedOptionError(f"{len(self.args)} arguments where one is expected")
        return _tensor(self.args[0])

    @property
    def tensors(self) -> tuple[Expression, ...]:
        """The tensors of the only argument, a list; those of a single one are one."""
        several = self.args[0] if len(self.args) == 1 else self.args
        return tuple(map(_tensor, several if isinstance(several, tuple) else (several,)))

    @property
    def step_mask(self) -> Expression | None:
        """The mask, of a layer with one input."""
        return None if self.mask is None else _tensor(self.mask)


def _tensor(value: Value) -> Expression:
    if isinstance(value, Expression):
        return value
    raise UnsupportedOptionError(f"a call with {printable(value)!r} where a tensor is expected")


@dataclass(frozen=True)
class Called:
    """Statements of a call, and the values that it gives."""

    statements: tuple[Statement, ...]
    values: Expression | tuple[Expression, ...]


@dataclass(frozen=True)
class Emission:
    """A layer as source text.

    members: attribute -> expression of its value, an nn.Module mostly; an attribute's name begins
    with the layer's. call: an expression or statements. state: name in the converted layer ->
    name in the members. helpers: definitions of this package that members and call use. notes:
    differences that a user must know of. carried: modules whose states go on from batch to batch
    -> the number of their states. same: the output is the input. after: statements behind the
    members. options: keywords that ``call`` writes; a call with others is refused.
    """

    call: Callable[[Site], Expression | Called]
    members: Mapping[str, Expression] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    helpers: tuple[Helper, ...] = ()
    notes: tuple[str, ...] = ()
    carried: Mapping[str, int] = field(default_factory=dict)
    same: bool = False
    after: tuple[Expression, ...] = ()
    options: frozenset[str] = frozenset()


# In the semantics of a layer that the graph calls with a mask.
MASK_REACHES = "mask_reaches"
# (layer, name of its attribute, its module) -> its source text; None if that of its module will do
Emit: TypeAlias = Callable[[LayerSpec, str, Any], Emission | None]


def refuse(layer: LayerSpec, what: str = "") -> UnsupportedLayerError:
    """Return the error that a layer, or an option of it, has no source form."""
    option = f" with {what}" if what else ""
    return UnsupportedLayerError(
        f"{printable(layer.class_name)}{option} has no form in plain PyTorch source yet",
        "export another form, or keep the checkpoint",
        place=layer.place,
    )


def same_names(name: str, keys: Sequence[str]) -> dict[str, str]:
    """Map the names of a layer's own state to those of its attribute."""
    return {key: f"{name}.{key}" for key in keys}
