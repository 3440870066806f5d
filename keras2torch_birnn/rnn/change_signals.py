"""Signals that a dictionary, a function or a tensor has changed: fast, and not public.

Each is tried before it is trusted. Where there is none, or another than is known, everything is
compared one by one, which takes longer.
"""

from __future__ import annotations

import ctypes
import gc
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache, partial
from operator import attrgetter
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.rnn.native.library import library, why_missing
from keras2torch_birnn.rnn.tensor_memory import have_tangents, is_plain
from keras2torch_birnn.torch_private import find

_LAYOUT = attrgetter("shape", "dtype")

# Code that torch.compile made asks these before every call.
_guards: Any = find("guards")


class _Probe:
    value = 0


def class_dict(kind: type) -> dict[str, Any]:
    """Return the dictionary of a class, of which ``vars`` shows a view."""
    (found,) = gc.get_referents(vars(kind))
    return cast(dict[str, Any], found)


class States:
    """The states of dictionaries and functions, which it keeps, to be compared with later ones.

    In one call: Python has a word in every dictionary with a number for its state that no other one
    has had, and words in every function with the addresses of its code and defaults.
    """

    def __init__(self, dicts: Sequence[Any], functions: Sequence[Any]) -> None:
        of_dict, of_function = _find_word(), _find_function_words()
        self._kept = dicts, functions
        self._words = (
            [
                *(_word_at(d, of_dict) for d in dicts),
                *(_word_at(f, offset) for f in functions for offset in of_function),
            ]
            if of_dict is not None and of_function and {*map(type, functions)} <= {FunctionType}
            else []
        )
        count = len(self._words)
        self._known = (ctypes.c_uint64 * count)()
        self.accept(self.read())
        places = (ctypes.c_void_p * count)(*map(ctypes.addressof, self._words))
        given = (ctypes.c_int64(count), ctypes.byref(places), ctypes.byref(self._known))
        self._hold: Any = partial(_find_hold(), *given) if self._words else bool

    def hold(self) -> bool:
        """Return whether all are known to be as they were; False also where Python has no word."""
        return bool(self._hold())

    def read(self) -> list[Any]:
        """Return the present states; none where Python has no such word."""
        return [word.value for word in self._words]

    def accept(self, states: list[Any]) -> None:
        """Compare with these states, which ``read`` gave, from now on."""
        self._known[: len(states)] = states

    def accept_one(self, number: int) -> None:
        """Compare one dictionary, by its number, with its present state from now on."""
        if self._words:
            self._known[number] = self._words[number].value


def _word_at(owner: Any, offset: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(id(owner) + offset)


def _read_word(offset: int, owner: Any) -> int:
    return _word_at(owner, offset).value


@cache
def _find_hold() -> Any:
    """Return the kernel's comparison of words, during which no other thread runs Python."""
    return ctypes.PyDLL(None, handle=library()._handle).k2t_hold


@cache
def _find_word() -> int | None:
    """Return where in a dictionary the word for its state is; None if it has none."""
    if why_missing():
        return None
    offsets = range(0, dict.__basicsize__, ctypes.sizeof(ctypes.c_uint64))
    return next((at for at in offsets if _tells_dicts_apart(partial(_read_word, at))), None)


def _tells_dicts_apart(version: Callable[[Any], int]) -> bool:
    """Try a function that gives every state of every dictionary a number of its own."""
    probe = _Probe()
    probe.value = 1
    dicts: list[Any] = [vars(probe), {"value": 1}, OrderedDict(value=1), class_dict(_Probe)]
    found = [[*map(version, dicts)]]
    same = found[0] == [*map(version, dicts)]
    changes: Sequence[Callable[[], Any]] = (
        lambda: setattr(probe, "value", 2),
        lambda: setattr(probe, "other", 2),
        lambda: delattr(probe, "other"),
        lambda: dicts[1].update(value=2),
        lambda: dicts[1].clear(),
        lambda: dicts[2].update(value=2),
        lambda: dicts[2].clear(),
        lambda: setattr(_Probe, "value", 2),
        lambda: setattr(_Probe, "other", 2),
        lambda: delattr(_Probe, "other"),
    )
    for which, change in zip((0, 0, 0, 1, 1, 2, 2, 3, 3, 3), changes, strict=True):
        change()
        now = [*map(version, dicts)]
        moved = [i for i, number in enumerate(now) if number != found[-1][i]]
        same = same and moved == [which]
        found.append(now)
    _Probe.value = 0
    each = {number for numbers in found for number in numbers}
    return same and len(each) == len(dicts) + len(changes)


@cache
def _find_function_words() -> Sequence[int]:
    """Return where in a function its code and its defaults are; nothing if unknown."""

    def one(x: int = 1, *, y: int = 2) -> int:
        return x + y

    def other(x: int = 3, *, y: int = 4) -> int:
        return x - y

    offsets = range(0, FunctionType.__basicsize__, ctypes.sizeof(ctypes.c_uint64))
    parts = ("__code__", "__defaults__", "__kwdefaults__")
    found = [
        at for part in parts for at in offsets if _read_word(at, one) == id(getattr(one, part))
    ]
    for part in parts:
        setattr(one, part, getattr(other, part))
    now = [_read_word(at, one) for at in found]
    return found if now == [id(getattr(other, part)) for part in parts] else ()


def watch_tensors(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """Return a function of tensors that tells whether these are like the first ones.

    Of the same class, dtype, device, sizes and strides, without a new pending negation. None also
    if one is there twice.
    """
    distinct = len({*map(id, tensors)}) == len(tensors)
    if _guards is None or not (tensors and distinct and _sees_tensors()):
        return None
    return _make_check(tensors)


class KnownTensors:
    """Where the numbers of tensors are, and how to read them, for comparison with later tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._addresses = [*map(Tensor.data_ptr, tensors)]
        self._layouts = [*map(_LAYOUT, tensors)]
        # Outside and within inference mode, where torch sees other tensors.
        self._alike: list[Any] = [None, None]

    def match(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these have the same numbers, sizes and order, contiguous and plain."""
        try:
            if [*map(Tensor.data_ptr, tensors)] != self._addresses:
                return False
        except RuntimeError:  # without memory
            return False
        mode = torch.is_inference_mode_enabled()
        alike = self._alike[mode]
        if alike is not None and alike(*tensors) and not have_tangents(tensors):
            return True
        if not (
            [*map(_LAYOUT, tensors)] == self._layouts
            and all(map(Tensor.is_contiguous, tensors))
            and is_plain(tensors)
        ):
            return False
        self._alike[mode] = watch_tensors(tensors)
        return True


def _make_check(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    made: Any = _guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    return cast(Callable[..., bool], made.check)


def _try_tensors() -> bool:
    """Try what ``watch_tensors`` promises."""
    kept = torch.zeros(2, 2, dtype=torch.float32, device="cpu")
    others = (
        kept.view(4, 1),
        kept.t(),
        kept.view(torch.int32),
        find("neg_view")(kept),
        nn.Parameter(kept),
    )
    check = _make_check([kept])
    return check(kept) is True and not any(map(check, others))


_found: list[bool] = []


def _sees_tensors() -> bool:
    if not _found:
        try:
            _found.append(_try_tensors())
        except Exception:  # another class than we know
            _found.append(False)
    return _found[0]
