"""Consecutive layers in one call of the native kernel, prepared once for many calls. No gradient.

B batch, T time, F features, H units, D directions.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.rnn.call import State
from keras2torch_birnn.rnn.change_signals import KnownTensors
from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.codes import ReducedPrecision, merge_code
from keras2torch_birnn.rnn.native.library import PROGRAM, check_code, instruction_set
from keras2torch_birnn.rnn.native.op import (
    can_run,
    order_states,
    reduced_instruction_set,
    to_int64,
)
from keras2torch_birnn.rnn.native.packing import empty_floats, weight_sizes
from keras2torch_birnn.rnn.native.program import BEHIND, NativeLayer, PackedLayers, align

# ``K2tRecurrentWords`` behind its code and the number of its words.
_WORDS = 21
_RECURRENT = codes.OPERATIONS["recurrent"]

# Addresses of memory (D, B, H) for a layer's final states: h, and an LSTM's c, or 0.
FinalStates: TypeAlias = tuple[int, int]


class PreparedStack:
    """Options and packed weights of consecutive layers, which run as one program.

    features, units, directions: F of the first layer, H and D of each. precision: None for float32.
    """

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        fetched: Sequence[Tensor],
        precision: ReducedPrecision | None,
    ) -> None:
        self.precision = precision
        self.features = weight_sizes(layers[0].parameters)[0]
        self.units = tuple(weight_sizes(one.parameters)[1] for one in layers)
        self.directions = tuple(len(one.parameters) // 4 for one in layers)
        self._widths = [width_of(one.parameters, one.merge) for one in layers]
        leading = self._widths[:-1]
        # Seen from the last layer, which writes the result, the layers write in turn to a first and
        # to a second place; the result's memory is the second where it is wide enough.
        self._first, self._second = max(leading[::-2], default=0), max(leading[-2::-2], default=0)
        self._turns = [number % 2 for number in range(len(leading) + 1, 1, -1)]
        sizes = zip(layers, self.units, self.directions, strict=True)
        self._states = max(one.cell.states * units * count for one, units, count in sizes)
        self._known = KnownTensors(fetched)
        self._count = len(layers) * (2 + _WORDS)
        self._writers = {
            (starts, ends): struct.Struct(PROGRAM.format + len(layers) * _words(starts, ends)).pack
            for starts in (False, True)
            for ends in (False, True)
        }
        self._isa = reduced_instruction_set(precision) if precision else instruction_set()
        # By the merge of the last layer. They go with the memory that they were made of.
        self._packed = packed = dict[str | None, PackedLayers]()
        storages = [p.untyped_storage() for p in fetched]
        self._watches = [weakref.ref(one, lambda _: packed.clear()) for one in storages]

    def holds(self, fetched: Sequence[Tensor], precision: ReducedPrecision | None) -> bool:
        """Return whether the weights of these parameters are held, in the order of the first time.

        In this precision. The kernel compares the values.
        """
        return precision == self.precision and self._known.match(fetched)

    def run(
        self,
        layers: Callable[[], Sequence[NativeLayer]],
        x: Tensor,
        lengths: Tensor | None,
        merge: str | None,
        initial: Sequence[Sequence[State]] | None = None,
        final: Sequence[FinalStates] | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Tensor, ...]:
        """Return the last layer's outputs, merged or one for each direction, (B, T, H).

        layers: those that were prepared, asked for where their values have changed. x: (B, T, F).
        lengths: (B,), the number of valid steps of each row; None where a layer reads from the end.
        merge: of the last layer. initial: for each layer the states of each direction. final: the
        memory for each layer's final states. sequences: if False, only these are computed.

        Raises:
            MemoryError: no scratch memory. ValueError: a length does not fit.
        """
        batch, time, _ = x.shape
        directions, merged = self.directions[-1], merge_code(merge)
        width = self.units[-1] * (1 if merged else directions)
        out = empty_floats(batch, time, width) if sequences else None
        self._execute(layers, x, lengths, merge, out, (batch, time), initial, final)
        if out is None:
            return ()
        return (out,) if merge or directions == 1 else tuple(out.chunk(directions, dim=2))

    def run_to_last_step(
        self, layers: Callable[[], Sequence[NativeLayer]], x: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the last layer's h of each direction, (B, H), after the last step that it reads.

        layers, x, lengths: as in ``run``. States are zero at first.

        Raises:
            MemoryError: no scratch memory. ValueError: a length does not fit.
        """
        (rows, time, _), units, directions = x.shape, self.units[-1], self.directions[-1]
        ends = x.new_empty((rows, units) if directions == 1 else (directions, rows, units))
        final = [*[(0, 0)] * len(self._turns), (ends.data_ptr(), 0)]
        self._execute(layers, x, lengths, None, None, (rows, time), None, final)
        return (ends,) if directions == 1 else ends.unbind(0)

    def _execute(
        self,
        layers: Callable[[], Sequence[NativeLayer]],
        x: Tensor,
        lengths: Tensor | None,
        merge: str | None,
        out: Tensor | None,
        sizes: tuple[int, int],
        initial: Sequence[Sequence[State]] | None,
        final: Sequence[FinalStates] | None,
    ) -> None:
        """Call the kernel. out: None where only final states are wanted; sizes: B, T."""
        batch, time = sizes
        batch_stride, time_stride, stride = x.stride()
        if stride != 1:
            x = x.contiguous()
            batch_stride, time_stride, _ = x.stride()
        if lengths is not None:
            lengths = to_int64(lengths)
        # Of the states at first; they are there until the kernel has run.
        starts, alive = ((), ()) if initial is None else _find_starts(initial)
        last, ends = 0 if out is None else out.data_ptr(), 0
        outs: Sequence[int] = (last,)
        if self._turns:
            second = ends = align(self._first * batch * time)
            places = [~0, last]
            if out is None or self._second > out.shape[2]:
                places[1], ends = ~second, second + align(self._second * batch * time)
            outs = (*map(places.__getitem__, self._turns), last)
        floats = ends + BEHIND + (0 if final is None else self._states * batch)
        count, threads = 0 if lengths is None else lengths.data_ptr(), torch.get_num_threads()
        pack = self._writers[initial is not None, final is not None]
        read = x.data_ptr(), batch_stride, time_stride

        def write(*addresses: int) -> bytes:
            before, numbers = read, [0, self._count, floats, threads]
            for i, address in enumerate(addresses):
                to, width = outs[i], self._widths[i]
                numbers += (_RECURRENT, _WORDS, address, batch, time, *before, count)
                numbers += (*starts[i], to) if starts else (to,)
                if final is not None:
                    h, c = final[i]
                    numbers += (~ends if h or c else 0, h, c)
                before = to, time * width, width
            return pack(*numbers)

        packed = self._packed.get(merge)
        if packed is None:
            packed = self._packed[merge] = PackedLayers(self._isa)
        find = partial(_with_merge, layers, merge)
        check_code(packed.run(find, write))
        del alive


