"""Signals that a dictionary, an object or a tensor has changed: fast, and not public.

Each is tried before it is trusted. Where there is none, or another than is known, everything is
compared one by one, which takes longer.
"""

from __future__ import annotations

import ctypes
import gc
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from operator import attrgetter
from types import CellType, FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.rnn.native.library import library, why_missing
from keras2torch_birnn.rnn.tensor_memory import have_tangents, is_plain
from keras2torch_birnn.torch_private import find

_LAYOUT = attrgetter("shape", "dtype")

# Code that torch.compile made asks these before every call.
_guards: Any = find("guards")


# Of objects of these types, and of any other: what is compared.
_PARTS: Mapping[type, Sequence[str]] = {
    FunctionType: ("__code__", "__defaults__", "__kwdefaults__"),
    CellType: ("cell_contents",),
    object: ("__class__", "__dict__"),
}


class _Probe:
    value = 0


class _OtherProbe:
    pass


def class_dict(kind: type) -> dict[str, Any]:
    """Return the dictionary of a class, of which ``vars`` shows a view."""
    (found,) = gc.get_referents(vars(kind))
    return cast(dict[str, Any], found)


class States:
    """The states of dictionaries and other objects, which it keeps, to be compared with later ones.

    In one call: Python has a word in every dictionary with a number for its state that no other one
    has had, and words in every object with the addresses of its parts (``_PARTS``), which whoever
    asks has to keep.
    """

    def __init__(self, dicts: Sequence[Any], objects: Sequence[Any]) -> None:
        of_dict, of_parts = _find_word(), [*map(_find_parts, objects)]
        self._kept = dicts, objects
        known = of_dict is not None and all(of_parts)
        places = [(d, of_dict) for d in dicts]
        places += [(o, at) for o, parts in zip(objects, of_parts, strict=True) for at in parts]
        self._words = [_word_at(owner, at) for owner, at in places if known and at is not None]
        count = len(self._words)
        self._known = (ctypes.c_uint64 * count)()
        self.accept(self.read())
        addresses = (ctypes.c_void_p * count)(*map(ctypes.addressof, self._words))
        given = (ctypes.c_int64(count), ctypes.byref(addresses), ctypes.byref(self._known))
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


def _find_parts(owner: Any) -> Sequence[int]:
    """Return where in an object the addresses of its parts are; nothing if unknown."""
    kind = type(owner) if type(owner) in _PARTS else object
    found = _find_places().get(kind, ())
    words = [_read_word(at, owner) or id(None) for at in found]  # a function without defaults: 0
    return found if words == _addresses(owner, kind) else ()


def _addresses(owner: Any, kind: type) -> list[int]:
    return [id(getattr(owner, part)) for part in _PARTS[kind]]


@cache
def _find_places() -> Mapping[type, Sequence[int]]:
    """Return where the parts are, by type; without the types of which it is unknown."""

    def one(x: int = 1, *, y: int = 2) -> int:
        return x + y

    def other(x: int = 3, *, y: int = 4) -> int:
        return x - y

    pairs: Mapping[type, tuple[Any, Any]] = {
        FunctionType: (one, other),
        CellType: (CellType(one), CellType(other)),
        object: (_Probe(), _OtherProbe()),
    }
    return {kind: found for kind, pair in pairs.items() if (found := _try_places(kind, *pair))}


def _try_places(kind: type, one: Any, other: Any) -> Sequence[int]:
    """Find the parts of an object, which become those of another."""
    size = ctypes.sizeof(ctypes.c_uint64)
    # Python has the address of an instance's dictionary in front of it.
    offsets = range(-4 * size if kind is object else 0, type(one).__basicsize__, size)
    found = [at for part in _addresses(one, kind) for at in offsets if _read_word(at, one) == part]
    for part in _PARTS[kind]:
        setattr(one, part, getattr(other, part))
    now = [_read_word(at, one) for at in found]
    return found if now == _addresses(other, kind) else ()


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


@cache
def _sees_tensors() -> bool:
    try:
        return _try_tensors()
    except Exception:  # another class than we know
        return False
