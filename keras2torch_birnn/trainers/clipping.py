"""Gradients clipped as Keras does it: by variable, by all of them together, by value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from keras2torch_birnn.trainers.settings import Clip

Tensors = list[Tensor]


def clip(grads: Tensors, owners: Sequence[int], clips: Iterable[tuple[Clip, float]]) -> Tensors:
    """Return clipped copies of the gradients, or the gradients themselves without ``clips``.

    owners: the number of the Keras variable that each gradient belongs to. A GRU's bias is one
    variable in Keras and two parameters in torch, which are clipped together.
    """
    for kind, limit in clips:
        grads = _KINDS[kind](grads, owners, limit)
    return grads


def _by_value(grads: Tensors, owners: Sequence[int], limit: float) -> Tensors:
    return list(torch._foreach_clamp_max(torch._foreach_clamp_min(grads, -limit), limit))


def _norm(norms: Sequence[Tensor]) -> Tensor:
    together: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return together


def _by_variable(grads: Tensors, owners: Sequence[int], limit: float) -> Tensors:
    """Divide the gradient of each variable by its norm, where that is above the limit."""
    norms = torch._foreach_norm(grads)
    of_owner: dict[int, list[Tensor]] = {}
    for owner, norm in zip(owners, norms, strict=True):
        of_owner.setdefault(owner, []).append(norm)
    factor = {
        owner: limit / (found[0] if len(found) == 1 else _norm(found)).clamp_min(limit)
        for owner, found in of_owner.items()
    }
    return [grad * factor[owner] for grad, owner in zip(grads, owners, strict=True)]


def _by_all(grads: Tensors, owners: Sequence[int], limit: float) -> Tensors:
    """Divide all gradients by the norm of all together; not finite ones make all NaN."""
    norm = _norm(torch._foreach_norm(grads))
    factor = limit * (1 / norm).clamp_max(1 / limit) + (norm - norm)
    return [grad * factor for grad in grads]


def _by_all_as_keras2(grads: Tensors, owners: Sequence[int], limit: float) -> Tensors:
    norm = _norm(torch._foreach_norm(grads))
    factor = torch.where(norm >= limit, limit / norm, 1.0)
    return [grad * factor for grad in grads]


_KINDS: Mapping[Clip, Callable[[Tensors, Sequence[int], float], Tensors]] = {
    "by value": _by_value,
    "by variable": _by_variable,
    "by all": _by_all,
    "by all, as Keras 2": _by_all_as_keras2,
}
