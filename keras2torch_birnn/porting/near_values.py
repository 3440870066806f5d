"""Weights in a layout of the port's own of which a few values are wrong.

How a port keeps its weights is its own matter, so only this is told: a gate's weights are
somewhere in one piece, as they are or transposed, and some of their values are others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.changes import Change, weighted_as
from keras2torch_birnn.porting.gates import gate_count
from keras2torch_birnn.porting.matching import name_rounding
from keras2torch_birnn.porting.right_tensors import Leaf
from keras2torch_birnn.spec import Array

# The share of values that has to be right, and how many values there have to be.
_SHARE, _LEAST = 0.6, 4
_SAME = 1e-6
# Values of a port's tensor at most: looking for pieces of it takes long.
_LOOKED_AT = 1 << 22


class _Near(NamedTuple):
    """A piece of a port's tensor that is nearly a gate's weights."""

    tensor: str
    values: Array
    wrong: int
    rounded: str = ""

    @property
    def words(self) -> str:
        """The mistake, in words."""
        return self.rounded or f"{self.wrong} of {self.values.size} values"


def near_changes(tensors: Mapping[str, Array], leaves: Sequence[Leaf]) -> Iterator[Change]:
    """Yield a change for each layer of which some values are others in the port.

    tensors: of the port, by name, those that are matched to no layer.
    """
    known = {name: array for name, array in tensors.items() if array.size <= _LOOKED_AT}
    for leaf in leaves if known else ():
        weights, told = {}, []
        for name, array in leaf.layer.weights.items():
            right = np.asarray(array, np.float64)
            gates = gate_count(leaf.layer.class_name)
            # A GRU that resets after has two biases, which are apart in torch.
            if not right.ndim:
                continue
            parts = list(right) if name == "bias" and right.ndim > 1 else [right]
            found = [_with_near_pieces(part, gates, known) for part in parts]
            if not any(found):
                continue
            values = [one[0] if one else part for one, part in zip(found, parts, strict=True)]
            weights[name] = np.stack(values) if len(parts) > 1 else values[0]
            told += [
                f"{printable(near.tensor)}: {near.words} of the {name.replace('_', ' ')} of "
                f"{printable(leaf.name)}{'' if near.rounded else ' differ'}"
                for one in found
                if one is not None
                for near in one[1]
            ]
        if weights:
            words = "; ".join(dict.fromkeys(one.partition(": ")[2] for one in told))
            apply = weighted_as(weights)
            yield Change(
                "weights: some values",
                leaf.path,
                words,
                {leaf.key: apply},
                tuple(dict.fromkeys(told)),
            )


def _with_near_pieces(
    right: Array, gates: int, tensors: Mapping[str, Array]
) -> tuple[Array, list[_Near]] | None:
    """Return the weights as the port has them; None if that is not known, or all are right."""
    changed = right.copy()
    found: list[_Near] = []
    for piece in np.split(changed, gates, axis=-1):  # views: what is written there is in changed
        near = _nearest_piece(piece, tensors)
        if near is not None and near.wrong:
            piece[...] = near.values
            found.append(near)
    return (changed, found) if found else None


def _nearest_piece(right: Array, tensors: Mapping[str, Array]) -> _Near | None:
    """Return the piece that has most of these values; None if there is none that is near."""
    best: _Near | None = None
    rounded: _Near | None = None
    few = right.size < _LEAST  # of these tell tensors of their own, rounded to a known precision
    for name, array in tensors.items():
        if few and array.size != right.size:
            continue
        for turned in (right, right.T) if right.ndim == 2 else (right,):
            for piece in _pieces(array, turned.shape):
                if rounded is None and (words := name_rounding(piece, turned)):
                    values = piece.T if turned is not right else piece
                    rounded = _Near(name, values, right.size, f"{words}: all")
                wrong = int((~np.isclose(piece, turned, rtol=_SAME, atol=_SAME)).sum())
                if best is None or wrong < best.wrong:
                    values = piece.T if turned is not right else piece
                    best = _Near(name, values, wrong)
                if not wrong:
                    return best
    if not few and best is not None and best.wrong <= (1 - _SHARE) * right.size:
        return best
    return rounded if rounded is not None and not (few and "off" in rounded.rounded) else None


def _pieces(array: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """Yield the pieces of this shape into which the last axes of an array can be divided."""
    more = array.ndim - len(shape)
    if more < 0 or any(n % m for n, m in zip(array.shape[more:], shape, strict=True)):
        return
    steps = [range(n) for n in array.shape[:more]]
    steps += [range(0, n, m) for n, m in zip(array.shape[more:], shape, strict=True)]
    for start in product(*steps):
        whole = array[start[:more]]
        yield whole[tuple(slice(s, s + m) for s, m in zip(start[more:], shape, strict=True))]
