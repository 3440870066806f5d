"""Values of a model as the native library computes them: where they are, and operations on them.

All are float32; booleans are 1 and 0, ids are whole numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.rnn.native import codes
from keras2torch_birnn.rnn.native.codes import MAPS, REDUCTIONS
from keras2torch_birnn.rnn.native.library import instruction_set, library
from keras2torch_birnn.rnn.native.packing import ALIGNED

_AXES = 6
_SHORT = 16  # numbers of one vector at most


# By dtype.
NUMBERS: Mapping[torch.dtype, int] = {
    getattr(torch, name): code for name, code in codes.NUMBERS.items()
}


def to_word(number: float) -> int:
    """Return a number as a word of a program."""
    found: int = struct.unpack("q", struct.pack("d", number))[0]
    return found


@dataclass
class Writer:
    """A program that is being written.

    words: of all operations; ``program.h`` describes them. floats: of the workspace.
    argument_count: of inputs and outputs. work: about as many multiply-adds. alive: what words are
    addresses of.
    """

    words: list[int] = field(default_factory=list)
    floats: int = 0
    argument_count: int = 0
    work: int = 0
    alive: list[Any] = field(default_factory=list)

    def reserve(self, floats: int) -> int:
        """Return the place of so many floats in the workspace, as an offset; whole cache lines."""
        start = self.floats
        self.floats += -(-max(floats, 1) // ALIGNED) * ALIGNED
        return start

    def emit(self, operation: str, words: Iterable[int], work: int = 0) -> None:
        """Write an operation."""
        found = list(words)
        self.words += [codes.OPERATIONS[operation], len(found), *found]
        self.work += work


class NotRecordedError(Exception):
    """A model has something that the library lacks."""


def only_floats(*tensors: Tensor) -> None:
    """Raise ``NotRecordedError`` unless all tensors are of float32."""
    if any(t.dtype is not torch.float32 for t in tensors):
        raise NotRecordedError("integers that are computed with")


class Value(NamedTuple):
    """Where the numbers of a tensor are.

    kind: a word of these. base: an offset in the workspace, the number of an output, no address.
    meta: a tensor with the same sizes and strides; the one at the address itself.
    """

    kind: str
    base: int
    meta: Tensor

    def operand(self) -> int:
        """Return the word of an operand."""
        if self.kind == "address":
            return self.meta.data_ptr()
        if self.kind == "output":
            return self.base
        return ~(self.base + int(self.meta.storage_offset()))


def _meta(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device="cpu")


class Values:
    """The values of the tensors of a recorded model, and the program that computes them."""

    def __init__(self) -> None:
        self.writer = Writer()
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []
        self._constants: dict[float, Value] = {}
        self.lanes = library().k2t_width(instruction_set(), 1)

    def keep(self, tensor: Tensor, value: Value) -> None:
        """Take note of the place of a tensor's numbers."""
        self._alive.append(tensor)  # its id stays its own
        self._values[id(tensor)] = value

    def value(self, tensor: Any) -> Value:
        """Return the place of a tensor's numbers."""
        found = self._values.get(id(tensor))
        if found is None:
            raise NotRecordedError("a tensor from elsewhere")
        return found

    def real(self, tensor: Tensor) -> Tensor:
        """Return the weight that a tensor without values stands for."""
        value = self.value(tensor)
        if value.kind != "address":
            raise NotRecordedError("weights that are computed")
        return value.meta

    def new(self, like: Tensor | Sequence[int]) -> Value:
        """Return a new place: of these sizes, or with the strides of this meta tensor."""
        meta = torch.empty_like(like) if isinstance(like, Tensor) else _meta(like)
        return Value("workspace", self.writer.reserve(meta.numel()), meta)

    def new_in_order(self, shape: Sequence[int], like: Tensor) -> Value:
        """Return a new place whose axes lie in memory in the order of those of a tensor."""
        order = sorted(range(like.dim()), key=lambda d: -int(like.stride()[d]))
        place = self.new([shape[d] for d in order])
        back = [order.index(d) for d in range(like.dim())]
        return place._replace(meta=place.meta.permute(back))

    def constant(self, number: float) -> Value:
        """Return the place of a number."""
        if number not in self._constants:
            memory = torch.full((), number, dtype=torch.float32, device="cpu")
            self.writer.alive.append(memory)
            self._constants[number] = Value("address", 0, memory)
        return self._constants[number]

    def read_around(self, value: Value) -> Value:
        """Return the value, copied into the workspace, where reading past its end is safe."""
        if value.kind == "workspace":
            return value
        to = self.new(value.meta)
        return self.map("copy", to, (value,))

    def dense(self, value: Value) -> Value:
        """Return the numbers in the order of the axes, copied if they are not."""
        if value.meta.is_contiguous():
            return value
        copied = self.new(value.meta.shape)
        self.map("copy", copied, (value,))
        return copied

    def read(self, number: int, x: Tensor) -> Tensor:
        """Take an input, which is dense."""
        if x.dtype not in NUMBERS:
            raise NotRecordedError(f"an input of {x.dtype}")
        numbers = self.new(x.shape)
        words = (NUMBERS[x.dtype], x.numel(), number, numbers.operand())
        self.writer.emit("read", words, x.numel())
        self.keep(x, numbers)
        return x

    def truncate(self, x: Tensor) -> Value:
        """Take the fraction from floats, which become integers."""
        value = self.dense(self.value(x))
        whole = self.new(x.shape)
        self.writer.emit("truncate", (x.numel(), value.operand(), whole.operand()), x.numel())
        return whole

    def write(self, number: int, y: Any) -> None:
        """Write an output."""
        if not isinstance(y, Tensor) or y.dtype is not torch.float32 or not y.numel():
            raise NotRecordedError("an output that is not of floats")
        self.map("copy", Value("output", number, _meta(y.shape)), (self.value(y),))

    def view(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """Let other tensors show the same numbers."""
        value = self.value(args[0])
        try:
            found = func(value.meta, *args[1:], **kwargs)
        except RuntimeError:  # such strides cannot be viewed that way
            value = self.dense(value)
            found = func(value.meta, *args[1:], **kwargs)
        several = isinstance(result, (tuple, list))
        for tensor, meta in zip(
            *((result, found) if several else ((result,), (found,))), strict=True
        ):
            self.keep(tensor, value._replace(meta=meta))

    def map(
        self, name: str, to: Value, sources: Sequence[Value], p: float = 0.0, more: int = 0
    ) -> Value:
        """Compute elementwise; operands are broadcast to the result."""
        metas = [to.meta, *(one.meta.expand(to.meta.shape) for one in sources)]
        count = to.meta.numel()
        of_each = [list(meta.stride()) for meta in metas]
        sizes, strides = _merged_axes(list(to.meta.shape), of_each)
        if len(sizes) > _AXES:
            raise NotRecordedError("too many axes")
        operands = [to, *sources]
        while len(operands) < 4:  # the library reads three
            operands.append(operands[1])
            strides.append(strides[1])
        words = [MAPS[name] + more, to_word(p), len(sizes), *sizes]
        for operand, steps in zip(operands, strides, strict=True):
            words += [operand.operand(), *steps]
        self.writer.emit("map", words, 4 * count)
        return to

    def elementwise(
        self, name: str, result: Tensor, *sources: Any, p: float = 0.0, more: int = 0
    ) -> Value:
        """Compute a tensor elementwise of tensors and numbers."""
        if not result.numel():
            raise NotRecordedError("no numbers")
        values = [
            self.value(x) if isinstance(x, Tensor) else self.constant(float(x)) for x in sources
        ]
        like = next((v.meta for v in values if v.meta.shape == result.shape), None)
        to = self.new(result.shape if like is None else like)
        return self.map(name, to, values, p, more)

    def multiply(self, a: Value, b: Value, bias: Value | None, shape: Sequence[int]) -> Value:
        """Multiply matrices (N, M, K) and (N, K, L); bias: (L,)."""
        if 1 not in a.meta.stride()[1:]:
            a = self.dense(a)
        batches, m, k = a.meta.shape
        n = b.meta.shape[2]
        if 0 in (batches, m, n, k):
            raise NotRecordedError("no numbers")
        to = self.new(shape)
        scratch = self.writer.reserve((k + m + 1) * self.lanes)
        added = (0, 0) if bias is None else (bias.operand(), bias.meta.stride(0))
        words = (
            *(batches, m, n, k, to.operand()),
            *(a.operand(), *a.meta.stride()),
            *(b.operand(), *b.meta.stride()),
            *(*added, ~scratch),
        )
        self.writer.emit("multiply", words, batches * m * n * k)
        return to

    def reduce(
        self, kind: str, x: Tensor, dims: Sequence[int], keepdim: bool, divisor: float = 1.0
    ) -> Value:
        """Reduce numbers over axes, or over all if none is named. kind: a key of ``REDUCTIONS``."""
        value = self.value(x)
        rank = value.meta.dim()
        gone = {d % rank for d in dims} if dims else set(range(rank))
        kept = [d for d in range(rank) if d not in gone]
        sizes, strides = value.meta.shape, value.meta.stride()
        if not value.meta.numel():
            raise NotRecordedError("no numbers")
        to = self.new([1 if d in gone else sizes[d] for d in range(rank)])
        words = [REDUCTIONS[kind], to_word(divisor), to.operand(), value.operand()]
        for axes in (kept, sorted(gone)):
            words += [len(axes), *(sizes[d] for d in axes), *(strides[d] for d in axes)]
        self.writer.emit("reduce", words, 4 * value.meta.numel())
        shape = [sizes[d] for d in kept]
        return to if keepdim else to._replace(meta=to.meta.reshape(shape))

    def softmax(self, x: Tensor, dim: int) -> Value:
        """Compute the softmax over an axis."""
        value = self.value(x)
        if not (value.meta.numel() and value.meta.dim()):
            raise NotRecordedError("no numbers")
        moved = self.dense(value._replace(meta=value.meta.movedim(dim, -1)))
        to = self.new(moved.meta.shape)
        n = value.meta.shape[dim]
        count = value.meta.numel()
        words = (moved.operand(), to.operand(), count // n, n)
        self.writer.emit("softmax", words, 8 * count)
        return to._replace(meta=to.meta.movedim(-1, dim))


def _merged_axes(sizes: list[int], strides: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Order axes by the strides of the first operand, and join those that are one for all."""
    order = sorted((d for d, size in enumerate(sizes) if size != 1), key=lambda d: -strides[0][d])
    joined: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d in order:
        if joined and all(
            s[-1] == one[d] * sizes[d] for s, one in zip(steps, strides, strict=True)
        ):
            joined[-1] *= sizes[d]
            for s, one in zip(steps, strides, strict=True):
                s[-1] = one[d]
        else:
            joined.append(sizes[d])
            for s, one in zip(steps, strides, strict=True):
                s.append(one[d])
    if not joined:
        return [1], [[0] for _ in strides]
    if joined[-1] < _SHORT and any(one[-1] > 1 for one in steps):
        # No line of vectors is lost; long lines take less time.
        longest = joined.index(max(joined))
        for numbers in (joined, *steps):
            numbers.append(numbers.pop(longest))
    return joined, steps
