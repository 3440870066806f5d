"""Names of the gates of a cell, in Keras' order and in torch's. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import numpy as np

from keras2torch_birnn.rnn.parameters import CROSSING
from keras2torch_birnn.spec import Array, LayerSpec

# Cell -> a letter for each gate in Keras' order, and the letter of the same gate in torch.
_LETTERS: Mapping[str, tuple[str, str]] = {"LSTM": ("ifco", "ifgo"), "GRU": ("zrh", "zrn")}

Order = tuple[int, ...]


def gate_count(class_name: str) -> int:
    """Return the number of gates whose order matters; 1 for other classes."""
    return len(_LETTERS.get(class_name.removesuffix("Cell"), ("?", "?"))[0])


def keras_letters(class_name: str) -> str:
    """Return the letters of a cell's gates in Keras' order."""
    return _LETTERS[class_name.removesuffix("Cell")][0]


def torch_letters(class_name: str, order: Order) -> str:
    """Return torch's letters of gates in an order: the numbers are Keras'."""
    return "".join(_LETTERS[class_name.removesuffix("Cell")][1][gate] for gate in order)


def orders(count: int) -> Iterator[Order]:
    """Yield every order of so many gates, the usual one first."""
    yield from permutations(range(count))


def reorder(array: Array, order: Order, axis: int) -> Array:
    """Exchange the blocks of an axis: block i of the result is block ``order[i]``."""
    blocks = np.split(array, len(order), axis=axis)
    return np.concatenate([blocks[gate] for gate in order], axis=axis)


def torch_order(layer: LayerSpec) -> Order:
    """Return the gates of a layer, by Keras' numbers, in the order in which torch has them."""
    count = gate_count(layer.class_name)
    numbers = np.arange(count)[np.newaxis]  # one unit, one feature
    weights = {"kernel": numbers, "recurrent_kernel": numbers}
    found = CROSSING[layer.class_name](replace(layer, weights=weights))
    return tuple(int(gate) for gate in found["weight_ih"][:, 0])


def written(layer: LayerSpec, order: Order) -> str:
    """Write gates in torch's order: block i of Keras' order is taken from block ``order[i]``."""
    return torch_letters(layer.class_name, tuple(order[gate] for gate in torch_order(layer)))
