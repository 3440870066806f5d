"""Run a port and note every tensor that it computes.

All of them are kept: a port may do in one line what Keras does in a layer, and only the values
tell which tensor is which layer's output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from keras2torch_birnn.porting.used_tensors import Sources, memory_of
from keras2torch_birnn.rnn.torch_private import find_version
from keras2torch_birnn.spec import Array, map_structure

_version_of = find_version()
# Tensors of a run that are kept at most, in bytes; later ones are not looked at.
_ROOM = 1 << 28
# Stands for NaN where values are compared.
_NAN = -7.0e7
# Functions that leave out values at random, and others whose result is random.
DROPOUTS = frozenset(
    "dropout dropout_ dropout1d dropout2d dropout3d feature_dropout alpha_dropout "
    "feature_alpha_dropout".split()
)
_DRAWN = frozenset("rand randn rand_like randn_like normal normal_ uniform_".split())
# Precisions that round what is computed, in words.
HALVES = {torch.float16: "half precision (float16)", torch.bfloat16: "bfloat16"}
# In float64 only wrong numbers are far apart; a port that insists on float32 rounds.
PRECISIONS = ((torch.float64, 1e-6), (torch.float32, 1e-3))
# Errors of a port that does not fit the inputs. Anything else is not expected of torch.
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Drawn:
    """A function that draws random numbers, or a half precision.

    ``given``: what the function was given: of a dropout, what it leaves values out of.
    """

    name: str
    given: tuple[Array, ...] = ()


@dataclass(frozen=True)
class PortRun:
    """One run of a port: its outputs, and every tensor on the way to them.

    ``unused``: tensors that the outputs do not depend on.
    ``tolerance``: how far values may be from the reference's in this precision. ``drawn``: the
    functions that drew random numbers, and the half precisions that were used.
    """

    outputs: tuple[Array, ...]
    seen: tuple[Array, ...]
    tolerance: float
    drawn: tuple[Drawn, ...] = ()
    unused: tuple[Array, ...] = ()

    def has(self, values: Array, valid: Array | None = None) -> bool:
        """Tell whether a tensor with these values was computed."""
        return self.latest(values, valid) is not None

    def latest(self, values: Array, valid: Array | None = None) -> Array | None:
        """Return the last tensor with these values, in their order of axes; None if there is none.

        valid: (B, T), where the values count. Axes in another order, of size 1, or folded are no
        difference. Numbers that overflowed are found nowhere: everything would be within their
        tolerance. NaN is found where there is NaN and something else, too.
        """
        kept = keep_valid(with_marked_nan(values), valid)
        if (kept == _NAN).all() or not np.isfinite(kept).all():
            return None
        limit = self.tolerance * (1 + float(np.abs(kept).max(initial=0.0)))
        for there in reversed(self._with_largest_of(kept, limit)):
            for moved in _in_every_order(there, kept.shape):
                if np.abs(keep_valid(moved, valid) - kept).max(initial=0.0) <= limit:
                    return moved
        return None

    def nearest(self, values: Array) -> Array | None:
        """Return the computed tensor of this size that is nearest, in the axes of ``values``."""
        some = self._by_size.get(values.size, ())
        every = [moved for there in some for moved in _in_every_order(there, values.shape)]
        if not every:
            return None
        best = max(every, key=lambda one: np.mean(np.abs(one - values) <= self.tolerance))
        return np.where(best == _NAN, np.nan, best)

    def _with_largest_of(self, kept: Array, limit: float) -> list[Array]:
        """Return the tensors of this size that have the largest of these values anywhere."""
        some = self._by_size.get(kept.size)
        if some is None or not kept.size:
            return []
        near = np.abs(some - kept.flat[np.abs(kept).argmax()]) <= limit
        return list(some[near.any(axis=1)])

    @cached_property
    def _by_size(self) -> Mapping[int, Array]:
        """All tensors of a size, flat, as rows of one array."""
        found: dict[int, list[Array]] = {}
        for one in self.seen:
            found.setdefault(one.size, []).append(one.reshape(-1))
        return {size: np.stack(some) for size, some in found.items()}


def _in_every_order(flat: Array, shape: Sequence[int]) -> Iterator[Array]:
    """Yield a flat tensor in a shape, as if its axes had been in any order."""
    for axes in permutations(range(len(shape))):
        moved = flat.reshape([shape[axis] for axis in axes])
        yield moved.transpose([axes.index(axis) for axis in range(len(shape))])


def with_marked_nan(values: Array) -> Array:
    """Return values in float64 with a number in the place of NaN, which equals itself."""
    found = np.asarray(values, np.float64)
    marked: Array = np.where(np.isnan(found), _NAN, found)
    return marked


def keep_valid(values: Array, valid: Array | None) -> Array:
    """Set steps (B, T) of values (B, T, ...) that do not count to zero."""
    if valid is None or values.shape[:2] != valid.shape:
        return values
    counts = valid.reshape(*valid.shape, *[1] * (values.ndim - 2))
    kept: Array = np.where(counts, values, 0)  # what does not count may be infinite
    return kept


# Functions that add up, and numbers so large that float32 loses what is added to them.
_SUMS = re.compile(r"_*[ir]?(add|sub)(mm|bmm)?_*")
_LARGE = 1e8
# Names of functions that change their first argument.
_IN_PLACE = re.compile(r"[^_].*[^_]_|__i.*__|__setitem__")
# Functions by which nn.LSTM, nn.GRU and nn.RNN compute all of their layers at once.
_RECURRENT = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))


class _Recorder(TorchFunctionMode):
    """A mode that keeps what every function of torch returns.

    settled: dropout hands on its input, zeros stand for random numbers, and what would be in half
    precision stays in ``dtype``. float32 always becomes float64 where that is ``dtype``.
    """

    def __init__(self, sources: Sources, dtype: torch.dtype, *, settled: bool) -> None:
        super().__init__()
        self.sources, self.dtype, self.settled = sources, dtype, settled
        self.drawn: list[Drawn] = []
        self.kept: list[tuple[int, Array]] = []
        self.later: list[tuple[Tensor, int]] = []
        self.known: set[tuple[Any, ...]] = set()
        self.room = _ROOM

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = bool(_IN_PLACE.fullmatch(name))
        widens = self.dtype is torch.float64 and not in_place
        given = list(_tensors((args, kwargs)))
        if widens:
            args, kwargs = fx.node.map_aggregate((tuple(args), kwargs or {}), _widen)
        run = partial(self._layer_by_layer, func) if name in _RECURRENT else func
        result = run(*args, **(kwargs or {}))
        if name in DROPOUTS or name in _DRAWN:
            result = self._settle(name, result, (*args, *(kwargs or {}).values()))
        elif isinstance(result, Tensor) and result.dtype in HALVES:
            self.drawn.append(Drawn(HALVES[result.dtype]))
            result = self._before_rounding(result, args) if self.settled else result
        elif widens and isinstance(result, Tensor) and result.dtype is torch.float32:
            result = self._before_rounding(result, args)
        if self.dtype is torch.float64 and _SUMS.fullmatch(name) and isinstance(result, Tensor):
            result = self._as_in_float32(result, in_place=not widens)
        found = [*_tensors(result), *given[:in_place]]
        self.sources.note(name, given, found)
        for tensor in _tensors(result):
            self.keep(tensor)
        return result

    def _as_in_float32(self, result: Tensor, *, in_place: bool) -> Tensor:
        """Round large sums as in the port's own precision, as of -1e9 and a score that is masked.

        Keras' softmax gives each of them the same share where all are masked.
        """
        if result.dtype is not self.dtype or not (large := result.abs() > _LARGE).any():
            return result
        rounded = torch.where(large, result.float().double(), result)
        return result.copy_(rounded) if in_place else rounded

    def _settle(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        """Note a function that drew random numbers; return what stands for its result."""
        tensors = list(_tensors(arguments))
        if name in DROPOUTS and any(result is x or torch.equal(result, x) for x in tensors):
            return result  # it is not active
        self.drawn.append(Drawn(name, tuple(map(_to_array, tensors))))
        if not self.settled:
            return result
        if name in DROPOUTS:
            return tensors[0]
        return result.zero_() if name.endswith("_") else torch.zeros_like(result)

    def _before_rounding(self, result: Tensor, arguments: Sequence[Any]) -> Tensor:
        """Return what a function rounded, its first argument, or else its result, in ``dtype``."""
        source = arguments[0] if arguments and isinstance(arguments[0], Tensor) else result
        same = source.dtype == self.dtype and source.shape == result.shape
        return source if same else result.to(self.dtype)

    def _layer_by_layer(self, func: Any, *args: Any) -> tuple[Tensor, ...]:
        """Run layers that torch computes at once one after another; keep each, and its halves."""
        at = next(place for place, one in enumerate(args) if isinstance(one, list))
        x, *sizes = args[: at - 1]
        start, weights, has_bias, count, dropout, training, both, *rest = args[at - 1 :]
        ways, own = 1 + both, len(weights) // count
        ends: list[Sequence[Tensor]] = []
        for number in range(count):
            part = slice(number * ways, (number + 1) * ways)
            states = map_structure(lambda state, part=part: state[part], start)
            some = weights[number * own : (number + 1) * own]
            before, options = x, (has_bias, 1, dropout, training, both)
            x, *states = func(x, *sizes, states, some, *options, *rest)
            ends.append(states)
            rows = [x]
            if sizes:  # packed
                padded, lengths = pad_packed_sequence(PackedSequence(x, *sizes), batch_first=True)
                rows = [padded, *(row[:size] for row, size in zip(padded, lengths, strict=True))]
            rows += [half for row in rows for half in row.chunk(ways, dim=-1)]
            self.sources.note("", [before, *rows], [x, *states])
            for tensor in (*rows, *chain(*states)):
                self.keep(tensor)
        joined = [*map(torch.cat, zip(*ends, strict=True))]
        self.sources.note("", chain(*ends), joined)
        return x, *joined

    def keep(self, tensor: Tensor) -> None:
        """Keep the values of a tensor now; look again at the end if it may be changed in place."""
        if tensor.is_sparse or tensor.dtype.is_complex or not tensor.numel():
            return
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), _version_of(tensor))
        if key in self.known or tensor.numel() * 8 > self.room:
            return
        self.known.add(key)
        self.room -= tensor.numel() * 8
        self.kept.append((memory_of(tensor), with_marked_nan(_to_array(tensor))))
        self.later.append((tensor, _version_of(tensor)))  # also keeps its memory its own

    def finish(self, outputs: Iterator[Tensor]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Return what the outputs were computed from, and what they were not.

        Of what was filled the last values, too.
        """
        for tensor, version in self.later:
            if _version_of(tensor) != version:
                self.kept.append((memory_of(tensor), with_marked_nan(_to_array(tensor))))
        self.sources.end_at(outputs)
        used = self.sources.used()
        found: tuple[list[Array], list[Array]] = [], []
        for memory, seen in self.kept:
            found[used is not None and memory not in used].append(seen)
        return tuple(found[0]), tuple(found[1])


