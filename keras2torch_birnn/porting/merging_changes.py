"""Known mistakes in layers that merge several tensors, as changes to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import permutations

import numpy as np

from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    configured,
    reading_one,
)
from keras2torch_birnn.porting.general_changes import MOVES
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import Array, leaves

_NUMBERS = ("first", "second", "third")


def joined_mask_changes(maker: Maker) -> Iterator[Change]:
    """Yield one input's mask in the place of all inputs' masks joined."""
    for number, name in enumerate(_NUMBERS):
        words = f"the mask of its {name} input alone goes on, Keras joins those of all"
        yield maker.change("mask rule", words, partial(_mask_alone, number))
    for words, join in _JOINS.items():
        yield maker.change("mask rule", f"a step counts where {words}", partial(_mask_joined, join))


# Where a step counts -> how masks are joined
_JOINS: Mapping[str, Callable[[list[Array]], Array]] = {
    "all of its inputs count, in Keras where one of them does": np.logical_and.reduce,
    "one of its inputs counts, in Keras where all of them do": np.logical_or.reduce,
}


def _mask_joined(join: Callable[[list[Array]], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    given = [one for one in call.masks if one is not None]
    if not isinstance(out_mask, np.ndarray) or len({np.shape(one) for one in given}) != 1:
        raise ValueError("no such masks are joined")
    return output, join([np.asarray(one).astype(bool) for one in given])


def _mask_alone(number: int, call: LayerCall) -> Result:
    output, out_mask = call.run()
    given = call.masks
    if not isinstance(out_mask, np.ndarray) or np.shape(given[number]) != out_mask.shape:
        raise ValueError("no such mask is joined")
    return output, given[number]


def moved_input_changes(maker: Maker) -> Iterator[Change]:
    """Yield one of several inputs whose steps come too late or too early, or reversed."""
    for number, name in enumerate(_NUMBERS):
        for words, move in {**MOVES, "in reversed order": lambda x: x[:, ::-1]}.items():
            late = f"one step too {words}" if words in MOVES else words
            told = f"the steps of its {name} input come {late}"
            moved = reading_one(number, partial(_steps_moved, move))
            yield maker.change("steps", told, moved)


def _steps_moved(move: Callable[[Array], Array], x: Array) -> Array:
    if x.ndim < 3:
        raise ValueError("there are no steps")
    return move(x)


def order_changes(maker: Maker) -> Iterator[Change]:
    """Yield other orders of a layer's inputs."""
    yield maker.change("order", "its inputs come in the other order", partial(_ordered, None))
    for count in (3, 4):
        for order in list(permutations(range(count)))[1:-1]:  # but for the right and the last one
            shown = ", ".join(str(place + 1) for place in order)
            words = f"its inputs come in the order {shown}"
            yield maker.change("order", words, partial(_ordered, order))
    for count in _MANY:
        for order in _near_orders(count):
            shown = ", ".join(str(place + 1) for place in order)
            words = f"its inputs come in the order {shown}"
            yield maker.change("order", words, partial(_ordered, order))


# Numbers of inputs of which not all orders are tried.
_MANY = (5, 6, 7)


def _near_orders(count: int) -> Iterator[tuple[int, ...]]:
    """Yield the orders of which one input is in another place, or two are exchanged."""
    usual = tuple(range(count))
    found = dict.fromkeys([usual])
    for place, to in permutations(usual, 2):
        others = [one for one in usual if one != place]
        moved = (*others[:to], place, *others[to:])
        found[moved] = None
        swapped = list(usual)
        swapped[place], swapped[to] = to, place
        found[tuple(swapped)] = None
    yield from list(found)[1:]


def _ordered(order: tuple[int, ...] | None, call: LayerCall) -> Result:
    given = list(leaves(call.inputs))
    places = range(len(given))[::-1] if order is None else order
    if len(places) != len(given):
        raise ValueError("another number of inputs")
    masks = [call.masks[place] for place in places] if call.masks else call.mask
    return call._replace(inputs=tuple(given[place] for place in places), mask=masks).run()


def cosine_changes(maker: Maker) -> Iterator[Change]:
    """Yield a product in the place of the cosine, and the other way round."""
    own = maker.config["normalize"]
    words = "it normalizes its inputs (cosine), Keras does not"
    if own:
        words = "it does not normalize its inputs (normalize=True: the cosine)"
    yield maker.change("normalize", words, configured(normalize=not own))
    for number, which in enumerate(("first", "second")):
        words = f"it normalizes its {which} input alone, Keras {'both' if own else 'none'}"
        yield maker.change("normalize", words, partial(_with_one_normalized, number))


def _with_one_normalized(number: int, call: LayerCall) -> Result:
    axes = call.layer.config["axes"]
    axis = axes if isinstance(axes, int) else axes[number]
    unit = reading_one(number, lambda x: x / np.linalg.norm(x, axis=axis, keepdims=True))
    return unit(call.configured(normalize=False))


