"""The table of usual mistakes in ports, by class of layer, as rewrites of one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.porting.layer_call import (
    ACTIVATIONS,
    LayerCall,
    Rewrite,
    activation_rewrites,
    all_equations,
    configured,
    followed_by,
    masked_by,
    reading,
    to_end,
    weighted,
)
from keras2torch_birnn.porting.rewrites_recurrent import (
    BIASES,
    CELLS,
    MASKS,
    bidirectional_rewrites,
    one_way_rewrites,
)
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure

# What a class adds to the mistakes of any layer
Row: TypeAlias = Callable[[LayerSpec], Iterator[Rewrite]]


def rewrites_of(
    call: LayerCall, alike: Mapping[str, LayerSpec], *, is_half: bool
) -> Iterator[Rewrite]:
    """Yield the usual mistakes of a call, the likeliest first.

    alike: other layers of its class, by path. is_half: it is that of one direction.
    """
    layer, place = call.layer, call.context.place
    if not is_half:
        yield from _with_mask(layer)
    yield from _of_layer(layer, place)
    if layer.class_name == "TimeDistributed":
        inner = layer.parts["layer"]
        for rewrite in _of_layer(inner, place):
            yield rewrite._replace(keys=rewrite.keys or ((place, inner.class_name),))
        yield from _softmax_axes(inner)
    for path, other in alike.items():
        if _forms(other) == _forms(layer) != []:
            words = f"it uses the weights of {path}"
            yield Rewrite("layers exchanged", words, partial(_as_other, other))
    if not is_half:
        yield from _ANY


def _of_layer(layer: LayerSpec, place: str) -> Iterator[Rewrite]:
    if layer.class_name in CELLS:
        yield from one_way_rewrites(layer)
    elif layer.class_name == "Bidirectional":
        yield from bidirectional_rewrites(layer, place)
    elif "activation" in layer.config:
        yield from activation_rewrites("activation", layer.config["activation"], "after it")
        yield from BIASES
        yield from _softmax_axes(layer)
    for make in _BY_CLASS.get(layer.class_name, ()):
        yield from make(layer)


# ---- masks, weights, and what may be done to any layer -------------------------------------------


def _with_mask(layer: LayerSpec) -> Iterator[Rewrite]:
    missing, at_end = MASKS
    if layer.class_name in (*CELLS, "Bidirectional"):
        yield at_end._replace(apply=masked_by(to_end, goes_on=True))
        return
    yield from MASKS
    if layer.class_name not in USING_MASKS:
        words = "its mask is not used: later layers read padding as data"
        yield missing._replace(words=words, apply=partial(_giving_mask, lambda _: None))
        yield at_end._replace(apply=partial(_giving_mask, to_end))


def _giving_mask(change: Callable[[Array], Array | None], call: LayerCall) -> Result:
    """Give another mask to later layers."""
    output, out_mask = call.run()
    if not isinstance(out_mask, np.ndarray):
        raise ValueError("it gives no mask")
    return output, change(out_mask.astype(bool))


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


def _activated(value: Any, x: Array) -> Array:
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError("these are no real numbers")
    return np.asarray(activate(value, x))


def _left_out(call: LayerCall) -> Result:
    """Give the input, or one of several, if the layer keeps its shape."""
    output, out_mask = call.run()
    given = call.inputs if isinstance(call.inputs, tuple | list) else (call.inputs,)
    fitting = [x for x in given if np.shape(x) == np.shape(output)]
    return fitting[-1], out_mask


def _applied_twice(call: LayerCall) -> Result:
    output, out_mask = call.run()
    return call._replace(inputs=output).run()[0], out_mask


def _viewed(axes: tuple[int, ...], x: Array) -> Array:
    return x.transpose(axes).reshape(x.shape)


_ANY = (
    *(
        Rewrite(
            "activation",
            f"{words} is applied to its output, which Keras does not do",
            followed_by(partial(_activated, value)),
        )
        for words, value in ACTIVATIONS.items()
    ),
    Rewrite("left out", "it is left out", _left_out),
    Rewrite("applied twice", "it is applied twice", _applied_twice),
    *(
        Rewrite("axes", f"it reads {words}: transpose it", reading(partial(_viewed, axes)))
        for words, axes in (
            ("(batch, features, steps), viewed as (batch, steps, features)", (0, 2, 1)),
            ("(steps, batch, features), viewed as (batch, steps, features)", (1, 0, 2)),
        )
    ),
)


def _channels(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other orders of the axes of what a Flatten or Reshape reads."""
    for axes in (*permutations((1, 2)), *permutations((1, 2, 3))):
        shown = ", ".join(map(str, (0, *axes)))
        words = f"it reads its input with its axes in the order {shown}: Keras has channels last"
        turned = partial(np.transpose, axes=(0, *axes))
        yield Rewrite("axes", words, reading(turned))


