"""The table of usual mistakes in ports, by class of layer, as rewrites of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.porting.layer_call import (
    LayerCall,
    Rewrite,
    Weights,
    all_equations,
    configured,
    masked_by,
    reading,
    to_end,
    weighted,
    weighted_one,
)
from keras2torch_birnn.porting.rewrites_recurrent import (
    CELLS,
    bidirectional_rewrites,
    one_way_rewrites,
)
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure
from keras2torch_birnn.verification.layer_check import calls_of


class Around(NamedTuple):
    """Surroundings of a call: that whose output it reads, and that which makes its mask, if any.

    ``alike``: other layers of its class, by path.
    """

    path: str
    source: str
    reads: LayerSpec | None
    mask_maker: str
    alike: Mapping[str, LayerSpec]


def rewrites_of(call: LayerCall, around: Around, *, is_half: bool) -> Iterator[Rewrite]:
    """Yield the usual mistakes of a call, the likeliest first."""
    layer, place = call.layer, call.context.place
    if not is_half:
        yield from _with_mask(layer, around)
    yield from _of_layer(layer, place, is_half=is_half)
    yield from _inside(layer, place)
    yield from _with_other_weights(layer, around)
    if not is_half:
        yield from _of_any(layer, around)


def _of_layer(layer: LayerSpec, place: str, *, is_half: bool) -> Iterator[Rewrite]:
    if layer.class_name in CELLS:
        yield from one_way_rewrites(layer, is_half=is_half)
    elif layer.class_name == "Bidirectional":
        yield from bidirectional_rewrites(layer, place)
    for make in _BY_CLASS.get(layer.class_name, ()):
        yield from make(layer)
    if "activation" in layer.config and layer.class_name not in (*CELLS, "Bidirectional"):
        yield from _activations(layer)


def _inside(layer: LayerSpec, place: str) -> Iterator[Rewrite]:
    """Yield the mistakes of what a TimeDistributed wraps: a layer, or those of a model."""
    if layer.class_name != "TimeDistributed":
        return
    inner = layer.parts["layer"]
    inside = {place: inner} if inner.graph is None else dict(calls_of(layer, f"{place}/"))
    for path, one in inside.items():
        own = place_of(path)
        for rewrite in _of_layer(one, own, is_half=False):
            yield rewrite._replace(keys=rewrite.keys or ((own, one.class_name),))
    yield from _softmax_axes(inner)


# ---- masks, weights, and what may be done to any layer -------------------------------------------


def _with_mask(layer: LayerSpec, around: Around) -> Iterator[Rewrite]:
    at_end = "padding is taken to be at the end of every row"
    if layer.class_name not in USING_MASKS:
        words = "its mask is not used: later layers read padding as data"
        missing = partial(_giving_mask, _none)
        yield Rewrite("mask missing", words, missing, layer=around.mask_maker)
        ends = partial(_giving_mask, to_end)
        yield Rewrite("padding side", at_end, ends, layer=around.mask_maker)
    yield Rewrite("mask missing", "the mask is not used: padding is read as data", masked_by(_none))
    yield Rewrite("padding side", at_end, masked_by(to_end))
    if layer.class_name in CELLS or layer.class_name == "Bidirectional":
        yield Rewrite("padding side", at_end, masked_by(to_end, goes_on=True))


def _giving_mask(change: Callable[[Array], Array | None], call: LayerCall) -> Result:
    """Give another mask to later layers."""
    output, out_mask = call.run()
    if not isinstance(out_mask, np.ndarray):
        raise ValueError("it gives no mask")
    return output, change(out_mask.astype(bool))


def _none(_: Array) -> None:
    return None


def _with_other_weights(layer: LayerSpec, around: Around) -> Iterator[Rewrite]:
    """Yield the weights of another layer of the same shapes."""
    for path, other in around.alike.items():
        if _forms(other) == _forms(layer) and _forms(layer):
            words = f"it uses the weights of {path}"
            yield Rewrite("layers exchanged", words, partial(_as_other, other))


def _forms(layer: LayerSpec) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (name, tuple(array.shape)) for one in layer.walk() for name, array in one.weights.items()
    ]


def _as_other(other: LayerSpec, call: LayerCall) -> Result:
    parts = {
        name: replace(part, weights=other.parts[name].weights)
        for name, part in call.layer.parts.items()
    }
    return call.with_parts(parts).weighted(other.weights).run()


def _of_any(layer: LayerSpec, around: Around) -> Iterator[Rewrite]:
    yield Rewrite("left out", "it is left out", _left_out)
    yield Rewrite("applied twice", "it is applied twice", _applied_twice)
    yield from _views(layer)
    if around.reads is None or layer.class_name == "Embedding":
        return
    before = around.reads.config.get("activation")
    kind = "activation" if before == "linear" else "extra"
    for name, words in _ACTIVATIONS.items():
        if name not in ("linear", before):
            told = f"{words} is applied to its output, which Keras does not do"
            apply = reading(partial(_activated, name))
            yield Rewrite(kind, told, apply, layer=around.source)


def _activated(name: str | Mapping[str, Any], x: Array) -> Array:
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError("these are no real numbers")
    return np.asarray(activate(name, x))


def _left_out(call: LayerCall) -> Result:
    """Give the input, or one of several, if the layer keeps its shape."""
    output, out_mask = call.run()
    given = call.inputs if isinstance(call.inputs, tuple | list) else (call.inputs,)
    fitting = [x for x in given if np.shape(x) == np.shape(output)]
    if not fitting:
        raise ValueError("another shape")
    return fitting[-1], out_mask


def _applied_twice(call: LayerCall) -> Result:
    output, out_mask = call.run()
    if np.shape(output) != np.shape(call.inputs):
        raise ValueError("another shape")
    return call._replace(inputs=output).run()[0], out_mask


def _views(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield axes in another order: a view in the place of a transposition, channels first."""
    for words, axes in _VIEWS.items():
        told = f"it reads {words}"
        yield Rewrite("axes", told, reading(partial(_viewed, axes)))
    if layer.class_name in ("Flatten", "Reshape", "ops.Reshape"):
        for axes in (
            (0, 3, 1, 2),
            (0, 1, 3, 2),
            (0, 2, 1),
            (0, 2, 1, 3),
            (0, 2, 3, 1),
            (0, 3, 2, 1),
        ):
            shown = ", ".join(map(str, axes))
            words = (
                f"it reads its input with its axes in the order {shown}: Keras has channels last"
            )
            yield Rewrite("axes", words, reading(partial(_transposed, axes)))


