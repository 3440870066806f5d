"""Programs: operations that run in one call of the native library. No gradient.

``program.h`` describes the words of each operation; whoever emits them checks sizes.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.layer import Cell
from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.library import (
    LAYER,
    PROGRAM,
    check_code,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import use_torch_threads
from keras2torch_birnn.rnn.native.packing import ALIGNED, cached_pack

# By dtype.
NUMBERS: Mapping[torch.dtype, int] = {
    getattr(torch, name): code for name, code in codes.NUMBERS.items()
}

# The most inputs, outputs and recurrent layers.
ARGUMENTS_AT_MOST = 256
# Floats behind the workspace: operations read up to two vectors, of which they use a part.
BEHIND = 32


class NativeLayer(NamedTuple):
    """A recurrent layer of a program.

    parameters: four for each direction. merge: a key of ``MERGE_MODES``, None to keep the
    directions apart. from_end: it reads its input from the last step on.
    """

    cell: Cell
    parameters: Sequence[Tensor | None]
    merge: str | None = None
    from_end: bool = False


def align(floats: int) -> int:
    """Return the floats of whole cache lines that hold so many."""
    return -(-floats // ALIGNED) * ALIGNED


def to_word(number: float) -> int:
    """Return a number as a word of a program."""
    found: int = struct.unpack("q", struct.pack("d", number))[0]
    return found


@dataclass
class Writer:
    """A program that is being written.

    words: of all operations. floats: of the workspace. argument_count: of inputs and outputs.
    work: about as many multiply-adds. layers: the recurrent ones; positions: of their numbers among
    the words. numbers: constants, which operations read.
    """

    words: list[int] = field(default_factory=list)
    floats: int = 0
    argument_count: int = 0
    work: int = 0
    layers: list[NativeLayer] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)

    def reserve(self, floats: int) -> int:
        """Return the place of so many floats in the workspace, as an offset."""
        start = self.floats
        self.floats += align(max(floats, 1))
        return start

    def emit(self, operation: str, words: Iterable[int], work: int = 0) -> None:
        """Write an operation."""
        found = list(words)
        self.words += [codes.OPERATIONS[operation], len(found), *found]
        self.work += work

    def emit_layer(self, layer: NativeLayer, words: Sequence[int]) -> None:
        """Write a recurrent layer. words: those after its number."""
        self.layers.append(layer)
        self.positions.append(len(self.words) + 2)
        self.emit("recurrent", (0, *words))


class Program:
    """Words of a program, with the packed weights of its layers. Several threads may run it.

    No weight that it reads changes afterwards: none is compared.
    """

    def __init__(self, writer: Writer) -> None:
        """Pack the weights.

        Raises:
            ValueError: a weight does not fit its cell.
        """
        self._words, self._isa = array("q", writer.words), instruction_set()
        for number, position in enumerate(writer.positions, 1 + writer.argument_count):
            self._words[position] = number
        packed = [
            cached_pack(one.cell.codes[0], one.parameters, self._isa) for one in writer.layers
        ]
        fields = b"".join(
            LAYER.pack(
                weights.unchecked,
                *one.cell.codes[1:],
                *one.cell.options,
                codes.merge_code(one.merge),
                one.from_end,
            )
            for weights, one in zip(packed, writer.layers, strict=True)
        )
        memory = ctypes.create_string_buffer(fields, len(fields))
        first = ctypes.addressof(memory)
        self._layers = (*range(first, first + len(fields), LAYER.size),)
        self._alive = writer, packed, memory
        self._head = (self._words.buffer_info()[0], len(self._words), writer.floats + BEHIND)
        self._pack = struct.Struct(
            f"{PROGRAM.format}{writer.argument_count + len(writer.layers)}Q"
        ).pack

    def run(self, addresses: Sequence[int]) -> bool:
        """Run; return whether it computed the outputs, which some values leave to torch.

        addresses: of all inputs and outputs.

        Raises:
            MemoryError: no workspace.
        """
        use_torch_threads()
        words = self._pack(*self._head, torch.get_num_threads(), *addresses, *self._layers)
        code: int = library().k2t_run_program(self._isa, words)
        if code == codes.BY_TORCH:
            return False
        check_code(code)
        return True
