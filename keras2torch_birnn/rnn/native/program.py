"""Programs: the operations of a whole model in one call of the native library. No gradient.

``program.h`` describes the words of each operation; whoever emits them checks sizes.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.library import (
    PROGRAM,
    STACK_LAYER,
    check_code,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import use_torch_threads
from keras2torch_birnn.rnn.native.packing import Packed, cached_pack
from keras2torch_birnn.rnn.native.stack import StackLayer

# By dtype.
NUMBERS: Mapping[torch.dtype, int] = {
    getattr(torch, name): code for name, code in codes.NUMBERS.items()
}

# The most inputs and outputs.
GIVEN = 256
_ALIGNED = 16  # floats in a cache line
# Floats behind the workspace: operations read up to two vectors, of which they use a part.
_BEHIND = 32


def to_word(number: float) -> int:
    """Return a number as a word of a program."""
    found: int = struct.unpack("q", struct.pack("d", number))[0]
    return found


@dataclass
class Writer:
    """A program that is being written.

    words: of all operations. floats: of the workspace. given: the
    number of inputs and outputs. work: about as many multiply-adds. layers:
    the recurrent layers, with the position of each one's address among the words. numbers:
    constants, which operations read.
    """

    words: list[int] = field(default_factory=list)
    floats: int = 0
    given: int = 0
    work: int = 0
    layers: list[tuple[int, StackLayer]] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)

    def reserve(self, floats: int) -> int:
        """Return the place of so many floats in the workspace, as an offset."""
        start = self.floats
        self.floats += -(-max(floats, 1) // _ALIGNED) * _ALIGNED
        return start

    def emit(self, operation: str, words: Iterable[int], work: int = 0) -> None:
        """Write an operation."""
        found = list(words)
        self.words += [codes.OPERATIONS[operation], len(found), *found]
        self.work += work

    def emit_layer(self, layer: StackLayer, words: Sequence[int]) -> None:
        """Write a recurrent layer. words: those after its address."""
        self.layers.append((len(self.words) + 2, layer))
        self.emit("recurrent", (0, *words))


class Program:
    """Words of a program, with packed weights. Several threads may run it."""

    def __init__(self, writer: Writer, *, stale: bool = False, compared: bool = True) -> None:
        """Pack the weights.

        stale: the kernel found that some have changed. compared: whether it compares them.
        """
        self._writer, self._isa = writer, instruction_set()
        words = array("q", writer.words)
        alive: list[Any] = [words]
        for position, layer in writer.layers:
            packed = cached_pack(layer.cell.kind, layer.parameters, self._isa, stale=stale)
            described = _describe(layer, packed, compared=compared)
            words[position] = ctypes.addressof(described)
            alive += [packed, described]
        self._alive = alive
        self._head = (words.buffer_info()[0], len(words), writer.floats + _BEHIND)
        self._pack = struct.Struct(f"{PROGRAM.format}{writer.given}Q").pack

    def run(self, given: Sequence[int]) -> int:
        """Run; return 0 or the code of an error.

        given: addresses of all inputs and outputs.
        """
        use_torch_threads()
        call = self._pack(*self._head, torch.get_num_threads(), *given)
        code: int = library().k2t_run_program(self._isa, call)
        return code

    def with_new_weights(self, *, compared: bool = True) -> Program:
        """Return the same program with the weights as they are now."""
        return Program(self._writer, stale=compared, compared=compared)


def run_program(program: Program, given: Sequence[int]) -> tuple[Program, bool]:
    """Run a program; return the one for the next call, and whether it computed the outputs.

    Where it did not, a value asks for what only torch computes.

    Raises:
        MemoryError: no workspace.
    """
    code = program.run(given)
    if code == codes.STALE:
        program = program.with_new_weights()
        # Not compared again: another thread may change them all the time.
        code = program.with_new_weights(compared=False).run(given)
    if code == codes.BY_TORCH:
        return program, False
    check_code(code)
    return program, True


def _describe(layer: StackLayer, packed: Packed, *, compared: bool) -> Any:
    """Return a ``K2tStackLayer``."""
    fields = STACK_LAYER.pack(
        packed.address if compared else packed.unchecked,
        *layer.cell.codes[1:],
        *layer.cell.options,
        codes.merge_code(layer.merge),
        layer.from_end,
    )
    return ctypes.create_string_buffer(fields, len(fields))
