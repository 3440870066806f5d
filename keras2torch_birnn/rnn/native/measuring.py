"""Times of the kernels on this processor, and the check of those that an emulation stands for.

No torch. Each is measured once in a process, on random numbers, by the time of one thread: other
work of the machine does not count. B batch, T time, F features, H units.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.codes import Precision
from keras2torch_birnn.rnn.native.library import RUN, Shape, Weights, check_code, find_sets, library
from keras2torch_birnn.rnn.native.processors import INSTRUCTION_SETS
from keras2torch_birnn.spec import Array


class Size(NamedTuple):
    """A layer of one direction and its input. kind: a key of ``codes.KINDS``."""

    kind: str
    features: int
    units: int
    batch: int
    time: int = 4


# What kernels are chosen by; larger layers take as long in proportion.
TYPICAL = Size("LSTM", 128, 128, 8)
_MANY, _FEW = 128, 16

# Edges of tiles in rows, units and words, one tile and several.
_CHECKED = (Size("LSTM", 37, 19, 5), Size("GRU", 70, 33, 21), Size("GRU before", 5, 130, 40))
_ROUNDS, _FAR = 4, 2.0
# Rows times steps of a call that is timed: some kernels widen the weights once in a call.
_READS = 256


def size_class(kind: str, features: int, units: int, batch: int) -> Size:
    """Return the size whose times stand for those of a layer."""
    rows = 1 if batch < 4 else 8 if batch < 16 else 32
    return Size(kind, _power_of_two(features), _power_of_two(units), rows)


def _power_of_two(number: int) -> int:
    return min(max(1 << (number - 1).bit_length(), _FEW), _MANY)


@cache
def time_kernels(precision: Precision, size: Size) -> Mapping[str, float]:
    """Return the seconds that each instruction set of this processor takes.

    Sets that take far longer than the fastest are timed once.

    Raises:
        NoKernelError: there is no library.
    """
    timed = size._replace(time=_READS // size.batch)
    runs = {name: _prepare(bit, timed)[0] for name, bit in usable_sets(precision).items()}
    least = {name: _time(run) for name, run in runs.items()}
    for _ in range(_ROUNDS):
        near = _FAR * min(least.values())
        least = {n: min(t, _time(runs[n])) if t < near else t for n, t in least.items()}
    return least


def _time(run: Callable[[], None]) -> float:
    begun = time.thread_time()
    run()
    return time.thread_time() - begun


def time_ratio(precision: Precision, name: str, size: Size) -> float:
    """Return how much of float32's time an instruction set takes for a size."""
    return time_kernels(precision, size)[name] / min(time_kernels("float32", size).values())


@cache
def usable_sets(precision: Precision) -> Mapping[str, int]:
    """Return the instruction sets that compute a precision on this processor, and their bits.

    Code for any processor is among them only where there is no other: it is never the fastest.

    Raises:
        NoKernelError: there is no library.
    """
    emulated = {one.emulates for one in INSTRUCTION_SETS if one.emulates}
    real = {one.name: bool(one.cpuid) for one in INSTRUCTION_SETS if not one.emulates}
    found = {name: bit for name, bit in find_sets(precision).items() if name in real}
    special = {name: bit for name, bit in found.items() if real[name]} or found
    return {n: bit for n, bit in special.items() if n not in emulated or _compute_as_emulated(n)}


@cache
def _compute_as_emulated(name: str) -> bool:
    """Compare an instruction set with its emulation on small cases; warn if they differ."""
    (emulation,) = (one.name for one in INSTRUCTION_SETS if one.emulates == name)
    for precision, sets in codes.REDUCED.items():
        for size in _CHECKED:
            if not agree(sets[name], sets[emulation], size):
                warnings.warn(
                    f"{name} is not used: its {precision} numbers for {size.kind} are not those "
                    "of its definition; other instructions compute them, slower",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
    return True


def agree(bit: int, other: int, size: Size) -> bool:
    """Return whether two kernels give the same bits."""
    outputs = []
    for one in (bit, other):
        run, out = _prepare(one, size)
        run()
        outputs.append(out.tobytes())
    return outputs[0] == outputs[1]


def _prepare(bit: int, size: Size) -> tuple[Callable[[], None], Array]:
    """Return a function that runs a kernel on random numbers, and the memory of its outputs."""
    rng = np.random.default_rng(1)
    kind = codes.KINDS[size.kind]
    width = codes.GATES[kind] * size.units
    shape = Shape(kind, size.features, size.units, 0)
    sizes = ((width, size.features), (width, size.units), (width,), (width,))
    scale = np.float32(size.units**-0.5)
    arrays = [(rng.random(one, "f4") - np.float32(0.5)) * scale for one in sizes]
    x = rng.random((size.batch, size.time, size.features), "f4") - np.float32(0.5)
    out = np.zeros((size.batch, size.time, size.units), "f4")
    kernel: Any = library()
    # Packed weights start a cache line.
    packed = np.empty(kernel.k2t_packed_size(bit, ctypes.byref(shape)) + 16, "f4")
    at = (packed.ctypes.data + 63) // 64 * 64
    kernel.k2t_pack(bit, ctypes.byref(shape), *(array.ctypes.data for array in arrays), at)
    weights = Weights(shape, 1, (at, 0), (None, None), (0, 0))
    functions = codes.ACTIVATIONS["tanh"], codes.ACTIVATIONS["sigmoid"]
    numbers = (0.0, 0.0, 0, size.batch, size.time, 1)  # options, merge, sizes, threads
    strides = (size.time * size.features, size.features)
    none = (0,) * 5  # lengths and states
    call = RUN.pack(
        *(ctypes.addressof(weights), *functions, *numbers, x.ctypes.data, *strides, *none),
        *(out.ctypes.data, *(0,) * 7),
    )
    return partial(_run, bit, call, (x, out, packed, weights)), out


def _run(bit: int, call: bytes, _alive: tuple[Any, ...]) -> None:
    check_code(library().k2t_run(bit, call))
