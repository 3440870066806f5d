"""The source text of a layer: its own, where it has one, else that of the module that converts it.

Such a module's class is copied unless it is torch's, and made with its arguments, each of which is
an attribute of the module, of the same name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from keras2torch_birnn.exporting.source.code import (
    MASK_REACHES,
    Called,
    Emission,
    Emit,
    Expression,
    Helper,
    Site,
    Statement,
    Value,
    call,
    code,
    join,
    literal,
    member,
    refuse,
    same_names,
    symbol,
)
from keras2torch_birnn.exporting.source.functions import (
    find_activation,
    fold,
    name_function,
    spell,
    spell_method,
    unfold,
)
from keras2torch_birnn.exporting.source.plain_layers import EMITTERS as PLAIN
from keras2torch_birnn.exporting.source.recurrent import emit_bidirectional, emit_recurrent
from keras2torch_birnn.layers.core import Activation, Masking, Softmax, ThresholdedReLU
from keras2torch_birnn.layers.recurrent import TimeDistributed
from keras2torch_birnn.layers.registry import around
from keras2torch_birnn.layers.reshaping import GlobalPooling, Permute, RepeatVector, Reshape
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS, LAYERS, SCHEMA, WITH_GRAPH
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.shape_inference import as_called
from keras2torch_birnn.spec import LayerSpec

# Not written: torch has no loop of convolutions, so they would be copies of the module here; of a
# model its layers are written, and an input is an argument.
NOT_WRITTEN = frozenset({*CONV_LSTMS, *WITH_GRAPH, "InputLayer"})
# Classes that have a text of their own; it is None where that of the module will do
EMITTERS: Mapping[str, Emit] = {
    **PLAIN,
    **dict.fromkeys((*CELL_GATES, "RNN"), emit_recurrent),
    "Bidirectional": emit_bidirectional,
}
# Modules without weights, the same in training: what they compute is short enough to be read.
_WRITTEN_OUT = (GlobalPooling, Masking, Permute, RepeatVector, Reshape, Softmax, ThresholdedReLU)


def emit(layer: LayerSpec, name: str, built: nn.Module) -> Emission:
    """Write a layer as source text; ``name``: of its attribute; ``built``: the converted layer.

    Raises:
        UnsupportedLayerError: it has no such form.
    """
    kind, inner = layer.class_name, layer.parts.get("layer")
    if kind == "TimeDistributed" and inner is not None:
        reached = layer.semantics.get(MASK_REACHES, False)
        inner = replace(inner, semantics={**inner.semantics, MASK_REACHES: reached})
        if isinstance(built, TimeDistributed):
            return _at_every_step(inner, emit(inner, name, built.layer))
        return emit(inner, name, built)
    if custom_layer_of(layer) is not None or kind not in LAYERS or kind in NOT_WRITTEN:
        raise refuse(layer)
    text = EMITTERS[kind](layer, name, built) if kind in EMITTERS else None
    return text or _emit_module(layer, name, built)


def _at_every_step(inner: LayerSpec, emission: Emission) -> Emission:
    """Write a layer that is called with the steps of its input, one after another."""

    def called(site: Site) -> Expression | Called:
        steps = tuple(fold(x) for x in site.tensors)
        folded: Value = steps if isinstance(site.args[0], tuple) else steps[0]
        mask = None if site.step_mask is None else fold(site.step_mask)
        at_once = emission.call(replace(site, args=(folded,), mask=mask))
        sizes = code("{}.shape[:2]", site.tensors[0])
        if isinstance(at_once, Expression):
            return unfold(at_once, sizes)
        if not isinstance(at_once.values, Expression):
            raise refuse(inner, "several outputs")
        keep = site.fresh("steps")
        unfolded = Statement(site.out, unfold(at_once.values, keep))
        return Called((Statement(keep, sizes), *at_once.statements, unfolded), site.out)

    state = {f"layer.{key}": there for key, there in emission.state.items()}
    return replace(emission, call=called, state=state, same=False)


def _emit_module(layer: LayerSpec, name: str, built: nn.Module) -> Emission:
    """Write a layer as its module, with the cast of ids before it and the activation after it."""
    if isinstance(built, nn.Identity):
        return Emission(lambda site: site.x, same=True)
    if isinstance(built, _WRITTEN_OUT):
        return Emission(lambda site: _write_out(built, site))
    row, helpers = SCHEMA[layer.class_name], list[Helper]()
    constructor = construct(built, helpers)
    value = layer.config["activation"] if around(layer).after else "linear"
    activate, needed = find_activation(value)

    def called(site: Site) -> Expression | Called:
        if row.listed:
            args: tuple[Any, ...] = (site.tensors,)
        else:
            args = (site.x,) if len(row.arguments) == 1 else site.args
        if around(as_called(layer, site.kwargs)).before:
            args = (code("{}.long()", site.x),)
        named = dict(site.kwargs) if site.mask is None else {**site.kwargs, "mask": site.mask}
        y = activate(call(member(name), *args, **named))
        if not named.get("return_attention_scores"):
            return y
        scores = site.fresh("scores")
        return Called((Statement(join(", ", (site.out, scores)), y),), (site.out, scores))

    return Emission(
        called,
        {name: constructor},
        same_names(name, [*built.state_dict()]),
        (*helpers, *needed),
        options=frozenset((*row.call_options, *row.arguments[1:])),
    )


def _write_out(built: nn.Module, site: Site) -> Expression | Called:
    """Write what a module computes as one expression, with names for what is read twice."""
    graph, tracer = fx.Graph(), fx.Tracer()
    tracer.graph, tracer.root = graph, nn.Module()
    masks = () if site.step_mask is None else (site.step_mask,)
    inputs = [graph.placeholder(f"input_{number}") for number in range(1 + len(masks))]
    values: dict[Any, Expression] = dict(zip(inputs, (site.x, *masks), strict=True))
    output = built.forward(*(fx.Proxy(node, tracer) for node in inputs)).node
    lines: list[Statement] = []

    def look_up(leaf: Any) -> Any:
        return values.get(leaf, leaf)

    for node in (one for one in graph.nodes if one not in values):
        args: Any = map_aggregate(node.args, look_up)
        kwargs: Any = map_aggregate(dict(node.kwargs), look_up)
        if node.op == "call_method":
            values[node] = spell_method(str(node.target), args, kwargs)
        else:
            values[node] = spell(node.target, args, kwargs)[0]
        if len(node.users) > 1:
            lines.append(Statement(site.fresh("part"), values[node]))
            values[node] = lines[-1].target
    if not lines:
        return values[output]
    return Called((*lines, Statement(site.out, values[output])), site.out)


def construct(built: nn.Module, helpers: list[Helper]) -> Expression:
    """Write what makes a module like this one, without options that are the default.

    helpers: gets the classes to copy.

    Raises:
        LookupError: the module does not keep an argument of its class.
    """
    kind, values, named = type(built), list[object](), dict[str, object]()
    for option in inspect.signature(kind).parameters.values():
        if option.kind in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
            more = getattr(built, option.name, {})
            named |= {key: _argument(value, helpers) for key, value in more.items()}
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
    helpers.append(kind)
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