_VIEWS: Mapping[str, tuple[int, ...]] = {
    "(batch, features, steps), viewed as (batch, steps, features): transpose it": (0, 2, 1),
    "(steps, batch, features), viewed as (batch, steps, features): transpose it": (1, 0, 2),
}


def _viewed(axes: tuple[int, ...], x: Array) -> Array:
    if x.ndim != len(axes):
        raise ValueError("other axes")
    return x.transpose(axes).reshape(x.shape)


def _transposed(axes: tuple[int, ...], x: Array) -> Array:
    if x.ndim != len(axes):
        raise ValueError("other axes")
    return x.transpose(axes)


# ---- activations ---------------------------------------------------------------------------------

_ACTIVATIONS: Mapping[Any, str] = {
    "linear": "no activation",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softmax": "softmax",
    "log_softmax": "log_softmax",
    "hard_sigmoid_0.2": "Keras 2's hard_sigmoid, clip(0.2 x + 0.5, 0, 1)",
    "hard_sigmoid_1/6": "torch's hardsigmoid, clip(x / 6 + 0.5, 0, 1)",
    "elu": "elu",
    "selu": "selu",
    "gelu": "gelu",
    "silu": "silu",
    "softplus": "softplus",
    "softsign": "softsign",
    "relu6": "relu6",
    "leaky": "leaky_relu of slope 0.01",
    "leaky 0.2": "leaky_relu of slope 0.2",
    "leaky 0.3": "leaky_relu of slope 0.3",
    "gelu tanh": "gelu by tanh",
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "leaky": {"name": "leaky_relu", "negative_slope": 0.01},
    "leaky 0.2": {"name": "leaky_relu", "negative_slope": 0.2},
    "leaky 0.3": {"name": "leaky_relu", "negative_slope": 0.3},
    "gelu tanh": {"name": "gelu", "approximate": True},
}


