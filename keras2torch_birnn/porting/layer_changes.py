"""Known mistakes in ports of layers without recurrence, as changes to try: one table by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations, starmap
from typing import Any

import numpy as np

from keras2torch_birnn.porting.bidirectional_changes import recurrent_changes
from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    Key,
    configured,
    followed_by,
    left_out,
    masked_by,
    masks_given,
    padding_at_end,
    reading,
    to_end,
    weighted,
    without_mask,
)
from keras2torch_birnn.porting.mask_rules import Rule, mask_rules
from keras2torch_birnn.porting.normalizer_changes import layer_norm_changes
from keras2torch_birnn.porting.recurrent_changes import (
    CELLS,
    first_step,
    last_step,
    show_activation,
)
from keras2torch_birnn.porting.window_changes import convolution_changes, pooling_changes
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves

_EPSILONS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-12, 1e-2, 0.0)
_AFTER = ("relu", "sigmoid", "softmax", "log_softmax", "tanh")
_ACTIVATIONS: tuple[str | Mapping[str, Any], ...] = (
    "linear",
    *_AFTER,
    "softplus",
    "softsign",
    "elu",
    "selu",
    "gelu",
    {"name": "gelu", "approximate": True},
    "silu",
    "mish",
    "relu6",
    "hard_tanh",
    *({"name": "leaky_relu", "negative_slope": slope} for slope in (0.01, 0.1, 0.2, 0.3)),
    "hard_sigmoid_0.2",
    "hard_sigmoid_1/6",
)
# Layers that hand on their input's values; nothing can be wrong in them but their absence.
_SILENT = ("InputLayer", "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout")


_NUMBERS = ("first", "second", "third")


class Maker:
    """Changes of one layer: its path for the user, its key in the reference, itself."""

    def __init__(self, path: str, key: Key, layer: LayerSpec) -> None:
        self.path, self.key, self.layer = path, key, layer
        self.config: Mapping[str, Any] = layer.config

    def change(self, kind: str, words: str, apply: Apply) -> Change:
        """Make a change of this layer."""
        return Change(kind, self.path, words, {self.key: apply})


def changes_of(path: str, place: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the known mistakes of a layer, the likeliest first.

    path: the layer's call as the user sees it; place: as the reference has it.
    """
    if layer.class_name == "TimeDistributed":
        yield from _views(Maker(path, (place, "TimeDistributed"), layer))
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
    if layer.class_name in (*CELLS, "Bidirectional"):
        yield from recurrent_changes(path, place, layer)
    maker = Maker(path, (place, layer.class_name), layer)
    for make in _BY_CLASS.get(layer.class_name, ()):
        yield from make(maker)
    if layer.class_name not in _SILENT:
        yield from _general(maker)


