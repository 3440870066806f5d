"""Source text of a layer as the module that converts it: its class, copied unless it is torch's.

A class is made with its arguments, each of which is an attribute of the module, of the same name.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from keras2torch_birnn.exporting.source.activation import applied, helpers_of
from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    call,
    code,
    join,
    literal,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.emission import Called, Emission, Helper, Site, same_names
from keras2torch_birnn.exporting.source.operations import name_function
from keras2torch_birnn.layers.activation import Activation
from keras2torch_birnn.layers.registry import around
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.calls import as_called
from keras2torch_birnn.spec import LayerSpec


def emit_module(layer: LayerSpec, name: str, built: nn.Module) -> Emission:
    """Write a layer as its module, with the cast of ids before it and the activation after it."""
    if isinstance(built, nn.Identity):
        return Emission(lambda site: site.x, same=True)
    row, helpers = SCHEMA[layer.class_name], list[Helper]()
    constructor = construct(built, helpers)
    value = layer.config["activation"] if around(layer).after else "linear"

    def called(site: Site) -> Expression | Called:
        if row.listed:
            args: tuple[Any, ...] = (site.tensors,)
        else:
            args = (site.x,) if len(row.arguments) == 1 else site.args
        if around(as_called(layer, site.kwargs)).before:
            args = (code("{}.long()", site.x),)
        named = dict(site.kwargs) if site.mask is None else {**site.kwargs, "mask": site.mask}
        y = applied(value, call(member(name), *args, **named))
        if not named.get("return_attention_scores"):
            return y
        scores = site.fresh("scores")
        return Called((Statement(join(", ", (site.out, scores)), y),), (site.out, scores))

    return Emission(
        called,
        {name: constructor},
        same_names(name, [*built.state_dict()]),
        (*helpers, *helpers_of(value)),
        options=frozenset((*row.call_options, *row.arguments[1:])),
    )


def construct(built: nn.Module, helpers: list[Helper]) -> Expression:
    """Write what makes a module like this one, without options that are the default.

    helpers: gets the classes to copy.

    Raises:
        LookupError: the module does not keep an argument of its class.
    """
    kind, values, named = type(built), list[object](), dict[str, object]()
    for option in inspect.signature(kind).parameters.values():
        if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
            values_by_name = getattr(built, option.name, {})
            named |= {key: _argument(one, helpers) for key, one in values_by_name.items()}
            continue
        value = getattr(built, option.name, option.default)
        if isinstance(option.default, bool):  # torch's ``bias`` is a parameter, or None
            value = value is not None and value is not False
        if value is option.empty:
            raise LookupError(f"a {kind.__name__} has no attribute {option.name}")
        argument, needed = _argument(value, helpers), option.default is option.empty
        if option.kind is not option.KEYWORD_ONLY and (needed or not values):
            values.append(argument)
        elif needed or literal(argument).text != literal(option.default).text:
            named[option.name] = argument
    return call(_class(kind, helpers), *values, **named)


def _class(kind: type, helpers: list[Helper]) -> Expression:
    """Write a class: torch's, or one to copy."""
    if getattr(nn, kind.__name__, None) is kind:
        return symbol(f"nn.{kind.__name__}")
    helpers.append(Helper(kind.__module__, kind.__name__))
    return symbol(kind.__name__)


def _argument(value: Any, helpers: list[Helper]) -> object:
    """Write an argument; a tensor as zeros of its shape, whose values are loaded."""
    if isinstance(value, Activation):
        value = value.function
    if isinstance(value, partial):
        return call(symbol("partial"), _argument(value.func, helpers), **value.keywords)
    if isinstance(value, nn.Module):
        return construct(value, helpers)
    if isinstance(value, Tensor):
        kind = {} if value.is_floating_point() else {"dtype": value.dtype}
        zeros = call(symbol("torch.zeros"), tuple(value.shape), **kind)
        return call(symbol("nn.Parameter"), zeros) if isinstance(value, nn.Parameter) else zeros
    if isinstance(value, tuple | list):
        parts = [_argument(one, helpers) for one in value]
        return call(_class(type(value), helpers), *parts) if hasattr(value, "_fields") else parts
    if callable(value):
        function, needed = name_function(value)
        helpers += needed
        return function
    return value.item() if isinstance(value, np.generic) else value
