"""The kernel's reduced precisions: their names, and this processor's instructions for them.

No torch. bfloat16: weights, inputs and states have 8 bits of significand in a product, sums are
float32. int8: weights are integers with one scale for each output channel, inputs and states with
one for each row; sums are exact. Cells, states, biases and outputs are float32 in both. All
instruction sets give the same bits, but AMX in bfloat16 those of its own order of sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from keras2torch_birnn.errors import ArgumentValueError, printable
from keras2torch_birnn.rnn.native.codes import PRECISIONS, REDUCED, ReducedPrecision
from keras2torch_birnn.rnn.native.measuring import (
    TYPICAL,
    Size,
    time_kernels,
    time_ratio,
    usable_sets,
)


class ReducedKernel(NamedTuple):
    """An instruction set for one precision: its name and the kernel's bit."""

    name: str
    bit: int

    def describe(self, precision: ReducedPrecision, size: Size = TYPICAL) -> str:
        """Return the instruction set and what was measured of it."""
        ratio = time_ratio(precision, self.name, size)
        what = f"{size.kind}, {size.batch} x {size.features} x {size.units}"
        slow, whose = ("", "float32's") if ratio <= SLOWER else ("slower than float32: ", "its")
        return f"{self.name}, {slow}measured {ratio:.2f} of {whose} time ({what})"


# Of float32's time: what a measurement may be off.
SLOWER = 1.05
# AMX adds bfloat16 in an order of its own: how much faster it must be to be taken, so that noise
# does not give a process other numbers than the last one.
_CLEARLY = 1.5


def check_precision(name: str) -> ReducedPrecision | None:
    """Return the reduced precision of this name, None for "float32".

    Raises:
        ArgumentValueError: there is no such precision.
    """
    for known in REDUCED:
        if name == known:
            return known
    if name != "float32":
        from keras2torch_birnn.suggestions import unknown_value

        raise unknown_value(f"precision={printable(name)}", PRECISIONS, name, ArgumentValueError)
    return None


@cache
def reduced_kernel(precision: ReducedPrecision) -> ReducedKernel:
    """Return the instruction set of this processor that was measured the fastest for a precision.

    Raises:
        NoKernelError: there is no library.
    """
    sets = usable_sets(precision)
    if len(sets) == 1:
        return ReducedKernel(*next(iter(sets.items())))
    return choose(sets, time_kernels(precision, TYPICAL), precision)


def choose(
    sets: Mapping[str, int], seconds: Mapping[str, float], precision: ReducedPrecision
) -> ReducedKernel:
    """Return the fastest instruction set; one with numbers of its own must be clearly faster."""
    handicap = {"AMX": _CLEARLY} if precision == "bfloat16" else {}
    name = min(sets, key=lambda one: seconds[one] * handicap.get(one, 1.0))
    return ReducedKernel(name, sets[name])
