"""Compute what several layers need of one mask once, in one call of a model on a GPU.

There the host waits wherever it reads values: it reads all that are expected at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from keras2torch_birnn.torch_private import find_version

Found = TypeVar("Found")
# By function, tensor and version of the tensor, which is kept so that nothing else has its id.
_Known = dict[tuple[Any, int, int], tuple[Tensor, Any]]


class _Call(NamedTuple):
    """Values known in a call, and tensors that ``on_host`` may be asked for."""

    known: _Known
    expected: list[Tensor]


_call: ContextVar[_Call | None] = ContextVar("call", default=None)
_version_of = find_version()


def are_on_gpu(values: Iterable[Any]) -> bool:
    """Return whether one of some arguments is a tensor on a GPU."""
    return any(isinstance(one, Tensor) and one.is_cuda for one in values)


@contextmanager
def one_call() -> Iterator[None]:
    """Remember what ``once`` computes until the outermost of these blocks ends."""
    if _call.get() is not None:
        yield
        return
    before = _call.set(_Call({}, []))
    try:
        yield
    finally:
        _call.reset(before)


def once(compute: Callable[[Tensor], Found], tensor: Tensor) -> Found:
    """Return what a function computes of a tensor alone, known from earlier in a call or not."""
    call = _this_call()
    if call is None:
        return compute(tensor)
    key = _key(compute, tensor)
    if key not in call.known:
        call.known[key] = (tensor, compute(tensor))
    found: Found = call.known[key][1]
    return found


def once_for_both(compute: Callable[[Tensor], Any], tensor: Tensor, other: Tensor) -> None:
    """Note that a function gives the same of both, for ``once``."""
    call = _this_call()
    if call is not None:
        call.known[_key(compute, other)] = (other, once(compute, tensor))


def on_host(tensor: Tensor) -> Tensor:
    """Return a tensor on the host, and copy all that are expected along with it."""
    call = _this_call()
    if call is None:
        return tensor.cpu()
    if find_on_host(tensor) is None:
        asked = {id(one): one for one in (tensor, *call.expected) if one.device == tensor.device}
        new = [one for one in asked.values() if find_on_host(one) is None]
        new.sort(key=Tensor.element_size, reverse=True)  # each begins where its dtype may
        parts = [one.detach().reshape(-1).view(torch.uint8) for one in new]
        read = torch.split(torch.cat(parts).cpu(), [*map(len, parts)])
        for one, values in zip(new, read, strict=True):
            note_on_host(one, values.view(one.dtype).view(one.shape))
    held: Tensor = call.known[_key(on_host, tensor)][1]
    return held


def find_on_host(tensor: Tensor) -> Tensor | None:
    """Return a tensor on the host if it is known there."""
    call = _this_call()
    found: Tensor | None = call and call.known.get(_key(on_host, tensor), (tensor, None))[1]
    return found


def note_on_host(tensor: Tensor, values: Tensor) -> None:
    """Note the values of a tensor, for ``on_host``."""
    call = _this_call()
    if call is not None:
        call.known[_key(on_host, tensor)] = (tensor, values)


def expect(tensor: Tensor) -> None:
    """Announce a tensor that ``on_host`` may be asked for later in the call."""
    call = _this_call()
    if call is not None:
        call.expected.append(tensor)


def _this_call() -> _Call | None:
    return None if torch.compiler.is_compiling() else _call.get()


def _key(compute: Any, tensor: Tensor) -> tuple[Any, int, int]:
    return compute, id(tensor), 0 if tensor.is_inference() else _version_of(tensor)