def mask_changes(place: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the known mistakes with the mask that a layer makes, if it makes one."""
    maker = Maker(place, (place, layer.class_name), layer)
    if layer.class_name in ("Embedding", "Masking"):
        yield from _mask_source(maker)
    elif layer.class_name in (*_MERGES, "Concatenate"):
        for number, name in enumerate(_NUMBERS):
            words = f"the mask of its {name} input alone goes on, Keras joins those of all"
            yield maker.change("mask rule", words, partial(_mask_alone, number))


def _activation(maker: Maker) -> Iterator[Change]:
    own = maker.config["activation"]
    for name in _ACTIVATIONS:
        if name != own:
            words = f"{show_activation(name)} after it, Keras has {show_activation(own)}"
            yield maker.change("activation", words, configured(activation=name))
    if own == "softmax":
        words = "softmax over axis 1, Keras takes the last axis"
        apply = configured(activation={"name": "softmax", "axis": 1})
        yield maker.change("axis", words, apply)
        first = configured(activation={"name": "softmax", "axis": 0})
        yield maker.change("axis", "softmax over the batch, Keras takes the last axis", first)


def _bias(maker: Maker) -> Iterator[Change]:
    if maker.config.get("use_bias") and "bias" in maker.layer.weights:
        for kind, words, factor in (
            ("bias missing", "the bias is not added", 0),
            ("bias doubled", "the bias is added twice", 2),
        ):
            scale = partial(_scaled, name="bias", factor=factor)
            yield maker.change(kind, words, weighted(scale))


def _scaled(weights: dict[str, Array], *, name: str, factor: float) -> Mapping[str, Array]:
    return {**weights, name: weights[name] * factor}


def _square_kernel(maker: Maker) -> Iterator[Change]:
    kernel = maker.layer.weights.get("kernel")
    if kernel is not None and kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]:
        turn = weighted(lambda w: {**w, "kernel": w["kernel"].T})
        yield maker.change("not transposed", "the kernel is not transposed (it is square)", turn)


def _mask_source(maker: Maker) -> Iterator[Change]:
    if maker.layer.class_name == "Masking" or maker.config.get("mask_zero"):
        words = "its mask is not used: later layers read padding as data"
        yield maker.change("mask missing", words, without_mask)
        if maker.layer.class_name == "Masking":
            yield maker.change("mask missing", words, _nothing)
        words = "padding is taken to be at the end of every row"
        yield maker.change("padding side", words, padding_at_end)
        for words, rule in mask_rules(maker.layer):
            yield maker.change("mask rule", words, masks_given(rule))
            if maker.layer.class_name == "Masking":
                yield maker.change("mask rule", words, _zeroed(rule))
    else:
        words = "id 0 is left out as padding, Keras reads it as data (mask_zero=False)"
        yield maker.change("mask rule", words, _zeros_masked(lambda mask: mask))
        yield maker.change("mask rule", words, _zeros_masked(to_end))


def _zeros_masked(change: Callable[[Array], Array]) -> Apply:
    """Let an Embedding without a mask make one."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, _ = equation(layer, inputs, mask, context)
        ids = np.asarray(inputs)
        if ids.ndim != 2 or (ids != 0).all():
            raise ValueError("nothing is padded")
        return output, change(ids != 0)

    return apply


def _nothing(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    """Do what Masking does where no step is padded."""
    return context.number(inputs), None


def _zeroed(rule: Rule) -> Apply:
    """Make a change of the steps that Masking leaves out, which are zero after it."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        _, out_mask = equation(layer, inputs, mask, context)
        other = rule(np.asarray(out_mask).astype(bool), inputs)
        return context.number(inputs) * other[..., np.newaxis], other

    return apply


def _ids(maker: Maker) -> Iterator[Change]:
    rows = maker.layer.weights["embeddings"].shape[0]
    zeroed = weighted(lambda w: {**w, "embeddings": _without_first(w["embeddings"])})
    words = "row 0 is zero (padding_idx=0), in Keras it is an ordinary row"
    yield maker.change("padding row", words, zeroed)
    for step, name in ((1, "one too high"), (-1, "one too low")):
        for shift in (_shifted, _shifted_within):
            moved = reading(partial(shift, step=step, rows=rows))
            yield maker.change("ids", f"the ids are {name}", moved)


def _without_first(table: Array) -> Array:
    kept = np.array(table)
    kept[0] = 0
    return kept


def _shifted(ids: Array, *, step: int, rows: int) -> Array:
    moved: Array = (np.asarray(ids) + step) % rows
    return moved


def _shifted_within(ids: Array, *, step: int, rows: int) -> Array:
    moved: Array = np.clip(np.asarray(ids) + step, 0, rows - 1)
    return moved


def _epsilon(maker: Maker) -> Iterator[Change]:
    own = maker.config["epsilon"]
    for value in _EPSILONS:
        if value != own:
            words = f"epsilon is {value:g}, Keras has {own:g}"
            yield maker.change("epsilon", words, configured(epsilon=value))


def _batch_norm(maker: Maker) -> Iterator[Change]:
    words = "it normalizes by the batch's own mean and variance (it is in training mode)"
    yield maker.change("training mode", words, _by_batch)
    yield from _exchanged_weights(maker)
    moving = weighted(partial(_constant, values={"moving_mean": 0, "moving_variance": 1}))
    words = "the moving mean is 0 and the variance 1, as before training"
    yield maker.change("not loaded", words, moving)


def _layer_norm(maker: Maker) -> Iterator[Change]:
    yield from starmap(maker.change, layer_norm_changes(maker.layer))
    yield from _exchanged_weights(maker)


def _exchanged_weights(maker: Maker) -> Iterator[Change]:
    """Yield weights of a normalizer in each other's place, and those from before training."""
    weights = maker.layer.weights
    for one, other in (("gamma", "beta"), ("moving_mean", "moving_variance")):
        if one in weights and other in weights:
            swap = weighted(partial(_swapped_names, one=one, other=other))
            yield maker.change("exchanged", f"{one} and {other} are exchanged", swap)
    fresh: dict[str, float] = {"gamma": 1, "beta": 0}
    for name in fresh.keys() & weights.keys():
        apply = weighted(partial(_constant, values={name: fresh[name]}))
        yield maker.change("not loaded", f"{name} is {fresh[name]}, as before training", apply)


def _scale(maker: Maker) -> Iterator[Change]:
    """Yield wrong divisors of a BatchNormalization written by hand, as variances of another one."""
    epsilon = maker.config["epsilon"]
    for words, square in _DIVISORS.items():
        apply = weighted(partial(_divided, epsilon=epsilon, square=square))
        yield maker.change("formula", f"{words}, Keras by sqrt(variance + epsilon)", apply)
    zero = weighted(partial(_constant, values={"moving_mean": 0}))
    yield maker.change("formula", "the moving mean is not subtracted", zero)


def _divided(
    weights: dict[str, Array], *, epsilon: float, square: Callable[[Array, float], Array]
) -> Mapping[str, Array]:
    variance = square(np.asarray(weights["moving_variance"], np.float64), epsilon) - epsilon
    return {**weights, "moving_variance": variance}


# What it divides by -> the square of that
_DIVISORS: Mapping[str, Callable[[Array, float], Array]] = {
    "it divides by variance + epsilon": lambda v, epsilon: (v + epsilon) ** 2,
    "it divides by sqrt(variance) + epsilon": lambda v, epsilon: (np.sqrt(v) + epsilon) ** 2,
    "it divides by sqrt(variance^2 + epsilon)": lambda v, epsilon: v**2 + epsilon,
}


def _swapped_names(weights: dict[str, Array], *, one: str, other: str) -> Mapping[str, Array]:
    return {**weights, one: weights[other], other: weights[one]}


def _constant(weights: dict[str, Array], *, values: Mapping[str, float]) -> Mapping[str, Array]:
    return weights | {name: np.full_like(weights[name], value) for name, value in values.items()}


def _by_batch(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    axes = tuple(
        a for a in range(inputs.ndim) if a not in {x % inputs.ndim for x in layer.config["axis"]}
    )
    own = {
        "moving_mean": inputs.mean(axis=axes).reshape(-1),
        "moving_variance": inputs.var(axis=axes).reshape(-1),
    }
    return equation(replace(layer, weights={**layer.weights, **own}), inputs, mask, context)


def _padding(maker: Maker) -> Iterator[Change]:
    own = maker.config["padding"]
    for name in ("same", "valid", "causal"):
        if name != own:
            words = f"padding {name}, Keras has {own}"
            yield maker.change("convolution padding", words, configured(padding=name))
    names = [name for name in ("kernel", "depthwise_kernel") if name in maker.layer.weights]
    for name in names:
        turn = weighted(partial(_reversed_kernel, name=name))
        yield maker.change("direction", f"the {name} is reversed along its steps", turn)
    yield from starmap(maker.change, convolution_changes(maker.layer))


def _pool_windows(maker: Maker) -> Iterator[Change]:
    yield from starmap(maker.change, pooling_changes(maker.layer))


def _reversed_kernel(weights: dict[str, Array], *, name: str) -> Mapping[str, Array]:
    return {**weights, name: weights[name][::-1]}


def _pool_mask(maker: Maker) -> Iterator[Change]:
    yield maker.change(
        "mask missing", "the mask is not used: padding is averaged, too", masked_by(lambda _: None)
    )


def _sum_of_steps(maker: Maker) -> Iterator[Change]:
    if maker.layer.class_name == "GlobalAveragePooling1D":
        words = "it adds up the steps, Keras takes their mean"
        yield maker.change("other operation", words, _added_up)


def _added_up(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    count = np.full(output.shape[:1], np.shape(inputs)[1])
    if isinstance(mask, np.ndarray):
        count = mask.astype(bool).sum(axis=1)
    return output * count.reshape(-1, *[1] * (output.ndim - 1)), out_mask


def _one_step(maker: Maker) -> Iterator[Change]:
    own = maker.layer.class_name
    for words, pick in (("last", last_step), ("first", first_step)):
        apply = _picked(pick)
        yield maker.change("other operation", f"takes the {words} step, Keras has {own}", apply)


def _other_activation(maker: Maker) -> Iterator[Change]:
    """Yield other activations in the place of a layer that is one."""
    for name in _ACTIVATIONS[1:]:  # without it the layer is left out
        words = f"{show_activation(name)} stands in its place, Keras has {maker.layer.class_name}"
        yield maker.change("activation", words, _activated(name))


def _activated(name: str | Mapping[str, Any]) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        _, out_mask = equation(layer, inputs, mask, context)
        return activate(name, context.number(np.asarray(inputs))), out_mask

    return apply


def _softmax_axis(maker: Maker) -> Iterator[Change]:
    own = tuple(np.atleast_1d(maker.config["axis"]).tolist())
    for words, axis in _SOFTMAX_AXES.items():
        if (axis,) != own:
            shown = next((w for w, a in _SOFTMAX_AXES.items() if (a,) == own), f"axes {own}")
            words = f"softmax over {words}, Keras takes {shown}"
            yield maker.change("axis", words, configured(axis=axis))


def _masked_softmax(maker: Maker) -> Iterator[Change]:
    words = "padding is left out of the softmax, Keras does not do that here"
    yield maker.change("mask rule", words, _without_padding)


def _without_padding(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    x = np.asarray(inputs, np.float64)
    if not isinstance(mask, np.ndarray) or mask.shape != x.shape[:2]:
        raise ValueError("there is no mask")
    kept = mask.astype(bool).reshape(*mask.shape, *[1] * (x.ndim - 2))
    return equation(layer, np.where(kept, x, -1e9), mask, context)


def _as_class(name: str) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        _, out_mask = equation(layer, inputs, mask, context)
        output, _ = EQUATIONS[name](replace(layer, class_name=name), inputs, mask, context)
        return output, out_mask

    return apply


def _other_class(*names: str) -> Callable[[Maker], Iterator[Change]]:
    def make(maker: Maker) -> Iterator[Change]:
        own = maker.layer.class_name
        for name in names:
            if name != own:
                words = f"it computes {name}, Keras has {own}"
                yield maker.change("other operation", words, _as_class(name))

    return make


def _order_of_inputs(maker: Maker) -> Iterator[Change]:
    yield maker.change("order", "its inputs come in the other order", partial(_ordered, None))
    for count in (3, 4):
        for order in list(permutations(range(count)))[1:-1]:  # but for the right and the last one
            shown = ", ".join(str(place + 1) for place in order)
            words = f"its inputs come in the order {shown}"
            yield maker.change("order", words, partial(_ordered, order))


def _ordered(
    order: tuple[int, ...] | None,
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    given = list(leaves(inputs))
    places = range(len(given))[::-1] if order is None else order
    if len(places) != len(given):
        raise ValueError("another number of inputs")
    masks = [mask[place] for place in places] if isinstance(mask, tuple | list) else mask
    return equation(layer, [given[place] for place in places], masks, context)


def _mask_alone(
    number: int,
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    given = list(mask) if isinstance(mask, tuple | list) else []
    if not isinstance(out_mask, np.ndarray) or np.shape(given[number]) != out_mask.shape:
        raise ValueError("no such mask is joined")
    return output, given[number]


def _absolute(maker: Maker) -> Iterator[Change]:
    """Yield what stands for a square, or for another difference of two tensors."""
    for words, combine in _DISTANCES.items():
        words = f"{words}, Keras has {maker.layer.class_name}"
        yield maker.change("other operation", words, _combined(combine))


def _combined(combine: Callable[[Array, Array], Array]) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        _, out_mask = equation(layer, inputs, mask, context)
        one, other = (np.asarray(part) for part in leaves(inputs))
        return combine(one, other), out_mask

    return apply


def _root_of_product(one: Array, other: Array) -> Array:
    if not np.array_equal(one, other):
        raise ValueError("it is no square")
    root: Array = np.abs(one)
    return root


_DISTANCES: Mapping[str, Callable[[Array, Array], Array]] = {
    "it takes the absolute value": _root_of_product,
    "it computes the absolute difference": lambda one, other: np.abs(one - other),
    "it computes the squared difference": lambda one, other: (one - other) ** 2,
}


def _one_input(maker: Maker) -> Iterator[Change]:
    """Yield merges of several tensors that hand on one of them."""
    for number, words in enumerate(_NUMBERS):
        yield maker.change(
            "left out",
            f"it is left out: the {words} of its inputs goes on alone",
            partial(_input_alone, number),
        )


def _input_alone(
    number: int,
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    alone = list(leaves(inputs))[number]
    if np.shape(alone) != np.shape(output):
        raise ValueError("another shape")
    return alone, out_mask


def _slope(maker: Maker) -> Iterator[Change]:
    for option in ("negative_slope", "alpha"):
        if option in maker.config:
            for value in (0.01, 0.2, 0.3, 1.0):
                if value != maker.config[option]:
                    words = f"slope {value:g}, Keras has {maker.config[option]:g}"
                    yield maker.change("slope", words, configured(**{option: value}))


def _channels_first(maker: Maker) -> Iterator[Change]:
    for axis, other in ((1, "steps"), (2, "the last axis of an image")):
        words = (
            f"it reads features (channels) before {other}, as torch has them: Keras has them last "
            "(transpose or permute before it)"
        )
        yield maker.change("axes", words, reading(partial(_moved_to, axis)))
    for axes in _OTHER_AXES:
        shown = ", ".join(map(str, axes))
        words = f"its input has its axes in the order {shown}: permute it before"
        yield maker.change("axes", words, reading(partial(_permuted, axes)))


# Orders of the axes of images (B, H, W, C), but those that are told in other words.
_OTHER_AXES = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 2, 1))


def _permuted(axes: tuple[int, ...], x: Array) -> Array:
    if x.ndim != len(axes):
        raise ValueError("it is no image")
    return x.transpose(axes)


def _moved_to(axis: int, x: Array) -> Array:
    if axis >= x.ndim - 1:
        raise ValueError("there is no such axis before the last one")
    return np.moveaxis(x, -1, axis)


def _other_step(maker: Maker) -> Iterator[Change]:
    """Yield other steps of a sequence (B, T, F) than the one that a slice takes."""
    for words, pick in _STEPS.items():
        yield maker.change("last state", words, _picked(pick))


def _picked(pick: Callable[[Array], Array]) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, out_mask = equation(layer, inputs, mask, context)
        found = pick(np.asarray(inputs)) if np.ndim(inputs) == 3 else None
        if found is None or found.shape != np.shape(output):
            raise ValueError("it takes no step")
        return found, out_mask

    return apply


def _ends_of_halves(y: Array) -> Array:
    """Return the last step of the first half of the features, and the first of the second half."""
    half = y.shape[-1] // 2
    ends: Array = np.concatenate([y[:, -1, :half], y[:, 0, half:]], axis=-1)
    return ends


_STEPS: Mapping[str, Callable[[Array], Array]] = {
    "takes the last step of the forward half and the first of the backward half (as h_n has them), "
    "Keras takes one step of both": _ends_of_halves,
    "takes the first step, Keras takes another one": first_step,
    "takes the last step, Keras takes another one": last_step,
}


def _general(maker: Maker) -> Iterator[Change]:
    """Yield mistakes that can be made in any layer."""
    yield maker.change("left out", "it is left out", left_out)
    for name in _AFTER:
        after = followed_by(partial(activate, name))
        yield maker.change("extra", f"{name} follows it, which Keras does not have", after)
    words = "a LayerNorm without weights follows it, which Keras does not have"
    yield maker.change("extra", words, followed_by(_normalized))
    for words, factor in _FACTORS.items():
        yield maker.change("extra", f"its output is {words}", followed_by(partial(_times, factor)))
    for words, power in _POWERS_OF_WIDTH.items():
        yield maker.change("extra", f"its output is {words}", _scaled_by_width(power))
    yield from _views(maker)
    yield maker.change("extra", "it is applied twice, Keras does it once", _twice)
    words = "its input is added to its output, which Keras does not do"
    yield maker.change("extra", words, _with_input)
    turned = followed_by(lambda y: y[:, ::-1] if y.ndim > 2 else y)
    yield maker.change("direction", "its steps come in reversed order", turned)
    for words, move in _MOVES.items():
        yield maker.change("steps", f"its steps come one step too {words}", followed_by(move))
    if maker.layer.class_name == "Embedding":
        for words, move in _MOVES.items():
            yield maker.change("steps", f"its ids come one step too {words}", reading(move))
    yield maker.change("left out", "zeros stand in its place", followed_by(np.zeros_like))


def _twice(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    if np.shape(output) != np.shape(inputs) or isinstance(output, tuple):
        raise ValueError("another shape")
    more, _ = equation(layer, output, mask, context.aside())
    return more, out_mask


def _one_later(x: Array) -> Array:
    """Move the steps of (B, T, ...) one on; zeros come first."""
    if x.ndim < 2:
        raise ValueError("it has no steps")
    later: Array = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    return later


def _one_earlier(x: Array) -> Array:
    """Move the steps of (B, T, ...) one back; zeros come last."""
    return _one_later(x[:, ::-1])[:, ::-1]


_MOVES: Mapping[str, Callable[[Array], Array]] = {"late": _one_later, "early": _one_earlier}


def _with_input(
    equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    output, out_mask = equation(layer, inputs, mask, context)
    if np.shape(output) != np.shape(inputs) or isinstance(output, tuple):
        raise ValueError("another shape")
    return output + inputs, out_mask


def _views(maker: Maker) -> Iterator[Change]:
    for what, around in (("input", reading), ("output", followed_by)):
        for words, view in _VIEWS.items():
            yield maker.change("axes", f"its {what} is {words}", around(view))


def _normalized(y: Array) -> Array:
    """Normalize the last axis, with torch's epsilon."""
    if y.shape[-1] < 2:
        raise ValueError("nothing to normalize")
    scale = np.sqrt(y.var(axis=-1, keepdims=True) + 1e-5)
    normalized: Array = (y - y.mean(axis=-1, keepdims=True)) / scale
    return normalized


def _viewed(axes: tuple[int, ...], x: Array) -> Array:
    """Read an array (B, T, F) that lies in memory in the order of other axes as if it did not."""
    if x.ndim != len(axes):
        raise ValueError("other axes")
    viewed: Array = x.transpose(axes).reshape(x.shape)
    return viewed


def _viewed_back(axes: tuple[int, ...], x: Array) -> Array:
    """View an array (B, T, F) as if it lay in memory in the order of other axes."""
    if x.ndim != len(axes):
        raise ValueError("other axes")
    viewed: Array = x.reshape([x.shape[axis] for axis in axes]).transpose(np.argsort(axes))
    return viewed


def scaled_by(path: str, place: str, layer: LayerSpec, factor: float) -> Change:
    """Return the change that multiplies a layer's output."""
    words = f"its output is multiplied by {factor:.6g}"
    apply = followed_by(partial(_times, factor))
    return Change("extra", path, words, {(place, layer.class_name): apply})


def read_scaled(path: str, place: str, layer: LayerSpec, factor: float) -> Change:
    """Return the change that multiplies a layer's input."""
    words = f"its input is multiplied by {factor:.6g}"
    apply = reading(partial(_times, factor))
    return Change("extra", path, words, {(place, layer.class_name): apply})


def _times(factor: float, y: Array) -> Array:
    return factor * y


def _scaled_by_width(power: float) -> Apply:
    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, out_mask = equation(layer, inputs, mask, context)
        first = next(iter(leaves(inputs)))
        width = output.shape[-1] if layer.class_name == "Embedding" else np.shape(first)[-1]
        return output * width**power, out_mask

    return apply


_VIEWS: Mapping[str, Callable[[Array], Array]] = {
    "(batch, features, steps), viewed as (batch, steps, features): transpose it": (
        partial(_viewed, (0, 2, 1))
    ),
    "(steps, batch, features), viewed as (batch, steps, features): transpose it": (
        partial(_viewed, (1, 0, 2))
    ),
    "(batch, steps, features), viewed as (batch, features, steps): transpose it": (
        partial(_viewed_back, (0, 2, 1))
    ),
    "(batch, steps, features), viewed as (steps, batch, features): transpose it": (
        partial(_viewed_back, (1, 0, 2))
    ),
}
_FACTORS: Mapping[str, float] = {"doubled": 2.0, "halved": 0.5, "negated": -1.0}
_POWERS_OF_WIDTH: Mapping[str, float] = {
    "divided by the square root of the width": -0.5,
    "multiplied by the square root of the width": 0.5,
}
_SOFTMAX_AXES: Mapping[str, int] = {"the last axis": -1, "axis 1": 1, "axis 2": 2, "the batch": 0}
_GLOBAL = ("GlobalAveragePooling1D", "GlobalMaxPooling1D")
_GLOBAL_2 = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
_MERGES = ("Add", "Multiply", "Average", "Maximum", "Subtract", "Minimum")
_REDUCTIONS = ("ops.Sum", "ops.Mean", "ops.Max")
_CONVOLUTIONS = ("Conv1D", "SeparableConv1D", "DepthwiseConv1D", "Conv2D")

_BY_CLASS: Mapping[str, tuple[Callable[[Maker], Iterator[Change]], ...]] = {
    "Dense": (_activation, _bias, _square_kernel),
    "Activation": (_activation, _masked_softmax),
    "Embedding": (_ids,),
    "BatchNormalization": (_epsilon, _batch_norm, _scale),
    "LayerNormalization": (_epsilon, _layer_norm),
    "GroupNormalization": (_epsilon,),
    "RMSNormalization": (_epsilon,),
    **dict.fromkeys(_CONVOLUTIONS, (_padding, _activation, _bias)),
    **dict.fromkeys(_GLOBAL, (_pool_mask, _other_class(*_GLOBAL), _sum_of_steps, _one_step)),
    **dict.fromkeys(_REDUCTIONS, (_other_class(*_REDUCTIONS), _one_step)),
    "Softmax": (_softmax_axis, _masked_softmax, _other_activation),
    "ReLU": (_other_activation,),
    "ops.Activation": (_masked_softmax,),
    **{
        f"{one}Pooling{n}D": (_other_class(f"{other}Pooling{n}D"), _pool_windows)
        for n in (1, 2)
        for one, other in (("Max", "Average"), ("Average", "Max"))
    },
    **dict.fromkeys(_GLOBAL_2, (_other_class(*_GLOBAL_2),)),
    **dict.fromkeys(_MERGES, (_one_input, _other_class(*_MERGES), _absolute, _order_of_inputs)),
    "Concatenate": (_order_of_inputs,),
    "LeakyReLU": (_slope, _other_activation),
    "ELU": (_slope, _other_activation),
    "ops.GetItem": (_other_step,),
    **dict.fromkeys(("Flatten", "Reshape"), (_channels_first,)),
}