def _activations(layer: LayerSpec) -> Iterator[Rewrite]:
    own = layer.config["activation"]
    shown = _ACTIVATIONS.get(own, own) if isinstance(own, str) else own.get("name", "")
    for name, words in _ACTIVATIONS.items():
        if name != own:
            apply = configured(activation=_OPTIONS.get(name, name))
            yield Rewrite("activation", f"{words} after it, Keras has {shown}", apply)
    yield from _softmax_axes(layer)
    if layer.config.get("use_bias"):
        for factor, kind, words in ((0, "missing", "not added"), (2, "doubled", "added twice")):
            times = weighted_one("bias", partial(np.multiply, factor))
            yield Rewrite(f"bias {kind}", f"the bias is {words}", times)


def _softmax_axes(layer: LayerSpec) -> Iterator[Rewrite]:
    if layer.config.get("activation") != "softmax" and layer.class_name != "Softmax":
        return
    for axis, words in ((1, "axis 1 (the steps)"), (0, "the batch")):
        told = f"softmax over {words}, Keras takes the last axis"
        yield Rewrite("axis", told, partial(_softmax_over, axis))


def _softmax_over(axis: int, call: LayerCall) -> Result:
    output, out_mask = call.run()
    logits = np.log(np.asarray(output))  # up to what softmax over another axis does not undo
    if call.layer.class_name in ("Softmax", "Activation"):
        logits = np.asarray(call.inputs)
    elif call.layer.class_name == "TimeDistributed":
        inner = call.layer.parts["layer"]
        plain = replace(inner, config={**inner.config, "activation": "linear"})
        logits = call.with_parts({"layer": plain}).run()[0]
    else:
        logits = call.configured(activation="linear").run()[0]
    return np.asarray(activate({"name": "softmax", "axis": axis}, logits)), out_mask


