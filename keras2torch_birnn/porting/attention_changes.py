"""Known mistakes in attention, as changes to try.

Letters as in the papers: b batch, t steps, n heads, w width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import permutations, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from keras2torch_birnn.porting.activation_changes import divide_by_sum
from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    LayerCall,
    Maker,
    Weights,
    called_with,
    weighted,
    weighted_one,
)
from keras2torch_birnn.porting.mask_rules import PLACES, Rule
from keras2torch_birnn.reference.activations import activate, sigmoid
from keras2torch_birnn.reference.attention import MASKED_SCORE
from keras2torch_birnn.reference.context import Context, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure, leaves

_ROLES = ("query", "key", "value")
_ORDINALS = ("first", "second", "third")
_USUAL = {2: (0, 1, 1), 3: (0, 2, 1)}  # the inputs that are query, key and value


def attention_changes(maker: Maker) -> Iterator[Change]:
    """Yield mistakes of dot products, scores and roles; of several heads, in the projections."""
    heads = maker.layer.class_name in _HEADS
    for words, factor in _SCALES.get(maker.layer.class_name, {}).items():
        yield maker.change("scale", words, partial(_scaled, factor, heads=heads))
    yield from _roles(maker)
    for mask, words in _MASKS.items():
        yield maker.change("mask missing", words, partial(_without_masks, mask))
    words = "the masks of query and value are exchanged"
    yield maker.change("mask rule", words, _with_exchanged_masks)
    words = "each step attends to earlier ones alone (causal), Keras to all"
    yield maker.change("causal", words, _causal(True))
    words = "each step attends to all steps, Keras to earlier ones alone"
    yield maker.change("causal", words, _causal(False))
    for words, change in _projections(maker.layer) if heads else ():
        yield maker.change("projection", words, weighted(change))
    for words, formula in {**_FORMULAS, **_SCORES.get(maker.layer.class_name, {})}.items():
        for masked in (True, False) if formula.without_masks else (True,):
            apply = partial(_by_hand, formula, heads, masked)
            yield maker.change("formula", words, apply)
    for name in ("scale", "concat_score_weight"):
        for words, scale in _LEARNED_SCALES.items() if name in maker.layer.weights else ():
            yield maker.change("scale", words.format(name), weighted_one(name, scale))
    for words, rule in PLACES.items():
        words = f"{words}; of its value, and other layers have the right one"
        yield maker.change("mask rule", words, partial(_with_value_mask, rule))
    for words, move in _GIVEN_MASKS.items() if heads else ():
        yield maker.change("mask missing", words, partial(_with_given_mask, move))


_HEADS = ("MultiHeadAttention",)


# ---- scores --------------------------------------------------------------------------------------

# What is done to the scores -> the factor, from n, w, the width of the query and value_dim
Factor: TypeAlias = Callable[[int, int, int, int], float]


def _constant(value: float, *_: int) -> float:
    return value


_CONSTANTS: Mapping[str, Factor] = {
    f"the scores are {words}, Keras does not do that": partial(_constant, value)
    for words, value in (("doubled", 2.0), ("halved", 0.5), ("negated", -1.0))
}
# By class: what is done to the scores by way of the query
_SCALES: Mapping[str, Mapping[str, Factor]] = {
    "Attention": {
        "the scores are divided by the square root of the width, Keras does not divide": (
            lambda n, w, d, v: d**-0.5
        ),
        "the scores are divided by the width, Keras does not divide": lambda n, w, d, v: 1 / d,
        "the scores are multiplied by the square root of the width": lambda n, w, d, v: d**0.5,
        **_CONSTANTS,
    },
    "MultiHeadAttention": {
        "the scores are not divided by the square root of key_dim": lambda n, w, d, v: w**0.5,
        "the scores are divided by the root of the query's width, Keras by that of key_dim": (
            lambda n, w, d, v: (w / d) ** 0.5
        ),
        "the scores are divided by the root of heads * key_dim, Keras by that of key_dim": (
            lambda n, w, d, v: n**-0.5
        ),
        "the scores are divided by the root of value_dim, Keras by that of key_dim": (
            lambda n, w, d, v: (w / v) ** 0.5
        ),
        "the scores are divided by key_dim (or twice by its root), Keras by its square root": (
            lambda n, w, d, v: w**-0.5
        ),
        "the scores are multiplied by the square root of key_dim": lambda n, w, d, v: float(w),
        **_CONSTANTS,
    },
}


def _scaled(factor: Factor, call: LayerCall, *, heads: bool) -> Result:
    """Multiply the scores, by way of the query."""
    query, *others = leaves(call.inputs)
    if not heads:
        times = factor(1, 1, query.shape[-1], 1)
        if len(others) == 1:
            others.append(others[0])  # the query alone is scaled
        return call._replace(inputs=(query * times, *others)).run()
    n, w = call.layer.weights["query/kernel"].shape[1:]
    times = factor(n, w, query.shape[-1], call.layer.weights["value/kernel"].shape[-1])
    own = {
        k: np.asarray(v) * times for k, v in call.layer.weights.items() if k.startswith("query/")
    }
    return call.weighted(own).run()


_LEARNED_SCALES: Mapping[str, Callable[[Array], Array]] = {
    "its {} is not used": np.ones_like,
    "the scores are divided by its {}, Keras multiplies by it": lambda scale: (
        1 / np.asarray(scale, np.float64)
    ),
}


def _causal(use: bool) -> Apply:
    return lambda call: called_with(use_causal_mask=use)(call.configured(causal=use))


QUERY_MASK_UNUSED = "the mask of the query is not used"
# Masks by place that are not used -> words
_MASKS: Mapping[tuple[int, ...], str] = {
    (0, 1, 2): "the masks are not used: padding is attended to",
    (1, 2): "the mask of the value is not used: padding is attended to",
    (0,): QUERY_MASK_UNUSED,
}


def _without_masks(places: tuple[int, ...], call: LayerCall) -> Result:
    if all(one is None for number, one in enumerate(call.masks) if number in places):
        raise ValueError("there is no such mask")
    left = tuple(None if number in places else one for number, one in enumerate(call.masks))
    return call._replace(mask=left).run()


def _with_value_mask(rule: Rule, call: LayerCall) -> Result:
    """Make a change of the masks of the value and the key."""
    query, *others = call.masks or [None]
    if all(one is None for one in others):
        raise ValueError("there is no such mask")
    ruled = (None if one is None else rule(np.asarray(one).astype(bool), None) for one in others)
    output, _ = call._replace(mask=(query, *ruled)).run()
    return output, call.aside().run()[1]


def _with_exchanged_masks(call: LayerCall) -> Result:
    query, value, *others = call.masks or (None, None)
    output, _ = call._replace(mask=(value, query, *(query for _ in others))).run()
    return output, call.aside().run()[1]


# What is done to a mask of scores that the layer is called with
_GIVEN_MASKS: Mapping[str, Callable[[Array], Array]] = {
    "its attention_mask is not used": np.ones_like,
    "its attention_mask is taken the other way round": np.logical_not,
    "the axes of its attention_mask are exchanged": lambda mask: mask.swapaxes(-1, -2),
}


def _with_given_mask(change: Callable[[Array], Array], call: LayerCall) -> Result:
    if not isinstance(call.inputs, tuple) or len(call.inputs) < 4:
        raise ValueError("it is called without a mask of scores")
    given = change(np.asarray(call.inputs[3]).astype(bool))
    return call._replace(inputs=(*call.inputs[:3], given)).run()


# ---- query, key and value ------------------------------------------------------------------------


def _roles(maker: Maker) -> Iterator[Change]:
    """Yield other inputs as query, key and value."""
    for count, usual in _USUAL.items():
        for places in product(range(count), repeat=3):
            if places != usual:
                told = ", ".join(
                    f"{role} is its {_ORDINALS[place]} input"
                    for role, place, own in zip(_ROLES, places, usual, strict=True)
                    if place != own
                )
                yield maker.change(
                    "order", f"{told}, Keras takes others", partial(_cast, count, places)
                )


def _cast(count: int, places: tuple[int, ...], call: LayerCall) -> Result:
    """Give the inputs of these places as query, key and value."""
    given = list(leaves(call.inputs))
    if len(given) != count:
        raise ValueError("another number of inputs")
    query, key, value = (given[place] for place in places)
    masks = call.mask
    if call.masks:
        found = [call.masks[place] for place in places]
        masks = (found[0], found[2], found[1])
    return call._replace(inputs=(query, value, key), mask=masks).run()


# ---- projections ---------------------------------------------------------------------------------


def _projections(layer: LayerSpec) -> Iterator[tuple[str, Callable[[Weights], Weights]]]:
    """Yield wrong weights of the projections of several heads, with words."""
    biased = [name for name in layer.weights if name.endswith("/bias")]
    alone = [name for name in biased if name != "key/bias"]  # it adds the same to all scores
    for some in (biased, *([name] for name in alone)):
        what = "the biases are" if some == biased else f"the bias of the {_shown(some[0])} is"
        if some:
            yield f"{what} not added", partial(_times_zero, names=some)
    for one, other in permutations(_ROLES, 2):
        if np.shape(layer.weights[f"{one}/kernel"]) != np.shape(layer.weights[f"{other}/kernel"]):
            continue
        if one < other:
            words = f"the projections of {one} and {other} are exchanged"
            yield words, partial(_renamed, names={one: other, other: one})
        yield f"the projection of {other} serves {one}, too", partial(_renamed, names={one: other})
    yield "the outputs of the heads are averaged, Keras adds them up", _averaged_heads
    names = [name for name in layer.weights if not name.startswith("attention_output/")]
    words = "the projected features are viewed as (key_dim, heads), Keras has (heads, key_dim)"
    yield words, partial(_interleaved, names=[*names, "attention_output/kernel"])
    yield f"{words}; not in the output's", partial(_interleaved, names=names)
    for roles in (("query", "key"), *((role,) for role in _ROLES)):
        projected = [name for name in names if name.partition("/")[0] in roles]
        yield f"{words}; of {' and '.join(roles)} alone", partial(_interleaved, names=projected)
    words = "the heads are joined as (value_dim, heads), Keras has (heads, value_dim)"
    yield words, partial(_interleaved, names=["attention_output/kernel"])


def _shown(name: str) -> str:
    return name.partition("/")[0].replace("_", "'s ").replace("attention's", "attention")


def _times_zero(weights: Weights, *, names: list[str]) -> Weights:
    return {name: 0 * weights[name] for name in names}


def _averaged_heads(weights: Weights) -> Weights:
    kernel = weights["attention_output/kernel"]
    return {"attention_output/kernel": kernel / len(kernel)}


def _renamed(weights: Weights, *, names: Mapping[str, str]) -> Weights:
    return {
        name: weights[f"{names[name.partition('/')[0]]}/{name.partition('/')[2]}"]
        for name in weights
        if name.partition("/")[0] in names
    }


def _interleaved(weights: Weights, *, names: list[str]) -> Weights:
    """Read the two axes (n, w) of one lying in memory as (w, n)."""

    def turned(name: str) -> Array:
        array = weights[name]
        first = 0 if name.startswith("attention_output/") else array.ndim - 2
        n, w = array.shape[first : first + 2]
        shape = (*array.shape[:first], w, n, *array.shape[first + 2 :])
        moved: Array = array.reshape(shape).swapaxes(first, first + 1)
        return moved

    return {name: turned(name) for name in names}


# ---- the formula ---------------------------------------------------------------------------------


# The scores, and where they count (all where no mask is used) -> the shares
Normalize: TypeAlias = Callable[[Array, Array], Array]
Move: TypeAlias = Callable[[Array], Array]
# query and key (b, n, t, w), and the scale -> the scores
Score: TypeAlias = Callable[[Array, Array, Any], Array]


def _softmax(scores: Array, allowed: Array, axis: int | tuple[int, ...] = -1) -> Array:
    x = np.where(allowed, scores, MASKED_SCORE)
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    shares: Array = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def _products(query: Array, key: Array, scale: Any) -> Array:
    products: Array = np.einsum("bnqw,bnkw->bnqk", scale * query, key)
    return products


def _unit(x: Array) -> Array:
    unit: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return unit


def _sums(activation: str, query: Array, key: Array, scale: Any) -> Array:
    """Add up what an activation makes of the sums of query and key, as AdditiveAttention does."""
    sums = query[:, :, :, np.newaxis] + key[:, :, np.newaxis]
    total: Array = (scale * activate(activation, sums)).sum(axis=-1)
    return total


def _scaled_inside(query: Array, key: Array, scale: Any) -> Array:
    return _sums("tanh", scale * query, scale * key, 1.0)


def _concatenated(weight: Array, query: Array, key: Array, scale: Any) -> Array:
    """Compute the scores of an Attention whose score_mode is concat."""
    total: Array = weight * _scaled_inside(query, key, scale)
    return total


def _one_by_one(query: Array, key: Array, scale: Any) -> Array:
    return _sums("linear", np.tanh(query), np.tanh(key), scale)


def _divided_sums(power: float, query: Array, key: Array, scale: Any) -> Array:
    total: Array = _sums("tanh", query, key, scale) / query.shape[-1] ** power
    return total


def _largest(scores: Array, allowed: Array) -> Array:
    largest: Array = _softmax(scores, allowed).max(axis=-1, keepdims=True)
    return largest


def _apart(x: Array) -> Array:
    """(b, t, n, w) -> (b, n, t, w)."""
    return x.swapaxes(1, 2)


def _viewed(x: Array) -> Array:
    """View (b, t, n, w) as (b, n, t, w), which is wrong."""
    return x.reshape(len(x), x.shape[2], x.shape[1], x.shape[3])


class _Formula(NamedTuple):
    """How scores become shares, and how heads are split and joined; ``single``: all are one.

    ``score``: None for Keras' own. ``without_masks``: it is tried as if there were no masks, too.
    ``projected``: what becomes of query, key and value behind their projections.
    """

    normalize: Normalize = _softmax
    split: Move = _apart
    join: Move = _apart
    single: bool = False
    score: Score | None = None
    without_masks: bool = True
    projected: Move | None = None


def _by_hand(formula: _Formula, heads: bool, masked: bool, call: LayerCall) -> Result:
    """Compute attention by another formula; ``masked``: with the masks of the keys."""
    _, split, join, single, score, _, projected = formula
    _, out_mask = call.aside().run()
    places = list(leaves(call.inputs))
    given = [call.context.number(np.asarray(x)) for x in places[:3] if x is not None]
    query, value = given[:2]
    key = given[2] if len(given) > 2 else value
    weights = {name: np.asarray(array, np.float64) for name, array in call.layer.weights.items()}

    def project(name: str, x: Array) -> Array:
        if not heads:
            return x[:, :, np.newaxis]
        y: Array = np.einsum("btd,dnw->btnw", x, weights[f"{name}/kernel"])
        y = y + weights.get(f"{name}/bias", 0)
        y = projected(y) if projected else y
        return y.reshape(*y.shape[:2], 1, -1) if single else y

    q, k, v = project("query", query), project("key", key), project("value", value)
    if not heads and (single or split is _viewed or join is _viewed):
        raise ValueError("there is one head")
    scale = weights["query/kernel"].shape[-1] ** -0.5 if heads else 1.0
    scale = scale * weights.get("scale", 1.0)
    own: Score = (
        partial(_sums, "tanh") if call.layer.class_name == "AdditiveAttention" else _products
    )
    if call.layer.config.get("score_mode") == "concat":
        own = partial(_concatenated, weights["concat_score_weight"])
    scores = (score or own)(split(q), split(k), scale)
    own_masks = _masks_of_scores(
        call.layer, places, call.mask if masked else None, call.context, scores
    )
    if masked and not own_masks:
        raise ValueError("there is no mask")
    allowed = np.logical_and.reduce(own_masks or [np.ones_like(scores, bool)])
    attended = join(np.einsum("bnqk,bnkw->bnqw", formula.normalize(scores, allowed), split(v)))
    if not heads:
        return attended[:, :, 0], out_mask
    kernel = weights["attention_output/kernel"]
    attended = attended.reshape(*attended.shape[:2], *kernel.shape[:2])
    y: Array = np.tensordot(attended, kernel, axes=2) + weights.get("attention_output/bias", 0)
    return y, out_mask


def _masks_of_scores(
    layer: LayerSpec, inputs: list[Any], mask: Structure, context: Context, scores: Array
) -> list[Array]:
    """Return what says which scores (b, n, q, k) count: masks of value and key, or of scores."""
    given = mask[1:3] if isinstance(mask, tuple | list) else ()
    found = [np.asarray(one)[:, np.newaxis, np.newaxis] for one in given if one is not None]
    for own in inputs[3:]:
        found.append(np.asarray(own) if np.ndim(own) > 3 else np.expand_dims(np.asarray(own), -3))
    if layer.config.get("causal") or context.call_options.get("use_causal_mask"):
        found.append(np.tril(np.ones(scores.shape[-2:], bool)))
    return [np.broadcast_to(one.astype(bool), scores.shape) for one in found]


def _turned(shares: Array) -> Array:
    if shares.shape[-1] != shares.shape[-2]:
        raise ValueError("there are not as many keys as queries")
    return shares.swapaxes(-1, -2)


_FORMULAS: Mapping[str, _Formula] = {
    "the scores of padding are 0 before the softmax, so that it has a share": _Formula(
        lambda scores, allowed: _softmax(scores * allowed, np.ones_like(allowed)),
        without_masks=False,
    ),
    "the shares of padding are set to 0 after the softmax, the others are too small": _Formula(
        lambda scores, allowed: _softmax(scores, np.ones_like(allowed)) * allowed,
        without_masks=False,
    ),
    "all steps have the same share: their mean is taken": _Formula(
        lambda scores, allowed: _softmax(0 * scores, allowed)
    ),
    "query and key are divided by their norms (a cosine)": _Formula(
        score=lambda query, key, scale: _products(_unit(query), _unit(key), 1.0)
    ),
    "the mask is taken the other way round: padding alone is attended to": _Formula(
        lambda scores, allowed: _softmax(scores, ~allowed), without_masks=False
    ),
    "the mask of its scores is transposed: later steps for earlier, keys for queries": _Formula(
        lambda scores, allowed: _softmax(scores, allowed.swapaxes(-1, -2)),
        without_masks=False,
    ),
    "each step attends to itself and later ones alone": _Formula(
        lambda scores, allowed: _softmax(
            scores, allowed & (np.triu(np.ones(scores.shape[-2:])) == 1)
        )
    ),
    "its shares are transposed: each query gets what its key has in the others' sums": _Formula(
        lambda scores, allowed: _turned(_softmax(scores, allowed))
    ),
    "no step attends to itself": _Formula(
        lambda scores, allowed: _softmax(
            scores, allowed & (np.eye(scores.shape[-2], scores.shape[-1]) == 0)
        )
    ),
    "softmax over the queries, Keras takes it over the keys": _Formula(partial(_softmax, axis=-2)),
    "softmax over the heads, Keras takes it over the keys": _Formula(partial(_softmax, axis=1)),
    "there is no softmax": _Formula(lambda scores, allowed: scores * allowed),
    "sigmoid instead of the softmax": _Formula(lambda scores, allowed: sigmoid(scores) * allowed),
    "log_softmax instead of the softmax": _Formula(
        lambda scores, allowed: np.log(_softmax(scores, allowed))
    ),
    "relu instead of the softmax": _Formula(
        lambda scores, allowed: np.maximum(scores, 0) * allowed
    ),
    "the scores are divided by their sum, without exp": _Formula(
        lambda scores, allowed: divide_by_sum(scores * allowed)
    ),
    "the step of the largest score alone is taken": _Formula(
        lambda scores, allowed: divide_by_sum(
            _softmax(scores, allowed) == _largest(scores, allowed)
        )
    ),
    "softmax over queries and keys together, Keras takes it over the keys": _Formula(
        partial(_softmax, axis=(-2, -1))
    ),
    "all heads are one: each has scores of its own in Keras": _Formula(single=True),
    "(batch, steps, heads * width) is viewed as (batch, heads, steps, width): transpose it": (
        _Formula(split=_viewed)
    ),
    "(batch, heads, steps, width) is viewed as (batch, steps, heads, width): transpose it": (
        _Formula(join=_viewed)
    ),
    "both views mix heads and steps: transpose them": _Formula(split=_viewed, join=_viewed),
}
# By class: other scores than Keras has there
_SCORES: Mapping[str, Mapping[str, _Formula]] = {
    "Attention": {
        "the scores are sums of tanh(query + key), Keras has products": _Formula(
            score=partial(_sums, "tanh")
        ),
        "the scores are products of query and key, Keras has sums of tanh(query + key)": (
            _Formula(score=_products)
        ),
    },
    "AdditiveAttention": {
        "the scores are products of query and key, Keras has sums of tanh(query + key)": (
            _Formula(score=_products)
        ),
        **{
            f"{name} instead of the tanh in the scores": _Formula(score=partial(_sums, name))
            for name in ("relu", "sigmoid")
        },
        "its scale is multiplied inside of the tanh in the scores, Keras multiplies its result": (
            _Formula(score=_scaled_inside)
        ),
        "query and key go through the tanh one by one, or the key alone; Keras takes it of their "
        "sum": _Formula(score=_one_by_one),
        "the tanh in the scores is left out": _Formula(score=partial(_sums, "linear")),
        **{
            f"the scores are {words}, Keras adds them up over the width": _Formula(
                score=partial(_divided_sums, power)
            )
            for words, power in (("means", 1.0), ("divided by the root of the width", 0.5))
        },
    },
    "MultiHeadAttention": {
        f"{name} follows the projections of query, key and value": _Formula(
            projected=partial(activate, name)
        )
        for name in ("relu", "gelu", "tanh")
    },
}
