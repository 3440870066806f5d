"""Compute what several layers need of one mask once, in one call of a model on a GPU.

There the host waits wherever it reads the lengths of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Values known in a call, and tensors that ``once_for_all`` may be asked for."""

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


def once_for_all(compute: Callable[[Sequence[Tensor]], Sequence[Found]], tensor: Tensor) -> Found:
    """Return what a function of tensors finds of one, and find it of all that are expected."""
    call = _this_call()
    if call is None:
        return compute([tensor])[0]
    asked = _key(compute, tensor)
    if asked not in call.known:
        there = (one for one in call.expected if one.device == tensor.device)
        every = {_key(compute, one): one for one in (tensor, *there)}
        new = {key: one for key, one in every.items() if key not in call.known}
        for (key, one), found in zip(new.items(), compute([*new.values()]), strict=True):
            call.known[key] = (one, found)
    result: Found = call.known[asked][1]
    return result


def expect(tensor: Tensor) -> None:
    """Announce a tensor that ``once_for_all`` may be asked for later in the call."""
    call = _this_call()
    if call is not None:
        call.expected.append(tensor)


def _this_call() -> _Call | None:
    return None if torch.compiler.is_compiling() else _call.get()


def _key(compute: Any, tensor: Tensor) -> tuple[Any, int, int]:
    return compute, id(tensor), 0 if tensor.is_inference() else _version_of(tensor)
