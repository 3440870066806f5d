"""Programs: operations that run in one call of the native library. No gradient.

``program.h`` describes the words of each operation; whoever emits them checks sizes.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.library import (
    LAYER,
    PROGRAM,
    NativeCell,
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

    cell: NativeCell
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


class PreparedCalls:
    """Calls that a module prepares. Copied and pickled as None: a copy prepares its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class _Described(NamedTuple):
    """Addresses of each layer's ``K2tLayer``, with weights to compare or without; their memory."""

    compared: Sequence[int]
    unchecked: Sequence[int]
    alive: Sequence[Any]


class PackedLayers:
    """Recurrent layers of a prepared call, with packed weights. Several threads may run them."""

    def __init__(self, isa: int) -> None:
        """Pack nothing yet. isa: the bit of an instruction set."""
        self._isa = isa
        self._described: _Described | None = None

    def run(self, find: Callable[[], Sequence[NativeLayer]], write: Callable[..., bytes]) -> int:
        """Run a program; return 0 or the code of an error.

        find: the layers, asked for where their weights are not packed. write: the ``K2tProgram``
        and what follows it, for the addresses of the layers' ``K2tLayer``.
        """
        use_torch_threads()
        run = library().k2t_run_program
        found = self._described or self._describe(find(), stale=False)
        code: int = run(self._isa, write(*found.compared))
        if code == codes.STALE:
            found = self._describe(find(), stale=True)
            # Not compared again: another thread may change them all the time.
            code = run(self._isa, write(*found.unchecked))
        return code

    def _describe(self, layers: Sequence[NativeLayer], *, stale: bool) -> _Described:
        """Pack the weights. stale: the kernel found that some have changed."""
        packed = [
            cached_pack(one.cell.kind, one.parameters, self._isa, stale=stale) for one in layers
        ]
        fields = b"".join(
            LAYER.pack(
                address,
                *one.cell.codes[1:],
                *one.cell.options,
                codes.merge_code(one.merge),
                one.from_end,
            )
            for weights, one in zip(packed, layers, strict=True)
            for address in (weights.address, weights.unchecked)
        )
        memory = ctypes.create_string_buffer(fields, len(fields))
        first, end = ctypes.addressof(memory), ctypes.addressof(memory) + len(fields)
        places = (*range(first, end, LAYER.size),)
        self._described = found = _Described(places[::2], places[1::2], (memory, packed))
        return found


class Program:
    """Words of a program, with its layers. Several threads may run it."""

    def __init__(self, writer: Writer) -> None:
        self._writer, self._words = writer, array("q", writer.words)
        for number, position in enumerate(writer.positions, 1 + writer.argument_count):
            self._words[position] = number
        self._layers, self._find_layers = PackedLayers(instruction_set()), writer.layers.copy
        words = (self._words.buffer_info()[0], len(self._words))
        self._head = (*words, writer.floats + BEHIND)
        self._write = struct.Struct(
            f"{PROGRAM.format}{writer.argument_count + len(writer.layers)}Q"
        ).pack

    def run(self, addresses: Sequence[int]) -> bool:
        """Run; return whether it computed the outputs, which some values leave to torch.

        addresses: of all inputs and outputs.

        Raises:
            MemoryError: no workspace.
        """
        write = partial(self._write, *self._head, torch.get_num_threads(), *addresses)
        code = self._layers.run(self._find_layers, write)
        if code == codes.BY_TORCH:
            return False
        check_code(code)
        return True