def _replaced(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other activations in the place of a layer that is one."""
    for name, words in _ACTIVATIONS.items():
        if name != "linear":
            told = f"{words} is in its place, Keras has {layer.class_name}"
            apply = partial(_activated_instead, _OPTIONS.get(name, name))
            yield Rewrite("activation", told, apply)
    yield from _softmax_axes(layer)


def _activated_instead(name: str | Mapping[str, Any], call: LayerCall) -> Result:
    return _activated(name, np.asarray(call.inputs)), call.run()[1]


# ---- kernels and windows -------------------------------------------------------------------------


def _kernels(layer: LayerSpec) -> Iterator[Rewrite]:
    kernel = layer.weights.get("kernel")
    if kernel is None:
        return
    words = "the kernel is reshaped where its axes have to be exchanged"
    yield Rewrite("reshaped", words, weighted_one("kernel", _reshaped))
    if kernel.shape[-1] == kernel.shape[-2]:
        words = "the kernel is not transposed (it is square)"
        turn = weighted_one("kernel", lambda array: array.swapaxes(-1, -2))
        yield Rewrite("not transposed", words, turn)


def _reshaped(kernel: Array) -> Array:
    """View a kernel (..., in, out) in memory as torch's (out, in, ...)."""
    axes = (kernel.ndim - 1, kernel.ndim - 2, *range(kernel.ndim - 2))
    viewed = kernel.reshape([kernel.shape[axis] for axis in axes])
    return viewed.transpose(np.argsort(axes))


def _convolutions(layer: LayerSpec) -> Iterator[Rewrite]:
    own = layer.config["padding"]
    for name in ("same", "valid", "causal"):
        if name != own:
            words = f"its padding is {name}, Keras has {own}"
            yield Rewrite("convolution padding", words, configured(padding=name))
    yield from _sides(layer, "convolution padding")
    for name in ("kernel", "depthwise_kernel"):
        steps = tuple(range(len(layer.config["kernel_size"])))
        for axes in dict.fromkeys((steps, steps[:1], steps[1:])) if name in layer.weights else ():
            words = f"the kernel is reversed along {'its steps' if len(steps) == 1 else axes}"
            yield Rewrite("direction", words, weighted_one(name, partial(np.flip, axis=axes)))
    if len(layer.config["kernel_size"]) == 2:
        words = "height and width of the kernel are exchanged (it is square)"
        yield Rewrite("axes", words, weighted_one("kernel", lambda array: array.swapaxes(0, 1)))
    for rate in dict.fromkeys((1, 2, *(2 * one for one in layer.config["dilation_rate"]))):
        rates = tuple(rate for _ in layer.config["dilation_rate"])
        if rates != tuple(layer.config["dilation_rate"]):
            words = f"its dilation is {rate}, Keras has {layer.config['dilation_rate'][0]}"
            yield Rewrite("dilation", words, configured(dilation_rate=rates))
    for stride in dict.fromkeys((1, 2)):
        strides = tuple(stride for _ in layer.config["strides"])
        if strides != tuple(layer.config["strides"]):
            words = f"its stride is {stride}, Keras has {layer.config['strides'][0]}"
            yield Rewrite("strides", words, configured(strides=strides))


def _pools(layer: LayerSpec) -> Iterator[Rewrite]:
    is_max = layer.class_name.startswith("Max")
    other = layer.class_name.replace(*(("Max", "Average") if is_max else ("Average", "Max")))
    yield from _classes(other)(layer)
    own = layer.config["padding"]
    for name in ("same", "valid"):
        if name != own:
            words = f"its padding is {name}, Keras has {own}"
            yield Rewrite("pooling padding", words, configured(padding=name))
    yield from _sides(layer, "pooling padding", fill=-np.inf if is_max else 0.0)
    words = "its stride is 1, Keras' windows are as far apart as they are long"
    apply = configured(strides=tuple(1 for _ in layer.config["pool_size"]))
    yield Rewrite("strides", words, apply)


def _sides(layer: LayerSpec, kind: str, fill: float = 0.0) -> Iterator[Rewrite]:
    """Yield padding at both ends alike (as torch's ``padding=``), or at one; zeros count."""
    widest = max(_extents(layer)) - 1
    for front, back in dict.fromkeys(
        (n, m) for n in range(widest + 1) for m in (n, 0, widest - n, n + 1) if m <= widest
    ):
        words = f"it pads {front} in front and {back} behind, Keras has {layer.config['padding']}"
        yield Rewrite(kind, words, partial(_padded, front, back, fill))


def _padded(front: int, back: int, fill: float, call: LayerCall) -> Result:
    if call.layer.config.get("data_format") == "channels_first":
        raise ValueError("the channels come first")
    x = np.asarray(call.inputs)
    extents = _extents(call.layer)
    widths = [(min(front, e - 1), min(back, e - 1)) for e in extents]
    whole = np.pad(x, [(0, 0), *widths, (0, 0)], constant_values=fill)
    moved = call.configured(padding="valid")._replace(inputs=whole, mask=None)
    return moved.run()[0], call.run()[1]


def _extents(layer: LayerSpec) -> Sequence[int]:
    config = layer.config
    if "pool_size" in config:
        return tuple(config["pool_size"])
    sizes = zip(config["kernel_size"], config["dilation_rate"], strict=True)
    return [(size - 1) * rate + 1 for size, rate in sizes]


# ---- normalizers ---------------------------------------------------------------------------------


def _epsilons(layer: LayerSpec) -> Iterator[Rewrite]:
    for value in (1e-5, 1e-3, 1e-6, 1e-7, 1e-8, 1e-12, 1e-2, 0.0):
        if value != layer.config["epsilon"]:
            words = f"epsilon is {value:g}, Keras has {layer.config['epsilon']:g}"
            yield Rewrite("epsilon", words, configured(epsilon=value))


def _batch_norms(layer: LayerSpec) -> Iterator[Rewrite]:
    for free, also in ((0, ""), (1, ", which divides by n - 1")):
        words = "it normalizes by the batch's own mean and variance (it is in training mode)"
        yield Rewrite("training mode", f"{words}{also}", partial(_by_batch, free))
    fresh = weighted(
        lambda w: {
            "moving_mean": np.zeros_like(w["moving_mean"]),
            "moving_variance": np.ones_like(w["moving_variance"]),
        }
    )
    yield Rewrite(
        "not loaded", "the moving mean is 0 and the variance 1, as before training", fresh
    )
    if "gamma" in layer.weights and "beta" in layer.weights:
        turned = weighted(lambda w: {"gamma": w["beta"], "beta": w["gamma"]})
        yield Rewrite("exchanged", "gamma and beta are exchanged", turned)
    divided = weighted(partial(_divided, layer.config["epsilon"]))
    words = "it divides by variance + epsilon, Keras by the root of it"
    yield Rewrite("formula", words, divided)


def _by_batch(free: int, call: LayerCall) -> Result:
    x = np.asarray(call.inputs)
    axes = tuple({*range(x.ndim)} - {axis % x.ndim for axis in call.layer.config["axis"]})
    own = {
        "moving_mean": x.mean(axis=axes).reshape(-1),
        "moving_variance": x.var(axis=axes, ddof=free).reshape(-1),
    }
    return call.weighted(own).run()


def _divided(epsilon: float, weights: Weights) -> Weights:
    variance = np.asarray(weights["moving_variance"], np.float64)
    return {"moving_variance": (variance + epsilon) ** 2 - epsilon}


def _layer_norms(layer: LayerSpec) -> Iterator[Rewrite]:
    words = "its variance divides by n - 1 (as torch.var does), Keras' by n"
    yield Rewrite("formula", words, partial(_by_sample, False))
    words = "it divides by torch.std (of n - 1) + epsilon, Keras by sqrt(variance + epsilon)"
    yield Rewrite("formula", words, partial(_by_sample, True))


def _by_sample(outside: bool, call: LayerCall) -> Result:
    """Normalize by the variance of a sample; ``outside``: epsilon is added to its root."""
    x = np.asarray(call.inputs, np.float64)
    axes = tuple(call.layer.config["axis"])
    epsilon = call.layer.config["epsilon"]
    variance = x.var(axis=axes, ddof=1, keepdims=True)
    by = np.sqrt(variance) + epsilon if outside else np.sqrt(variance + epsilon)
    usual = np.sqrt(x.var(axis=axes, keepdims=True) + epsilon)
    output, out_mask = call.run()
    beta = np.asarray(call.layer.weights.get("beta", 0.0))
    return (np.asarray(output) - beta) * usual / by + beta, out_mask


# ---- joins, attention, ids -----------------------------------------------------------------------


def _classes(*names: str) -> Callable[[LayerSpec], Iterator[Rewrite]]:
    def make(layer: LayerSpec) -> Iterator[Rewrite]:
        own = layer.class_name.removeprefix("ops.")
        for name in names:
            if name != layer.class_name:
                words = f"it computes {name.removeprefix('ops.')}, Keras has {own}"
                yield Rewrite("other operation", words, partial(_as_class, name))

    return make


def _as_class(name: str, call: LayerCall) -> Result:
    other = replace(call.layer, class_name=name)
    output, _ = all_equations()[name](other, call.inputs, call.mask, call.context)
    return output, call.run()[1]


def _orders(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other orders of a layer's inputs."""
    for count in (2, 3, 4):
        for order in list(permutations(range(count)))[1:]:
            shown = ", ".join(str(place + 1) for place in order)
            words = f"its inputs are in another order: {shown} of Keras'"
            yield Rewrite("order", words, partial(_in_order, order))


def _in_order(order: Sequence[int], call: LayerCall) -> Result:
    def moved(some: Structure) -> Structure:
        if isinstance(some, tuple | list) and len(some) == len(order):
            return tuple(some[place] for place in order)
        if isinstance(some, tuple | list) and len(some) == 1:
            inner = moved(some[0])
            return some if inner is some[0] else (inner,)
        return some

    if moved(call.inputs) is call.inputs:
        raise ValueError("it has another number of inputs")
    return call._replace(inputs=moved(call.inputs)).run()[0], call.run()[1]


def _steps_of(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other things that are done with all steps."""
    for words, pick in _OF_STEPS.items():
        yield Rewrite("other operation", f"it takes {words}", partial(_of_steps, pick))


def _of_steps(pick: Callable[[Array], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    found = pick(np.asarray(call.inputs))
    return found.reshape(np.shape(output)), out_mask


_OF_STEPS: Mapping[str, Callable[[Array], Array]] = {
    "the mean over the steps": lambda x: x.mean(axis=1),
    "the maximum over the steps": lambda x: x.max(axis=1),
    "the sum over the steps": lambda x: x.sum(axis=1),
    "the last step": lambda x: x[:, -1],
    "the first step": lambda x: x[:, 0],
}


def _items(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield the last states of both halves where Keras takes a step of the joined outputs."""
    words = "it takes the last states of both halves (h_n), Keras takes one step of both"
    yield Rewrite("last state", words, _ends_of_halves)
    yield from _steps_of(layer)


def _ends_of_halves(call: LayerCall) -> Result:
    output, out_mask = call.run()
    x = np.asarray(call.inputs[0] if isinstance(call.inputs, tuple | list) else call.inputs)
    half = x.shape[-1] // 2
    return np.concatenate([x[:, -1, :half], x[:, 0, half:]], axis=-1).reshape(
        output.shape
    ), out_mask


def _attentions(layer: LayerSpec) -> Iterator[Rewrite]:
    scaled = partial(_scaled_query, lambda width: 1 / np.sqrt(width))
    yield Rewrite("scale", "the scores are divided by the root of the width", scaled)
    unscaled = partial(_scaled_query, np.sqrt)
    yield Rewrite("scale", "the scores are not divided by the root of the width", unscaled)
    for use in (True, False):
        words = "each step attends to earlier ones alone (causal), Keras to all"
        words = words if use else "each step attends to all steps, Keras to earlier ones (causal)"
        yield Rewrite("causal", words, partial(_causal, use))
    yield from _orders(layer)


def _scaled_query(factor: Callable[[float], float], call: LayerCall) -> Result:
    query, *others = call.inputs
    width = call.layer.config.get("key_dim") or np.shape(query)[-1]
    scaled = np.asarray(query) * factor(float(width))
    if call.layer.class_name == "MultiHeadAttention":  # its bias is scaled, too
        own = {
            n: np.asarray(call.layer.weights[n]) * factor(float(width))
            for n in _QUERY
            if n in call.layer.weights
        }
        return call.weighted(own).run()
    inputs = (scaled, *(others or [query]))
    return call._replace(inputs=inputs).run()


_QUERY = ("query/kernel", "query/bias", "query_kernel", "query_bias")


def _causal(use: bool, call: LayerCall) -> Result:
    options = {**call.context.call_options, "use_causal_mask": use}
    moved = call._replace(context=call.context.with_fields(call_options=options))
    return moved.configured(causal=use).run()


def _ids(layer: LayerSpec) -> Iterator[Rewrite]:
    for shift, words in ((-1, "low"), (1, "high")):
        moved = reading(partial(_shifted, shift, int(layer.config["input_dim"])))
        yield Rewrite("ids", f"its ids are one too {words}", moved)
    fresh = weighted_one("embeddings", lambda table: table * (np.arange(len(table)) > 0)[:, None])
    yield Rewrite("padding row", "the row of id 0 is zero (padding_idx=0)", fresh)


def _shifted(shift: int, size: int, ids: Array) -> Array:
    moved: Array = np.clip(ids + shift, 0, size - 1)
    return moved


# Layers that use masks: where one of them was right, the mask was there.
USING_MASKS = (*CELLS, "Bidirectional", "Attention", "MultiHeadAttention")
_MERGES = ("Add", "Multiply", "Average", "Maximum", "Subtract", "Minimum")
_BINARY = tuple(f"ops.{name}" for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum"))
_BY_CLASS: Mapping[str, tuple[Callable[[LayerSpec], Iterator[Rewrite]], ...]] = {
    "Dense": (_kernels,),
    "Embedding": (_ids,),
    "BatchNormalization": (_epsilons, _batch_norms),
    "LayerNormalization": (_epsilons, _layer_norms),
    **dict.fromkeys(("Conv1D", "Conv2D"), (_convolutions, _kernels)),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D"),
        (_convolutions,),
    ),
    **dict.fromkeys(
        [f"{kind}Pooling{count}D" for kind in ("Max", "Average") for count in (1, 2)], (_pools,)
    ),
    **dict.fromkeys(
        ("GlobalAveragePooling1D", "GlobalMaxPooling1D", "ops.Sum", "ops.Mean", "ops.Max"),
        (_steps_of,),
    ),
    "GlobalAveragePooling2D": (_classes("GlobalMaxPooling2D"),),
    "GlobalMaxPooling2D": (_classes("GlobalAveragePooling2D"),),
    **dict.fromkeys(_MERGES, (_classes(*_MERGES), _orders)),
    **dict.fromkeys(_BINARY, (_classes(*_BINARY), _orders)),
    **dict.fromkeys(("Concatenate", "ops.Concatenate", "ops.Matmul"), (_orders,)),
    **dict.fromkeys(
        ("Attention", "AdditiveAttention", "MultiHeadAttention", "Dot"), (_attentions,)
    ),
    **dict.fromkeys(("Softmax", "ReLU", "LeakyReLU", "ELU", "PReLU"), (_replaced,)),
    "ops.GetItem": (_items,),
}