def _words(starts: bool, ends: bool) -> str:
    """Return the format of a layer's words; those of states may be zeros, as those of masks are."""
    return f"8q 8x q 16x {'4q' if starts else '32x'} q 8x {'3q' if ends else '24x'} 16x"


def _with_merge(
    find: Callable[[], Sequence[NativeLayer]], merge: str | None
) -> Sequence[NativeLayer]:
    """Return layers, the last one with another merge."""
    *leading, last = find()
    return [*leading, last._replace(merge=merge)]


def can_read(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Return whether the kernel can read an input (B, T, F), not empty, and other tensors."""
    return type(x) is Tensor and x.dim() == 3 and 0 not in x.shape and can_run((x, *others))


def prepare(
    layers: Sequence[NativeLayer],
    fetched: Sequence[Tensor],
    precision: ReducedPrecision | None = None,
) -> PreparedStack | None:
    """Prepare layers; None if the kernel cannot read their parameters, or they do not fit together.

    fetched: their parameters in the order in which ``PreparedStack.holds`` gets them. precision: a
    reduced one that the kernel has for all of them, None for float32.
    """
    if not can_run(fetched) or not all(map(Tensor.is_contiguous, fetched)):
        return None
    for one, following in pairwise(layers):
        if width_of(one.parameters, one.merge) != weight_sizes(following.parameters)[0]:
            return None
    return PreparedStack(layers, fetched, precision)


def width_of(parameters: Sequence[Tensor | None], merge: str | None) -> int:
    """Return the size of a layer's output."""
    return weight_sizes(parameters)[1] * (1 if merge_code(merge) else len(parameters) // 4)


def _find_starts(
    initial: Sequence[Sequence[State]],
) -> tuple[Sequence[Sequence[int]], Sequence[Tensor]]:
    """Return the addresses of each layer's h of both directions, then of c; and their memory."""
    alive: list[Tensor] = []
    starts: list[list[int]] = []
    for before in initial:
        own = [s.contiguous() for state in before for s in state]
        starts.append(order_states([*map(Tensor.data_ptr, own)], len(before[0]) if before else 0))
        alive += own
    return starts, alive
