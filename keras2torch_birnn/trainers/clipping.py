"""Gradients clipped as Keras does it: by variable, by all of them together, by value.

The rows of an Embedding's gradient are clipped before they are added up, and their norm is that of
all rows, as TensorFlow has it; but in Keras 2 that of their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.embedding_rows import Rows
from keras2torch_birnn.trainers.settings import Clip


@dataclass(frozen=True)
class Gradients:
    """Gradients; ``owners``: the number of the Keras variable that each belongs to.

    A GRU's bias is one variable in Keras and two parameters in torch, which are clipped together.
    ``rows``: by number of a gradient, its rows. ``single_norms``: norms are rounded to float32.
    """

    dense: tuple[Tensor, ...]
    owners: tuple[int, ...]
    rows: Mapping[int, Rows]
    single_norms: bool = False

    def rounded(self, norm: Tensor) -> Tensor:
        """Return a norm as it is compared with a limit; Keras on torch rounds it then."""
        return norm.float() if self.single_norms else norm

    def norms(self) -> list[Tensor]:
        """Return the norm of each gradient."""
        found = list(foreach.norm(self.dense))
        for number, rows in self.rows.items():
            found[number] = torch.linalg.vector_norm(rows.values)
        return found

    def times(self, factors: Sequence[Tensor]) -> Gradients:
        """Multiply each gradient by a number."""
        dense = tuple(one * by for one, by in zip(self.dense, factors, strict=True))
        rows = {
            number: replace(one, values=one.values * factors[number])
            for number, one in self.rows.items()
        }
        return replace(self, dense=dense, rows=rows)


def clip(grads: Gradients, clips: Iterable[tuple[Clip, float]]) -> Gradients:
    """Return clipped copies of the gradients, or the gradients themselves without ``clips``."""
    for kind, limit in clips:
        grads = _KINDS[kind](grads, limit)
    return grads


def _by_value(grads: Gradients, limit: float) -> Gradients:
    rows = {
        number: replace(one, values=one.values.clamp(-limit, limit))
        for number, one in grads.rows.items()
    }
    dense = [grad.clamp(-limit, limit) for grad in grads.dense]
    for number, one in rows.items():
        dense[number] = one.dense(dense[number], one.values)
    return replace(grads, dense=tuple(dense), rows=rows)


def _together(norms: Sequence[Tensor]) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return found


def _by_variable(grads: Gradients, limit: float) -> Gradients:
    """Divide the gradient of each variable by its norm, where that is above the limit."""
    of_owner: dict[int, list[Tensor]] = {}
    for owner, norm in zip(grads.owners, grads.norms(), strict=True):
        of_owner.setdefault(owner, []).append(norm)
    factor = {
        owner: limit / norm.clamp_min(limit).to(found[0].dtype)
        for owner, found in of_owner.items()
        for norm in [grads.rounded(found[0] if len(found) == 1 else _together(found))]
    }
    return grads.times([factor[owner] for owner in grads.owners])


def _by_all(grads: Gradients, limit: float) -> Gradients:
    """Divide all gradients by the norm of all together; not finite ones make all NaN."""
    norm = _together(grads.norms())
    factor = limit * grads.rounded(1 / norm).clamp_max(1 / limit) + (norm - norm)
    return grads.times([factor] * len(grads.dense))


def _by_all_as_keras3(grads: Gradients, limit: float) -> Gradients:
    """Divide by the norm of all rows, and add them up: there a product with a tensor is dense."""
    return replace(_by_all(grads, limit), rows={})


def _by_all_as_keras2(grads: Gradients, limit: float) -> Gradients:
    """Divide by the norm of the sums of rows, which stay rows."""
    norm = _together(foreach.norm(grads.dense))
    factor = torch.where(norm >= limit, limit / norm, 1.0)
    return grads.times([factor] * len(grads.dense))


_KINDS: Mapping[Clip, Callable[[Gradients, float], Gradients]] = {
    "by value": _by_value,
    "by variable": _by_variable,
    "by all": _by_all,
    "by all, as Keras 2": _by_all_as_keras2,
    "by all, as Keras 3": _by_all_as_keras3,
}
