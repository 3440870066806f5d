"""Run a port and note every tensor that it computes, with the module in which it was computed.

All of them are kept: a port may do in one line what Keras does in a layer, and only the values
tell which tensor is which layer's output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
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
class Seen:
    """A tensor that the port computed: its values, and the path of the module that did."""

    values: Array
    module: str


@dataclass(frozen=True)
class Drawn:
    """A function that draws random numbers, or a half precision, and the module in which it is.

    ``given``: what the function was given: of a dropout, what it leaves values out of.
    """

    name: str
    module: str
    given: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class PortRun:
    """One run of a port: its outputs, and every tensor on the way to them.

    Tensors that the outputs do not depend on are left out: a port may compute what it does not use.
    ``tolerance``: how far values may be from the reference's in this precision. ``drawn``: the
    functions that drew random numbers, and the half precisions that were used.
    """

    outputs: tuple[Array, ...]
    seen: tuple[Seen, ...]
    tolerance: float
    drawn: tuple[Drawn, ...] = ()

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
        found = (
            _find_equal(one.values, kept, valid, self.tolerance)
            for one in reversed(self._with_largest_of(kept))
        )
        return next((one for one in found if one is not None), None)

    def nearest(self, values: Array) -> Array | None:
        """Return the computed tensor of this size that is nearest, in the axes of ``values``."""
        found: list[tuple[float, Array]] = []
        for one in self._of_size(values.size):
            for axes, back in _orders_of(values.ndim):
                there = one.values.reshape([values.shape[axis] for axis in axes]).transpose(back)
                found.append((float(np.mean(np.abs(there - values) <= self.tolerance)), there))
        if not found:
            return None
        _, best = max(found, key=lambda one: one[0])
        return np.where(best == _NAN, np.nan, best)

    def _of_size(self, size: int) -> Sequence[Seen]:
        return self._by_size.get(size, ())

    def _with_largest_of(self, kept: Array) -> list[Seen]:
        """Return the tensors of this size that have the largest of these values anywhere."""
        some = self._of_size(kept.size)
        if not some:
            return []
        if kept.size not in self._flat:
            self._flat[kept.size] = np.stack([one.values.reshape(-1) for one in some])
        largest = kept.flat[np.abs(kept).argmax()]
        near = np.abs(self._flat[kept.size] - largest) <= _limit(kept, self.tolerance)
        return [one for one, found in zip(some, near.any(axis=1), strict=True) if found]

    @cached_property
    def _by_size(self) -> Mapping[int, Sequence[Seen]]:
        found: dict[int, list[Seen]] = {}
        for one in self.seen:
            found.setdefault(one.values.size, []).append(one)
        return found

    @cached_property
    def _flat(self) -> dict[int, Array]:
        """All tensors of a size as rows of one array, as far as they were asked for."""
        return {}


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


def _limit(values: Array, tolerance: float) -> float:
    return tolerance * (1 + float(np.abs(values).max(initial=0.0)))


def _find_equal(there: Array, kept: Array, valid: Array | None, tolerance: float) -> Array | None:
    """Return a tensor in the order of axes in which it has these values; None if in none."""
    masked = valid is not None and kept.shape[:2] == valid.shape
    flat = there.reshape(-1)
    limit = _limit(kept, tolerance)
    if not masked:
        if abs(float(flat.sum()) - float(kept.sum())) > limit * (kept.size + 1):
            return None
    # The largest value tells most orders of axes from the right one; of zeros it may not count.
    place = np.unravel_index(np.abs(kept).argmax(), kept.shape) if kept.any() else None
    for axes, back in _orders_of(kept.ndim):
        moved = flat.reshape([kept.shape[axis] for axis in axes]).transpose(back)
        if place is not None and not abs(moved[place] - kept[place]) <= limit:
            continue
        counted = keep_valid(moved, valid) if masked else moved
        if np.abs(counted - kept).max(initial=0.0) <= limit:
            return moved
    return None


@cache
def _orders_of(count: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Return every order of so many axes, and the order that undoes it."""
    return tuple(
        (axes, tuple(axes.index(axis) for axis in range(count)))
        for axes in permutations(range(count))
    )


