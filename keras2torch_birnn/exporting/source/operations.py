"""Source text of the functions in a model's graph: operations, and what makes masks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from keras2torch_birnn.exporting.source.emission import Helper, Value, literal
from keras2torch_birnn.exporting.source.time_distributed import bracketed, fold, unfold
from keras2torch_birnn.functional import activations, movement, operations
from keras2torch_birnn.layers import embedding, masking, merging
from keras2torch_birnn.layers.time_distributed import fold_steps, step_counts, unfold_steps

_INFIX: Mapping[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}
# Modules whose functions are copied
_COPIED = (operations, movement, activations, merging)


def text_of(value: Value) -> str:
    """Write an argument: an ``Expression``, a plain value, or a structure of both."""
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, slice):
        return f"slice({text_of(value.start)}, {text_of(value.stop)}, {text_of(value.step)})"
    if isinstance(value, tuple | list):
        parts = ", ".join(text_of(one) for one in value)
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    return literal(value)


class Expression:
    """Text of Python, as opposed to a text that is a value."""

    def __init__(self, text: str) -> None:
        self.text = text


def _index(value: Any) -> str:
    if isinstance(value, slice):
        start = "" if value.start is None else text_of(value.start)
        stop = "" if value.stop is None else text_of(value.stop)
        step = "" if value.step is None else f":{text_of(value.step)}"
        return f"{start}:{stop}{step}"
    return text_of(value)


def _getitem(x: Any, key: Any) -> str:
    keys = key if isinstance(key, tuple) else (key,)
    inner = ", ".join(_index(one) for one in keys)
    comma = "," if isinstance(key, tuple) and len(key) == 1 else ""
    return f"{text_of(x)}[{inner}{comma}]"


def _masks(mask: Sequence[Any]) -> list[str]:
    return [text_of(one) for one in mask if one is not None]


def _differs(x: Any, mask: Any, value: float) -> str:
    return f"({text_of(x)} != {literal(value)}).any(dim=-1)"


_SPELLED: Mapping[Any, Callable[..., str]] = {
    embedding.not_zero: lambda x, mask: f"{text_of(x)} != 0",
    masking.differs: _differs,
    merging.all_masks: lambda tensors, mask: " & ".join(_masks(mask)),
    merging.any_mask: lambda tensors, mask: " | ".join(_masks(mask)),
    fold_steps: lambda x: fold(text_of(x)),
    unfold_steps: lambda y, like: unfold(text_of(y), f"{text_of(like)}.shape[:2]"),
    operator.getitem: _getitem,
    getattr: lambda x, name: f"{text_of(x)}.shape",
}


def spell(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, tuple[Helper, ...]] | None:
    """Write a call of a function, and what it needs; None if it has no source form."""
    if function is getattr and args[1] != "shape":
        return None
    if function in _SPELLED:
        return _SPELLED[function](*args, **kwargs), ()
    if function in _INFIX:
        a, b = (bracketed(text_of(one)) for one in args)
        return f"{a} {_INFIX[function]} {b}", ()
    found = _named(function)
    if found is None:
        return None
    name, helpers = found
    parts = [text_of(one) for one in args]
    parts += [f"{key}={text_of(one)}" for key, one in kwargs.items()]
    return f"{name}({', '.join(parts)})", helpers


def _named(function: Any) -> tuple[str, tuple[Helper, ...]] | None:
    """Return the name by which a module can call a function."""
    name = getattr(function, "__name__", "")
    if function is math.prod:
        return "math.prod", (Helper(operations.__name__, "math"),)
    if function is step_counts:
        return name, (Helper("keras2torch_birnn.layers.time_distributed", name),)
    for module in _COPIED:
        if getattr(function, "__module__", "") == module.__name__:
            return name, (Helper(module.__name__, name),)
    if getattr(torch, name, None) is function:
        return f"torch.{name}", ()
    if getattr(functional, name, None) is function:
        return f"functional.{name}", ()
    for known, other in vars(functional).items():
        if other is function:
            return f"functional.{known}", ()
    return None


def spell_method(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Write a call of a tensor's method."""
    x, *rest = args
    parts = [text_of(one) for one in rest]
    parts += [f"{key}={text_of(one)}" for key, one in kwargs.items()]
    return f"{bracketed(text_of(x))}.{name}({', '.join(parts)})"
