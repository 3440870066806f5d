"""Compute what several layers need of one mask once, in one call of a model on a GPU.

There the host waits wherever it reads the lengths of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from keras2torch_birnn.torch_private import find_version

Found = TypeVar("Found")
# By function, tensor and version of the tensor, which is kept so that nothing else has its id.
_Known = dict[tuple[Any, int, int], tuple[Tensor, Any]]
_known: ContextVar[_Known | None] = ContextVar("known", default=None)
_version_of = find_version()


def are_on_gpu(values: Iterable[Any]) -> bool:
    """Return whether one of some arguments is a tensor on a GPU."""
    return any(isinstance(one, Tensor) and one.is_cuda for one in values)


@contextmanager
def one_call() -> Iterator[None]:
    """Remember what ``once`` computes until the outermost of these blocks ends."""
    if _known.get() is not None:
        yield
        return
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def once(compute: Callable[[Tensor], Found], tensor: Tensor) -> Found:
    """Return what a function computes of a tensor alone, known from earlier in a call or not."""
    known = None if torch.compiler.is_compiling() else _known.get()
    if known is None:
        return compute(tensor)
    key = _key(compute, tensor)
    if key not in known:
        known[key] = (tensor, compute(tensor))
    found: Found = known[key][1]
    return found


def once_for_both(compute: Callable[[Tensor], Any], tensor: Tensor, other: Tensor) -> None:
    """Note that a function gives the same of both, for ``once``."""
    known = None if torch.compiler.is_compiling() else _known.get()
    if known is not None:
        known[_key(compute, other)] = (other, once(compute, tensor))


def _key(compute: Any, tensor: Tensor) -> tuple[Any, int, int]:
    return compute, id(tensor), 0 if tensor.is_inference() else _version_of(tensor)
