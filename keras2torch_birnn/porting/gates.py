"""Names of the gates of a cell, in Keras' order and in torch's. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import TypeAlias

from keras2torch_birnn.schema.recurrent import GATES, Gates
from keras2torch_birnn.spec import LayerSpec

Order: TypeAlias = tuple[int, ...]
_ALONE = GATES["SimpleRNN"]


def _gates(class_name: str) -> Gates:
    return GATES.get(class_name.removesuffix("Cell"), _ALONE)


def gate_count(class_name: str) -> int:
    """Return the number of gates whose order matters; 1 for other classes."""
    return len(_gates(class_name).order)


def keras_letters(class_name: str) -> str:
    """Return the letters of a cell's gates in Keras' order."""
    return _gates(class_name).keras


def torch_letters(class_name: str, order: Order) -> str:
    """Return torch's letters of gates in an order: the numbers are Keras'."""
    return "".join(_gates(class_name).torch[gate] for gate in order)


def torch_order(layer: LayerSpec) -> Order:
    """Return the gates of a layer, by Keras' numbers, in the order in which torch has them."""
    return _gates(layer.class_name).order


def orders(count: int) -> Iterator[Order]:
    """Yield every order of so many gates, the usual one first."""
    yield from permutations(range(count))


def written(layer: LayerSpec, order: Order) -> str:
    """Write gates in torch's order: block i of Keras' order is taken from block ``order[i]``."""
    return torch_letters(layer.class_name, tuple(order[gate] for gate in torch_order(layer)))
