"""The kernel's reduced precisions: their names, and this processor's instructions for them.

No torch. bfloat16: weights, inputs and states have 8 bits of significand in a product, sums are
float32. int8: weights are integers with one scale for each output channel, inputs and states with
one for each row; sums are exact. Cells, states, biases and outputs are float32 in both. All
instruction sets give the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from keras2torch_birnn.errors import ArgumentValueError, printable
from keras2torch_birnn.rnn.native.codes import PRECISIONS, REDUCED, ReducedPrecision
from keras2torch_birnn.rnn.native.library import library


class ReducedKernel(NamedTuple):
    """An instruction set for one precision: its name and the kernel's bit.

    fast: whether the processor has instructions for this precision. Without them the numbers are
    the same, but float32 is faster.
    """

    name: str
    bit: int

    @property
    def fast(self) -> bool:
        """True if the processor has instructions for this precision."""
        return self.name not in ("AVX2", "plain")


def check_precision(name: str) -> ReducedPrecision | None:
    """Return the reduced precision of this name, None for "float32".

    Raises:
        ArgumentValueError: there is no such precision.
    """
    for known in REDUCED:
        if name == known:
            return known
    if name != "float32":
        allowed = ", ".join(PRECISIONS)
        raise ArgumentValueError(f"precision={printable(name)}: one of {allowed} is expected")
    return None


@cache
def reduced_kernel(precision: ReducedPrecision) -> ReducedKernel:
    """Return the best instruction set of this processor for a precision.

    Raises:
        NoKernelError: there is no library.
    """
    have = library().k2t_instruction_sets()
    found = REDUCED[precision].items()
    return next(ReducedKernel(name, bit) for name, bit in found if have & bit)