def distance_changes(maker: Maker) -> Iterator[Change]:
    """Yield what stands for a square, or for another difference of two tensors."""
    for words, combine in _DISTANCES.items():
        words = f"{words}, Keras has {maker.layer.class_name}"
        yield maker.change("other operation", words, partial(_combined, combine))


def _combined(combine: Callable[[Array, Array], Array], call: LayerCall) -> Result:
    _, out_mask = call.run()
    first, second = (np.asarray(part) for part in leaves(call.inputs))
    return combine(first, second), out_mask


def _root_of_product(first: Array, second: Array) -> Array:
    if not np.array_equal(first, second):
        raise ValueError("it is no square")
    root: Array = np.abs(first)
    return root


def transposed_input_changes(maker: Maker) -> Iterator[Change]:
    """Yield a product of which one input (B, T, T) has its axes exchanged."""
    for number, name in enumerate(_NUMBERS[:2]):
        words = f"the last two axes of its {name} input are exchanged"
        turned = reading_one(number, lambda x: np.swapaxes(x, 1, 2))
        yield maker.change("axes", words, turned)


def vector_distance_changes(maker: Maker) -> Iterator[Change]:
    """Yield a distance of two vectors (B, F) in the place of their product."""
    for words, distance in _VECTOR_DISTANCES.items():
        words = f"it computes {words}, Keras has {maker.layer.class_name}"
        yield maker.change(
            "other operation", words, partial(_combined, partial(_of_vectors, distance))
        )


def _of_vectors(distance: Callable[[Array], Array], first: Array, second: Array) -> Array:
    if first.ndim != 2:
        raise ValueError("they are no vectors")
    return distance(first - second)[:, np.newaxis]


_VECTOR_DISTANCES: Mapping[str, Callable[[Array], Array]] = {
    "the Euclidean distance": lambda x: np.sqrt(np.square(x).sum(axis=-1)),
    "the squared Euclidean distance": lambda x: np.square(x).sum(axis=-1),
    "the sum of absolute differences": lambda x: np.abs(x).sum(axis=-1),
}
_DISTANCES: Mapping[str, Callable[[Array, Array], Array]] = {
    "it takes the absolute value": _root_of_product,
    "it divides the first input by the second": lambda first, second: first / second,
    "it divides the second input by the first": lambda first, second: second / first,
    "it computes the absolute difference": lambda first, second: np.abs(first - second),
    "it computes the squared difference": lambda first, second: (first - second) ** 2,
}


def masked_value_changes(maker: Maker) -> Iterator[Change]:
    """Yield masked steps that are merged as they are, where Keras takes the other inputs alone."""
    words = "masked steps are merged as they are, Keras leaves the masked input out there"
    yield maker.change("mask missing", words, _without_masks)


def _without_masks(call: LayerCall) -> Result:
    if all(one is None for one in call.masks):
        raise ValueError("there is no mask")
    _, out_mask = call.aside().run()
    return call._replace(mask=None).run()[0], out_mask


def one_input_changes(maker: Maker) -> Iterator[Change]:
    """Yield merges of several tensors that hand on one of them."""
    for number, words in enumerate(_NUMBERS):
        yield maker.change(
            "left out",
            f"it is left out: the {words} of its inputs goes on alone",
            partial(_input_alone, number),
        )


def _input_alone(number: int, call: LayerCall) -> Result:
    output, out_mask = call.run()
    alone = list(leaves(call.inputs))[number]
    if np.shape(alone) != np.shape(output):
        raise ValueError("another shape")
    return alone, out_mask


def state_view_changes(maker: Maker) -> Iterator[Change]:
    """Yield a concatenation of states that views them as torch has them, one after the other."""
    words = "its inputs lie as (2, B, H), as h_n does, and are viewed as (B, 2 H): transpose first"
    for first in _FIRST_STATES:
        some = (
            words
            if first is None
            else words.replace("inputs", f"inputs {first + 1} and {first + 2}")
        )
        yield maker.change("axes", some, partial(_stacked, first))


def _stacked(first: int | None, call: LayerCall) -> Result:
    _, out_mask = call.run()
    given = [np.asarray(one) for one in leaves(call.inputs)]
    states = slice(None) if first is None else slice(first, first + 2)
    some = given[states]
    if len(some) < 2 or any(one.ndim != 2 or one.shape != some[0].shape for one in some):
        raise ValueError("they are no states")
    if first is not None and len(given) == 2:
        raise ValueError("they are all")
    given[states] = [np.stack(some).reshape(len(some[0]), -1)]
    return np.concatenate(given, axis=-1), out_mask


# Of two states among other inputs, the first one's place; None: all inputs are states.
_FIRST_STATES = (None, 0, 1, 2)
