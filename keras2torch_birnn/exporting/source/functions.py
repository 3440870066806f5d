"""Source text of functions: operations, activations, what makes masks and folds steps."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.exporting.source.code import (
    Expression,
    Helper,
    Value,
    bracketed,
    call,
    code,
    join,
    literal,
    symbol,
)
from keras2torch_birnn.layers import core, merging
from keras2torch_birnn.layers import functional as ours
from keras2torch_birnn.layers.recurrent import fold_steps, step_counts, unfold_steps
from keras2torch_birnn.rnn import activations

COMPARISONS: Mapping[Any, str] = {
    operator.lt: " < ",
    operator.le: " <= ",
    operator.gt: " > ",
    operator.ge: " >= ",
    operator.eq: " == ",
    operator.ne: " != ",
}
_INFIX: Mapping[Any, str] = {
    operator.add: " + ",
    operator.sub: " - ",
    operator.mul: " * ",
    operator.truediv: " / ",
    **COMPARISONS,
}
# Modules whose functions are copied
_COPIED = (ours, activations, merging)


def _index(value: Value) -> Expression:
    if not isinstance(value, slice):
        return literal(value)
    start, stop = (code("") if one is None else literal(one) for one in (value.start, value.stop))
    if value.step is None:
        return code("{}:{}", start, stop)
    return code("{}:{}:{}", start, stop, value.step)


def _getitem(x: Value, key: Value) -> Expression:
    keys = key if isinstance(key, tuple) else (key,)
    inner = join(", ", map(_index, keys))
    if isinstance(key, tuple) and len(key) == 1:
        return code("{}[{},]", x, inner)
    return code("{}[{}]", x, inner)


def _masks(mask: Sequence[Value]) -> list[Value]:
    return [one for one in mask if one is not None]


def fold(x: Expression) -> Expression:
    """Write (B, T, ...) -> (B * T, ...)."""
    return code("{}.flatten(0, 1)", x)


def unfold(y: Expression, sizes: Expression) -> Expression:
    """Write (B * T, ...) -> (B, T, ...); the method of the same name has no type."""
    return code("torch.unflatten({}, 0, {})", y, sizes)


_SPELLED: Mapping[Any, Callable[..., Expression]] = {
    core.not_zero: lambda x, mask: code("{} != 0", x),
    core.differs: lambda x, mask, value: code("({} != {}).any(dim=-1)", x, value),
    merging.all_masks: lambda tensors, mask: join(" & ", _masks(mask)),
    merging.any_mask: lambda tensors, mask: join(" | ", _masks(mask)),
    fold_steps: lambda x: fold(literal(x)),
    unfold_steps: lambda y, like: unfold(literal(y), code("{}.shape[:2]", like)),
    operator.getitem: _getitem,
    getattr: lambda x, attribute: code("{}.{}", x, symbol(attribute)),
}


def spell(
    function: Any, args: Sequence[Value], kwargs: Mapping[str, Value]
) -> tuple[Expression, tuple[Helper, ...]]:
    """Write a call of a function, and what it needs.

    Raises:
        UnsupportedLayerError: it has no source form.
    """
    if function in _SPELLED and (function is not getattr or args[1] in ("shape", "dtype")):
        return _SPELLED[function](*args, **kwargs), ()
    if function in _INFIX:
        return join(_INFIX[function], [bracketed(literal(one)) for one in args]), ()
    named, helpers = name_function(function)
    return call(named, *args, **kwargs), helpers


def name_function(function: Any) -> tuple[Expression, tuple[Helper, ...]]:
    """Return the name by which a module can call a function, and what it needs.

    Raises:
        UnsupportedLayerError: it has none.
    """
    own = getattr(function, "__name__", "?")
    if function is math.prod:
        return symbol("math.prod"), ()
    if function is step_counts:
        return symbol(own), (function,)
    for module in _COPIED:
        if getattr(function, "__module__", "") == module.__name__:
            return symbol(own), (function,)
    if getattr(torch, own, None) is function:
        return symbol(f"torch.{own}"), ()
    for known, other in ((own, getattr(functional, own, None)), *vars(functional).items()):
        if other is function:
            return symbol(f"functional.{known}"), ()
    raise UnsupportedLayerError(f"{printable(own)} has no form in plain PyTorch source yet")


def spell_method(method: str, args: Sequence[Value], kwargs: Mapping[str, Value]) -> Expression:
    """Write a call of a tensor's method."""
    x, *rest = args
    return call(code("{}.{}", bracketed(literal(x)), symbol(method)), *rest, **kwargs)


# ---- activations ----

# Functions of torch, where there are no options
_PLAIN: Mapping[str, Expression] = {
    "relu": symbol("torch.relu"),
    "gelu": symbol("functional.gelu"),
    "hard_silu": symbol("functional.hardswish"),
}
_TORCHS_SOFTMAX: Mapping[str, Expression] = {
    kind: symbol(f"torch.{kind}") for kind in ("softmax", "log_softmax")
}


def _split(value: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


def function_of(value: Any) -> tuple[Expression, tuple[Helper, ...]]:
    """Return an activation as a function, and what it needs.

    value: a name of ``schema.ACTIVATIONS``, or a dict with options.
    """
    kind, options = _split(value)
    if kind in _PLAIN and not options:
        return _PLAIN[kind], ()
    function, helpers = name_function(activations.FUNCTIONS[kind])
    return call(symbol("partial"), function, **options) if options else function, helpers


def find_activation(value: Any) -> tuple[Callable[[Expression], Expression], tuple[Helper, ...]]:
    """Return what writes an activation of an expression, and what that needs."""
    kind, options = _split(value)
    if kind == "linear":
        return lambda x: x, ()
    if kind in _TORCHS_SOFTMAX:
        return lambda x: call(_TORCHS_SOFTMAX[kind], x, dim=options.get("axis", -1)), ()
    function, helpers = (
        name_function(activations.FUNCTIONS[kind]) if options else function_of(value)
    )
    return lambda x: call(function, x, **options), helpers