# ---- activations ---------------------------------------------------------------------------------


def _softmax_axes(layer: LayerSpec) -> Iterator[Rewrite]:
    own = layer.config.get("activation", layer.config.get("function"))
    named = own if isinstance(own, Mapping) else {"name": own, "axis": layer.config.get("axis")}
    if named["name"] == "softmax" or layer.class_name == "Softmax":
        usual = _SHOWN_AXES.get(named.get("axis") or -1, f"axis {named.get('axis')}")
        for axis, words in _SHOWN_AXES.items():
            told = f"softmax over {words}, Keras takes {usual}"
            yield Rewrite("axis", told, partial(_softmax_over, axis))


_SHOWN_AXES = {1: "axis 1 (the steps)", 0: "the batch", -1: "the last axis"}


def _softmax_over(axis: int, call: LayerCall) -> Result:
    output, out_mask = call.run()
    logits: Structure = call.inputs
    if call.layer.class_name == "TimeDistributed":
        inner = call.layer.parts["layer"]
        plain = replace(inner, config={**inner.config, "activation": "linear"})
        logits = call.with_parts({"layer": plain}).run()[0]
    elif "activation" in call.layer.config:
        logits = call.configured(activation="linear").run()[0]
    softmax = activate({"name": "softmax", "axis": axis}, np.asarray(logits))
    return np.asarray(softmax).reshape(np.shape(output)), out_mask