# Functions that add up, and numbers so large that float32 loses what is added to them.
_SUMS = re.compile(r"_*[ir]?(add|sub)(mm|bmm)?_*")
_LARGE = 1e8
# Names of functions that change their first argument.
_IN_PLACE = re.compile(r"[^_].*[^_]_|__i.*__|__setitem__")


class _Recorder(TorchFunctionMode):
    """A mode that keeps what every function of torch returns.

    settled: dropout hands on its input, zeros stand for random numbers, and what would be in half
    precision stays in ``dtype``. float32 always becomes float64 where that is ``dtype``.
    """

    def __init__(
        self, places: list[str], sources: Sources, dtype: torch.dtype, *, settled: bool
    ) -> None:
        super().__init__()
        self.places, self.dtype = places, dtype
        self.settled = settled
        self.sources = sources
        self.aside = False
        self.drawn: list[Drawn] = []
        self.kept: list[tuple[int, Seen]] = []
        self.later: list[tuple[Tensor, int, str]] = []
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
        result = func(*args, **(kwargs or {}))
        if name in DROPOUTS or name in _DRAWN:
            result = self._settle(name, result, (*args, *(kwargs or {}).values()))
        elif isinstance(result, Tensor) and result.dtype in HALVES:
            result = self._in_precision(result, args)
        elif widens and isinstance(result, Tensor) and result.dtype is torch.float32:
            result = self._before_rounding(result, args)
        if self.dtype is torch.float64 and _SUMS.fullmatch(name) and isinstance(result, Tensor):
            result = self._as_in_float32(result, in_place=not widens)
        found = [*_tensors(result), *given[:in_place]]
        self.sources.note(name, given, found)
        if self.aside:
            self.sources.end_at(found)
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
        if name in DROPOUTS and any(result is one or _are_equal(result, one) for one in arguments):
            return result  # it is not active
        module = self.places[-1] if self.places else ""
        given = [Seen(_to_array(one), module) for one in _tensors(arguments)]
        self.drawn.append(Drawn(name, module, tuple(given)))
        if not self.settled:
            return result
        if name in DROPOUTS:
            return next(one for one in arguments if isinstance(one, Tensor))
        return result.zero_() if name.endswith("_") else torch.zeros_like(result)

    def _in_precision(self, result: Tensor, arguments: Sequence[Any]) -> Tensor:
        """Note a result in half precision; return what stands for it: what was rounded to it."""
        self.drawn.append(Drawn(HALVES[result.dtype], self.places[-1] if self.places else ""))
        if not self.settled:
            return result
        return self._before_rounding(result, arguments)

    def _before_rounding(self, result: Tensor, arguments: Sequence[Any]) -> Tensor:
        """Return what a function rounded, its first argument, or else its result, in ``dtype``."""
        source = arguments[0] if arguments and isinstance(arguments[0], Tensor) else result
        same = source.dtype == self.dtype and source.shape == result.shape
        return source if same else result.to(self.dtype)

    def keep(self, tensor: Tensor) -> None:
        """Keep the values of a tensor now; look again at the end if it may be changed in place."""
        if tensor.is_sparse or tensor.dtype.is_complex or not tensor.numel():
            return
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), _version_of(tensor))
        if key in self.known or tensor.numel() * 8 > self.room:
            return
        self.known.add(key)
        self.room -= tensor.numel() * 8
        place = self.places[-1] if self.places else ""
        self.kept.append((memory_of(tensor), Seen(with_marked_nan(_to_array(tensor)), place)))
        self.later.append((tensor, _version_of(tensor), place))  # also keeps its memory its own

    def finish(self, outputs: Iterator[Tensor]) -> list[Seen]:
        """Return what the outputs were computed from, and the last values of what was filled."""
        for tensor, version, place in self.later:
            if _version_of(tensor) != version:
                values = with_marked_nan(_to_array(tensor))
                self.kept.append((memory_of(tensor), Seen(values, place)))
        self.sources.end_at(outputs)
        used = self.sources.used()
        self.later.clear()
        return [seen for memory, seen in self.kept if used is None or memory in used]


