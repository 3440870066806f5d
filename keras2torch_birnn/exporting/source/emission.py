"""Description of one layer by the page of its family: its members and its call, as source code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from keras2torch_birnn.errors import UnsupportedLayerError, UnsupportedOptionError, printable
from keras2torch_birnn.exporting.source.code import Expression, Statement
from keras2torch_birnn.spec import LayerSpec

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