def _widen(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype is torch.float32
    return value.double() if is_narrow else value


def _to_array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().to("cpu", torch.float64, copy=True).numpy()
    return values


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from _tensors(value)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let tensors that the port makes itself have the precision of its weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def observe(
    port: nn.Module,
    arguments: Sequence[Array],
    dtype: torch.dtype,
    tolerance: float,
    *,
    settled: bool = True,
) -> PortRun:
    """Run the port once on these inputs (floats in ``dtype``, ids as int64).

    settled: nothing is random: dropout hands on its input, zeros stand for random numbers; nothing
    is in half precision.

    Raises:
        any of FAILURES: the port does.
    """
    given = [_to_tensor(x, dtype) for x in arguments]
    constants = _tensors([(m._parameters, m._buffers, vars(m)) for m in port.modules()])
    recorder = _Recorder(Sources(given, constants), dtype, settled=settled)
    with torch.no_grad(), _default_dtype(dtype):
        for tensor in given:
            recorder.keep(tensor)
        with recorder:
            result = port(*given)
        outputs = tuple(map(_to_array, _tensors(result)))
        seen, unused = recorder.finish(_tensors(result))
        return PortRun(outputs, seen, tolerance, tuple(recorder.drawn), unused)


def _to_tensor(x: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor if tensor.dtype == torch.bool else tensor.long()