def _replaced(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other activations in the place of a layer that is one."""
    for words, value in ACTIVATIONS.items():
        told = f"{words} is in its place, Keras has {layer.class_name}"
        yield Rewrite("activation", told, partial(_activated_instead, value))
    yield from _softmax_axes(layer)


def _activated_instead(value: Any, call: LayerCall) -> Result:
    return _activated(value, np.asarray(call.inputs)), call.run()[1]


# ---- windows -------------------------------------------------------------------------------------


def _windows(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other paddings, and what else convolutions and poolings have in common."""
    is_pool = "pool_size" in layer.config
    kind = "pooling padding" if is_pool else "convolution padding"
    fill = -np.inf if layer.class_name.startswith("Max") else 0.0
    widest = max(_extents(layer)) - 1
    sides = ((n, m) for n in range(widest + 1) for m in (n, 0, widest - n, n + 1) if m <= widest)
    for front, back in dict.fromkeys(sides):
        words = f"it pads {front} in front and {back} behind, Keras has {layer.config['padding']}"
        yield Rewrite(kind, words, partial(_padded, front, back, fill))
    if not is_pool:
        steps = tuple(range(len(layer.config["kernel_size"])))
        turned = weighted(lambda w: {n: np.flip(w[n], steps) for n in w if n.endswith("kernel")})
        yield Rewrite("direction", "the kernel is reversed along its steps", turned)
    for option, word in (("dilation_rate", "dilation"), ("strides", "stride")):
        for size in dict.fromkeys((1, 2, *layer.config.get("dilation_rate", ()))):
            own = layer.config.get(option, ())
            words = f"its {word} is {size}, Keras has {', '.join(map(str, own))}"
            yield Rewrite(word, words, configured(**{option: tuple(size for _ in own)}))


def _padded(front: int, back: int, fill: float, call: LayerCall) -> Result:
    if call.layer.config.get("data_format") == "channels_first":
        raise ValueError("the channels come first")
    widths = [(min(front, e - 1), min(back, e - 1)) for e in _extents(call.layer)]
    whole = np.pad(np.asarray(call.inputs), [(0, 0), *widths, (0, 0)], constant_values=fill)
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
    for value in (1e-5, 1e-3, 1e-6, 1e-7, 1e-8, 1e-12, 1e-2, 1e-4, 0.0):
        words = f"epsilon is {value:g}, Keras has {layer.config['epsilon']:g}"
        yield Rewrite("epsilon", words, configured(epsilon=value))


def _batch_norms(layer: LayerSpec) -> Iterator[Rewrite]:
    words = "it normalizes by the batch's own mean and variance (it is in training mode)"
    yield Rewrite("training mode", words, _by_batch)
    fresh = weighted(lambda w: {"moving_mean": 0 * w["moving_mean"], "moving_variance": _ONE})
    words = "the moving mean is 0 and the variance 1, as before training"
    yield Rewrite("not loaded", words, fresh)
    turned = weighted(lambda w: {"gamma": w["beta"], "beta": w["gamma"]})
    yield Rewrite("exchanged", "gamma and beta are exchanged", turned)


_ONE = np.ones(1)


def _by_batch(call: LayerCall) -> Result:
    x = np.asarray(call.inputs)
    axes = tuple({*range(x.ndim)} - {axis % x.ndim for axis in call.layer.config["axis"]})
    own = {
        "moving_mean": x.mean(axis=axes).reshape(-1),
        "moving_variance": x.var(axis=axes).reshape(-1),
    }
    return call.weighted(own).run()


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


# ---- joins, steps, attention, ids ----------------------------------------------------------------


def _as_one_of(*names: str) -> Row:
    def make(layer: LayerSpec) -> Iterator[Rewrite]:
        for name in names:
            own = layer.class_name.removeprefix("ops.")
            words = f"it computes {name.removeprefix('ops.')}, Keras has {own}"
            yield Rewrite("other operation", words, partial(_as_class, name))

    return make


def _as_class(name: str, call: LayerCall) -> Result:
    other = replace(call.layer, class_name=name)
    output, _ = all_equations()[name](other, call.inputs, call.mask, call.context)
    return output, call.run()[1]


def _orders(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other orders of a layer's inputs."""
    for order in (one for count in (2, 3, 4) for one in permutations(range(count))):
        shown = ", ".join(str(place + 1) for place in order)
        words = f"its inputs are in another order: {shown} of Keras'"
        yield Rewrite("order", words, partial(_in_order, order))


def _in_order(order: Sequence[int], call: LayerCall) -> Result:
    inputs, is_nested = call.inputs, len(call.inputs) == 1
    some = inputs[0] if is_nested else inputs
    if len(some) != len(order):
        raise ValueError("it has another number of inputs")
    moved = tuple(some[place] for place in order)
    return call._replace(inputs=(moved,) if is_nested else moved).run()[0], call.run()[1]


def _steps_of(layer: LayerSpec) -> Iterator[Rewrite]:
    """Yield other things that are done with all steps."""
    for words, pick in _OF_STEPS.items():
        yield Rewrite("other operation", f"it takes {words}", partial(_of_steps, pick))


def _of_steps(pick: Callable[[Array], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    x = call.inputs[0] if isinstance(call.inputs, tuple | list) else call.inputs
    return pick(np.asarray(x)).reshape(np.shape(output)), out_mask


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
    yield Rewrite("last state", words, partial(_of_steps, _ends_of_halves))
    yield from _steps_of(layer)


def _ends_of_halves(x: Array) -> Array:
    half = x.shape[-1] // 2
    return np.concatenate([x[:, -1, :half], x[:, 0, half:]], axis=-1)


def _attentions(layer: LayerSpec) -> Iterator[Rewrite]:
    scaled = partial(_scaled_query, -0.5)
    yield Rewrite("scale", "the scores are divided by the root of the width", scaled)
    unscaled = partial(_scaled_query, 0.5)
    yield Rewrite("scale", "the scores are not divided by the root of the width", unscaled)
    for use, words in (
        (True, "each step attends to earlier ones alone (causal), Keras to all"),
        (False, "each step attends to all steps, Keras to earlier ones (causal)"),
    ):
        yield Rewrite("causal", words, partial(_causal, use))
    yield from _orders(layer)


def _scaled_query(power: float, call: LayerCall) -> Result:
    query, *others = call.inputs
    factor = float(call.layer.config.get("key_dim") or np.shape(query)[-1]) ** power
    if call.layer.class_name == "MultiHeadAttention":  # its bias is scaled, too
        names = [name for name in call.layer.weights if name.startswith("query")]
        return weighted(lambda weights: {name: factor * weights[name] for name in names})(call)
    inputs = (np.asarray(query) * factor, *(others or [query]))
    return call._replace(inputs=inputs).run()


def _causal(use: bool, call: LayerCall) -> Result:
    options = {**call.context.call_options, "use_causal_mask": use}
    moved = call._replace(context=call.context.with_fields(call_options=options))
    return moved.configured(causal=use).run()


def _ids(layer: LayerSpec) -> Iterator[Rewrite]:
    last = int(layer.config["input_dim"]) - 1
    for shift, words in ((-1, "low"), (1, "high")):
        moved = reading(partial(_shifted, shift, last))
        yield Rewrite("ids", f"its ids are one too {words}", moved)


def _shifted(shift: int, last: int, ids: Array) -> Array:
    moved: Array = np.clip(ids + shift, 0, last)
    return moved


# Layers that use masks: where one of them was right, the mask was there.
USING_MASKS = (*CELLS, "Bidirectional", "Attention", "MultiHeadAttention")
_MERGES = ("Add", "Multiply", "Average", "Maximum", "Subtract", "Minimum")
_BINARY = tuple(f"ops.{name}" for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum"))
_POOLS = tuple(f"Pooling{count}D" for count in (1, 2))
_ROWS: Sequence[tuple[Sequence[str], Sequence[Row]]] = (
    (("Embedding",), (_ids,)),
    (("BatchNormalization",), (_epsilons, _batch_norms)),
    (("LayerNormalization",), (_epsilons, _layer_norms)),
    (("Conv1D", "Conv2D", "SeparableConv1D", "SeparableConv2D"), (_windows,)),
    (("DepthwiseConv1D", "DepthwiseConv2D"), (_windows,)),
    *(
        ((f"{one}{pool}",), (_as_one_of(f"{other}{pool}"), _windows))
        for pool in _POOLS
        for one, other in permutations(("Max", "Average"))
    ),
    (("GlobalAveragePooling1D", "GlobalMaxPooling1D"), (_steps_of,)),
    (("ops.Sum", "ops.Mean", "ops.Max"), (_steps_of,)),
    (("GlobalAveragePooling2D",), (_as_one_of("GlobalMaxPooling2D"),)),
    (("GlobalMaxPooling2D",), (_as_one_of("GlobalAveragePooling2D"),)),
    (_MERGES, (_as_one_of(*_MERGES), _orders)),
    (_BINARY, (_as_one_of(*_BINARY), _orders)),
    (("Concatenate", "ops.Concatenate", "ops.Matmul"), (_orders,)),
    (("Attention", "AdditiveAttention", "MultiHeadAttention", "Dot"), (_attentions,)),
    (("Flatten", "Reshape", "ops.Reshape"), (_channels,)),
    (("Softmax", "ReLU", "LeakyReLU", "ELU", "PReLU"), (_replaced,)),
    (("ops.GetItem",), (_items,)),
    (("ops.Activation",), (_softmax_axes,)),
)
_BY_CLASS = {name: makers for names, makers in _ROWS for name in names}