def _constants(port: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a port keeps: as parameters, as buffers, or in attributes."""
    for module in port.modules():
        yield from _tensors((module._parameters, module._buffers, vars(module)))


def _widen(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype is torch.float32
    return value.double() if is_narrow else value


def _are_equal(first: Any, second: Any) -> bool:
    return isinstance(first, Tensor) and isinstance(second, Tensor) and torch.equal(first, second)


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
def _naming_modules(port: nn.Module, places: list[str]) -> Iterator[None]:
    """Keep the path of the module that runs at the end of ``places``."""

    def entering(path: str) -> Any:
        return lambda *_: places.append(path)

    def leaving(*_: Any) -> None:
        places.pop()

    with ExitStack() as hooks:
        for path, module in port.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # it takes no such hooks
                hooks.enter_context(module.register_forward_pre_hook(entering(path)))
                hooks.enter_context(module.register_forward_hook(leaving))
        yield


@contextmanager
def _layer_by_layer(port: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Let what a module of several recurrent layers computes in between be seen, too."""

    def run(module: nn.RNNBase, args: tuple[Any, ...], _: Any) -> None:
        recorder.aside = True
        _run_layers(module, args)
        recorder.aside = False

    def split(module: nn.RNNBase, _: Any, result: tuple[Any, ...]) -> None:
        output, states = result[0], [part for one in _tensors(result[1]) for part in one[-2:]]
        if isinstance(output, nn.utils.rnn.PackedSequence):
            recorder.aside = True
            output, _ = nn.utils.rnn.pad_packed_sequence(output, module.batch_first)
            recorder.aside = False
        for part in (*output.chunk(2, dim=-1), *states):
            recorder.keep(part)

    with ExitStack() as hooks:
        for module in port.modules():
            if isinstance(module, nn.RNNBase) and module.num_layers > 1:
                hooks.enter_context(module.register_forward_hook(run))
            if isinstance(module, nn.RNNBase) and module.bidirectional:
                hooks.enter_context(module.register_forward_hook(split))
        yield


def _run_layers(module: nn.RNNBase, args: tuple[Any, ...]) -> None:
    """Run all layers but the last, one by one, on what the module was given."""
    x = args[0]
    states = args[1] if len(args) > 1 else None
    ways = 2 if module.bidirectional else 1
    for number in range(module.num_layers - 1):
        own = slice(number * ways, (number + 1) * ways)
        layer = _make_layer(module, module.all_weights[own])
        start = map_structure(lambda s, own=own: s[own], states) if states is not None else None
        x, _ = layer(x, start)
        if isinstance(x, nn.utils.rnn.PackedSequence):
            nn.utils.rnn.pad_packed_sequence(x, module.batch_first)


def _make_layer(module: nn.RNNBase, weights: Sequence[Sequence[Tensor]]) -> nn.RNNBase:
    """Make a module of one layer with these weights of another one, of each direction."""
    kind: Any = type(module)
    layer: nn.RNNBase = kind(
        weights[0][0].shape[1],
        module.hidden_size,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        **({"nonlinearity": module.nonlinearity} if module.mode.startswith("RNN") else {}),
    ).to(weights[0][0].dtype)
    for parameter, values in zip(layer.parameters(), chain(*weights), strict=True):
        parameter.data = values.data
    return layer


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
    places: list[str] = []
    given = [_to_tensor(x, dtype) for x in arguments]
    recorder = _Recorder(places, Sources(given, _constants(port)), dtype, settled=settled)
    with (
        torch.no_grad(),
        _default_dtype(dtype),
        _naming_modules(port, places),
        _layer_by_layer(port, recorder),
    ):
        for tensor in given:
            recorder.keep(tensor)
        with recorder:
            result = port(*given)
        outputs = tuple(_to_array(tensor) for tensor in _tensors(result))
        seen = tuple(recorder.finish(_tensors(result)))
        return PortRun(outputs, seen, tolerance, tuple(recorder.drawn))


def _to_tensor(x: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor if tensor.dtype == torch.bool else tensor.long()
