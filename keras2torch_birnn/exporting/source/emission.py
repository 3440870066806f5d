"""Description of one layer by the page of its family: its members and its call, as source text.

Expressions are text of Python. No text of a model file ever gets into one but through
``names.attribute``, ``names.local`` and ``literal``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.spec import LayerSpec

# An expression, or a structure of such: a tuple of expressions where Keras passes a list.
Value: TypeAlias = Any


@dataclass(frozen=True)
class Helper:
    """A definition to copy into the module: its name in a module of this package."""

    module: str
    name: str


@dataclass(frozen=True)
class Site:
    """One call of a layer.

    name: of the layer's attribute, without "self."; mask: an expression, a tuple of such with None
    for inputs without mask, or None. out: the local name that the (first) result gets. fresh: makes
    a local name for a further one. declared: whether ``out`` has a type already.
    """

    name: str
    args: tuple[Value, ...]
    mask: Value
    kwargs: Mapping[str, Value]
    out: str
    fresh: Callable[[str], str]
    declared: bool = True

    @property
    def x(self) -> Any:
        """The only argument."""
        return self.args[0]


@dataclass(frozen=True)
class Called:
    """Statements of a call, and the values that it gives. ``typed``: ``out`` has its type then."""

    statements: tuple[str, ...]
    values: Value


@dataclass(frozen=True)
class Emission:
    """A layer as source text.

    members: attribute -> expression of its value, an nn.Module mostly; an attribute's name begins
    with the layer's. call: an expression or statements. state: name in the converted layer ->
    name in the members. helpers: definitions that members and call use. imports: lines of import.
    notes: differences that a user must know of. carried: modules whose states go on from batch to
    batch -> the number of their states. same: the output is the input. after: statements behind
    the members.
    """

    call: Callable[[Site], str | Called]
    members: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    helpers: tuple[Helper, ...] = ()
    notes: tuple[str, ...] = ()
    carried: Mapping[str, int] = field(default_factory=dict)
    same: bool = False
    after: tuple[str, ...] = ()


# In the semantics of a layer that the graph calls with a mask.
MASK_REACHES = "mask_reaches"
# (layer, name of its attribute) -> its source text
Emit: TypeAlias = Callable[[LayerSpec, str], Emission]


def refuse(layer: LayerSpec, what: str = "") -> UnsupportedLayerError:
    """Return the error that a layer, or an option of it, has no source form."""
    option = f" with {what}" if what else ""
    return UnsupportedLayerError(
        f"{printable(layer.class_name)}{option} has no form in plain PyTorch source yet",
        "export another form, or keep the checkpoint",
        place=layer.place,
    )


def literal(value: Any) -> str:
    """Write a plain value as Python text, on which no content has any other effect.

    Raises:
        TypeError: not a number, a text, a dtype, None, or a sequence of such.
    """
    if value is None or value is Ellipsis or type(value) in (bool, int):
        return "..." if value is Ellipsis else repr(value)
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) is str and value.isascii() and value.isprintable():
        return json.dumps(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = ", ".join(literal(one) for one in value)
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    raise TypeError(f"{type(value).__name__} has no literal")


def arguments(*values: Any, **named: Any) -> str:
    """Write the arguments of a call from plain values."""
    parts = [literal(value) for value in values]
    return ", ".join([*parts, *(f"{key}={literal(value)}" for key, value in named.items())])


def same_names(name: str, keys: Sequence[str]) -> dict[str, str]:
    """Map the names of a layer's own state to those of its attribute."""
    return {key: f"{name}.{key}" for key in keys}
