"""A model's operations for given sizes, recorded as a program of the native library.

The model runs once under a mode that sees every operator of torch. Views become strides, recurrent
modules are one operation each, and an operator that the library lacks ends the recording: the
model then runs as before. All values are float32; booleans are 1 and 0, ids are whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from keras2torch_birnn.rnn.chain import RECURRENT_CLASSES, may_choose_kernel, pays
from keras2torch_birnn.rnn.engines.static import SEVERAL
from keras2torch_birnn.rnn.merge import merge_outputs
from keras2torch_birnn.rnn.modules import RecurrentModule
from keras2torch_birnn.rnn.native.library import ACTIVATIONS, STATES, instruction_set, library
from keras2torch_birnn.rnn.native.program import MAPS, NUMBERS, Writer, to_word
from keras2torch_birnn.rnn.native.stack import StackLayer

# Of ids and other integers, all that float32 holds exactly.
_EXACT = 1 << 24
_AXES = 6


# Rules of masked steps that the library knows; the last two are the same where states are zero at first.
_SHOWN = frozenset(("zeros", "previous_output", "previous_state"))


class NotRecordedError(Exception):
    """A model has something that the library lacks."""


class Value(NamedTuple):
    """Where the numbers of a tensor are.

    base: an offset in the workspace, or the number of an input or output; nothing for an address. meta:
    a tensor with the same sizes and strides; the one at the address itself.
    """

    kind: str
    base: int
    meta: Tensor

    def operand(self) -> int:
        """Return the word of an operand."""
        if self.kind == "address":
            return self.meta.data_ptr()
        offset = self.meta.storage_offset()
        if self.kind == "workspace":
            return ~(self.base + offset)
        if offset:
            raise NotRecordedError("a part of an input")
        return self.base


def record(
    model: nn.Module, graph: fx.Graph, inputs: Sequence[Tensor]
) -> tuple[Writer, list[torch.Size], bool]:
    """Record a model: its program, the sizes of its outputs, and whether they are a tuple.

    graph: of the model, which computes in evaluation mode.

    Raises:
        NotRecordedError: the library lacks something.
    """
    recorder = _Recorder(model)
    rest = iter(enumerate(inputs, 1))
    found: dict[fx.Node, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for node in graph.nodes:
            args = fx.node.map_arg(node.args, found.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, found.__getitem__)
            if node.op == "placeholder":
                number, x = next(rest)
                found[node] = recorder.read(number, x.clone())
            elif node.op == "output":
                (result,) = args
                outputs = result if isinstance(result, tuple) else (result,)
                for number, y in enumerate(outputs, 1 + len(inputs)):
                    recorder.write(number, y)
                recorder.writer.given = len(inputs) + len(outputs)
                sizes = [y.shape for y in outputs]
                return recorder.writer, sizes, isinstance(result, tuple)
            else:
                found[node] = _call(model, recorder, node, args, kwargs)
    raise NotRecordedError("no output")


# Code of others may do more than torch's operators show.
_OURS = ("torch", "_operator", "keras2torch_birnn")


def is_ours(function: Any) -> bool:
    """Return whether a function or a class is of torch or of this package."""
    return str(getattr(function, "__module__", "")).partition(".")[0] in _OURS


def _call(model: nn.Module, recorder: _Recorder, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) in RECURRENT_CLASSES:
            return recorder.run_layer(cast(Any, module), *args, **kwargs)
        with recorder:
            return module(*args, **kwargs)
    if node.op == "call_function":
        function = cast(Callable[..., Any], node.target)
        if not (is_ours(function) or isinstance(function, type(torch.add))):
            raise NotRecordedError("a function of others")
        with recorder:
            return function(*args, **kwargs)
    if node.op == "call_method":
        with recorder:
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    raise NotRecordedError(node.op)


def _meta(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device="cpu")


class _Recorder(TorchDispatchMode):
    """Mode that writes a program of the operators that it sees."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: the other way imports all of torch's compiler, which takes a second."""
        return False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.writer = Writer()
        self._values: dict[int, Value] = {}
        self._alive: list[Tensor] = []
        self._constants: dict[float, Value] = {}
        self._sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._lanes = library().k2t_width(instruction_set(), 1)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype is torch.float32 and tensor.is_cpu:
                self._keep(tensor, Value("address", 0, tensor.detach()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator, and write it."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            raise NotRecordedError(str(func))
        result = func(*args, **kwargs)
        if func in _VIEWS:
            self._view(func, args, kwargs, result)
            return result
        if func is _aten.empty.memory_format:  # which no other operator may read
            return result
        lower = _LOWERED.get(func)
        if lower is None:
            raise NotRecordedError(str(func))
        value = lower(self, result, *args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        if value.meta.shape != first.shape:
            raise NotRecordedError(f"{func}: the sizes differ")
        self._keep(first, value)
        return result

    # ---- values -----------------------------------------------------------------------------------

    def _keep(self, tensor: Tensor, value: Value) -> None:
        self._alive.append(tensor)  # its id stays its own
        self._values[id(tensor)] = value

    def value(self, tensor: Any) -> Value:
        """Return the place of a tensor's numbers."""
        found = self._values.get(id(tensor))
        if found is None:
            raise NotRecordedError("a tensor from elsewhere")
        return found

    def new(self, like: Tensor | Sequence[int]) -> Value:
        """Return a new place: of these sizes, or with the strides of this meta tensor."""
        meta = torch.empty_like(like) if isinstance(like, Tensor) else _meta(like)
        return Value("workspace", self.writer.reserve(meta.numel()), meta)

    def new_in_order(self, shape: Sequence[int], like: Tensor) -> Value:
        """Return a new place whose axes lie in memory in the order of those of a tensor."""
        order = sorted(range(like.dim()), key=lambda d: -like.stride(d))
        place = self.new([shape[d] for d in order])
        back = [order.index(d) for d in range(like.dim())]
        return place._replace(meta=place.meta.permute(back))

    def constant(self, number: float) -> Value:
        """Return the place of a number."""
        if number not in self._constants:
            memory = torch.full((), number, dtype=torch.float32, device="cpu")
            self.writer.numbers.append(memory)
            self._constants[number] = Value("address", 0, memory)
        return self._constants[number]

    def dense(self, value: Value) -> Value:
        """Return the numbers in the order of the axes, copied if they are not."""
        if value.meta.is_contiguous():
            return value
        copied = self.new(value.meta.shape)
        self.map("copy", copied, (value,))
        return copied

    def read(self, number: int, x: Tensor) -> Tensor:
        """Take an input, which is dense."""
        place = Value("given", number, _meta(x.shape))
        if x.dtype is not torch.float32:
            if x.dtype not in NUMBERS:
                raise NotRecordedError(f"an input of {x.dtype}")
            numbers = self.new(x.shape)
            words = (NUMBERS[x.dtype], x.numel(), place.operand(), numbers.operand())
            self.writer.emit("read", words, x.numel())
            place = numbers
        self._keep(x, place)
        return x

    def write(self, number: int, y: Any) -> None:
        """Write an output."""
        if not isinstance(y, Tensor) or y.dtype is not torch.float32 or not y.numel():
            raise NotRecordedError("an output that is not of floats")
        self.map("copy", Value("given", number, _meta(y.shape)), (self.value(y),))

    def _view(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        """Let other tensors show the same numbers."""
        value = self.value(args[0])
        try:
            found = func(value.meta, *args[1:], **kwargs)
        except RuntimeError:  # such strides cannot be viewed that way
            value = self.dense(value)
            found = func(value.meta, *args[1:], **kwargs)
        several = isinstance(result, (tuple, list))
        for tensor, meta in zip(*((result, found) if several else ((result,), (found,))), strict=True):
            self._keep(tensor, value._replace(meta=meta))

    # ---- operations -------------------------------------------------------------------------------

    def map(self, name: str, to: Value, given: Sequence[Value], p: float = 0.0, more: int = 0) -> Value:
        """Compute elementwise; operands are broadcast to the result."""
        metas = [to.meta, *(one.meta.expand(to.meta.shape) for one in given)]
        count = to.meta.numel()
        axes = _merged_axes(list(to.meta.shape), [list(meta.stride()) for meta in metas])
        sizes, strides = axes
        if len(sizes) > _AXES:
            raise NotRecordedError("too many axes")
        operands = [to, *given]
        while len(operands) < 4:  # the library reads three
            operands.append(operands[1])
            strides.append(strides[1])
        words = [MAPS[name] + more, to_word(p), len(sizes), *sizes]
        for operand, steps in zip(operands, strides, strict=True):
            words += [operand.operand(), *steps]
        self.writer.emit("map", words, 4 * count)
        return to

    def elementwise(self, name: str, result: Tensor, *given: Any, p: float = 0.0, more: int = 0) -> Value:
        """Compute a tensor elementwise of tensors and numbers."""
        if not result.numel():
            raise NotRecordedError("no numbers")
        values = [self.value(x) if isinstance(x, Tensor) else self.constant(float(x)) for x in given]
        like = next((v.meta for v in values if v.meta.shape == result.shape), None)
        to = self.new(result.shape if like is None else like)
        return self.map(name, to, values, p, more)

    def multiply(self, a: Value, b: Value, bias: Value | None, shape: Sequence[int]) -> Value:
        """Multiply matrices (N, M, K) and (N, K, L); bias: (L,)."""
        if 1 not in a.meta.stride()[1:]:
            a = self.dense(a)
        batches, m, k = a.meta.shape
        n = b.meta.shape[2]
        to = self.new(shape)
        scratch = self.writer.reserve((k + m + 1) * self._lanes)
        words = (
            *(batches, m, n, k, to.operand()),
            *(a.operand(), *a.meta.stride()),
            *(b.operand(), *b.meta.stride()),
            *((0, 0) if bias is None else (bias.operand(), bias.meta.stride(0))),
            ~scratch,
        )
        if 0 in (batches, m, n, k):
            raise NotRecordedError("no numbers")
        self.writer.emit("multiply", words, batches * m * n * k)
        return to

    def reduce(
        self, maximum: bool, x: Tensor, dims: Sequence[int], keepdim: bool, divisor: float = 1.0
    ) -> Value:
        """Add up numbers or find the largest, over axes; all of them if there are none."""
        value = self.value(x)
        rank = value.meta.dim()
        gone = {d % rank for d in dims} if dims else set(range(rank))
        kept = [d for d in range(rank) if d not in gone]
        sizes, strides = value.meta.shape, value.meta.stride()
        if not value.meta.numel():
            raise NotRecordedError("no numbers")
        to = self.new([1 if d in gone else sizes[d] for d in range(rank)])
        words = [int(maximum), to_word(divisor), to.operand(), value.operand()]
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
        moved = self.new(value.meta.movedim(dim, -1).shape)
        to = moved._replace(meta=moved.meta.movedim(-1, dim))
        self.map("copy", to, (value,))
        n = value.meta.shape[dim]
        count = value.meta.numel()
        self.writer.emit("softmax", (moved.operand(), count // n, n), 8 * count)
        return to

    # ---- recurrent layers -------------------------------------------------------------------------

    def run_layer(
        self,
        module: RecurrentModule,
        x: Tensor,
        mask: Tensor | None = None,
        initial_state: Sequence[Tensor] | None = None,
    ) -> Any:
        """Write a recurrent layer; return tensors of its outputs, without their values."""
        plan, layer = module.plan, module.rnn_layer()
        if not may_choose_kernel(module) or plan.stateful or module.native is None:
            raise NotRecordedError("a layer that the kernel cannot run")
        directions, states = len(plan.rules), STATES[module.native.kind]
        rows, time, features = x.shape
        units = layer.get_weight_hh().shape[1]
        if features != layer.get_weight_ih().shape[1] or 0 in x.shape or x.dtype is not torch.float32:
            raise NotRecordedError("an input that does not fit")
        merge = plan.merge_mode if plan.return_sequences else None
        merged = merge not in (None, "concat")
        if mask is not None:
            zeros = set(plan.rules) == {"zeros"}
            starts = initial_state is not None or merged
            if mask.shape != x.shape[:2] or plan.against_time or not _SHOWN.issuperset(plan.rules):
                raise NotRecordedError("a mask")
            if starts and not zeros:
                raise NotRecordedError("a mask beside initial states or merged outputs")
        elif rows >= SEVERAL and not pays(module):
            raise NotRecordedError("a layer for torch's kernel")
        self._check_weights(cast(Any, module), layer.parameters)
        width = units if merged else directions * units
        words = [rows, time, self.dense(self.value(x)).operand(), 0, 0, 0, 0]
        if mask is not None:
            words[3] = self.dense(self.value(mask)).operand()
            words[4] = ~self.writer.reserve(2 * rows)  # of eight bytes
            words[5] = ~self.writer.reserve(x.numel())
            words[6] = ~self.writer.reserve(rows * time * width) if plan.return_sequences else 0
        words += self._starts(initial_state, directions, states, (rows, units))
        final = self.new((directions * states, rows, units))
        if plan.return_sequences:
            out = self.new((rows, time, width))
            words += [out.operand(), 0]
        else:
            out = self.new((directions, rows, units))
            words += [0, out.operand()]
        words += [final.operand(), *([rule == "zeros" for rule in plan.rules] * 2)[:2]]
        described = StackLayer(module.native, layer.parameters, merge, plan.against_time)
        self.writer.emit_layer(described, words)
        if not plan.return_sequences:
            lasts = tuple(map(self._shown, self._parts(out)))
            with self:
                outputs = merge_outputs(lasts, plan.merge_mode)
        elif merge is None and directions == 2:
            outputs = tuple(
                self._shown(out._replace(meta=meta)) for meta in out.meta.chunk(2, dim=2)
            )
        else:
            outputs = (self._shown(out),)
        tail = tuple(map(self._shown, self._parts(final))) if plan.return_state else ()
        result = (*outputs, *tail)
        return result[0] if len(result) == 1 else result

    def _check_weights(self, module: nn.Module, parameters: Sequence[Tensor | None]) -> None:
        held = {id(t) for t in (*module._parameters.values(), *module._buffers.values())}
        for p in parameters:
            if p is not None and (id(p) not in held or id(p) not in self._values):
                raise NotRecordedError("weights that are computed")

    def _starts(
        self,
        initial: Sequence[Tensor] | None,
        directions: int,
        states: int,
        shape: tuple[int, ...],
    ) -> list[int]:
        """Return the operands of h of both directions, then of c."""
        if initial is None:
            return [0, 0, 0, 0]
        if len(initial) != directions * states or any(s.shape != shape for s in initial):
            raise NotRecordedError("initial states that do not fit")
        at = [self.dense(self.value(s)).operand() for s in initial]
        hs, cs = at[::states], at[1::states] if states == 2 else []
        return [*([*hs, 0, 0][:2]), *([*cs, 0, 0][:2])]

    def _parts(self, value: Value) -> list[Value]:
        return [value._replace(meta=meta) for meta in value.meta.unbind(0)]

    def _shown(self, value: Value) -> Tensor:
        """Return a tensor of zeros for a place."""
        tensor = torch.zeros(value.meta.shape, dtype=torch.float32, device="cpu")
        self._keep(tensor, value)
        return tensor


def _merged_axes(
    sizes: list[int], strides: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """Order axes by the strides of the first operand, and join those that are one for all."""
    order = sorted(
        (d for d, size in enumerate(sizes) if size != 1), key=lambda d: -strides[0][d]
    )
    joined: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for d in order:
        if joined and all(s[-1] == one[d] * sizes[d] for s, one in zip(steps, strides, strict=True)):
            joined[-1] *= sizes[d]
            for s, one in zip(steps, strides, strict=True):
                s[-1] = one[d]
        else:
            joined.append(sizes[d])
            for s, one in zip(steps, strides, strict=True):
                s.append(one[d])
    return (joined, steps) if joined else ([1], [[0] for _ in strides])


# ---- torch's operators ----------------------------------------------------------------------------

_aten: Any = torch.ops.aten
_Lower = Callable[..., Value]


def _add(sign: float) -> _Lower:
    def lower(r: _Recorder, result: Tensor, a: Any, b: Any, alpha: float = 1) -> Value:
        _floats(result)
        return r.elementwise("add", result, a, b, p=sign * float(alpha))

    return lower


def _floats(*tensors: Tensor) -> None:
    if any(t.dtype is not torch.float32 for t in tensors):
        raise NotRecordedError("integers that are computed with")


def _binary(name: str) -> _Lower:
    def lower(r: _Recorder, result: Tensor, a: Any, b: Any) -> Value:
        _floats(result)
        return r.elementwise(name, result, a, b)

    return lower


def _compare(name: str, *, turned: bool = False) -> _Lower:
    def lower(r: _Recorder, result: Tensor, a: Any, b: Any) -> Value:
        numbers = [x for x in (a, b) if not isinstance(x, Tensor)]
        integers = [x for x in (a, b) if isinstance(x, Tensor) and not x.is_floating_point()]
        if any(abs(x) >= _EXACT for x in numbers) or (
            len(integers) == 2 and any(x.dtype is not torch.bool for x in integers)
        ):
            raise NotRecordedError("large integers")
        return r.elementwise(name, result, *((b, a) if turned else (a, b)))

    return lower


def _activate(name: str) -> _Lower:
    def lower(r: _Recorder, result: Tensor, x: Tensor) -> Value:
        _floats(x)
        return r.elementwise("activation", result, x, more=ACTIVATIONS[name])

    return lower


def _leaky(r: _Recorder, result: Tensor, x: Tensor, slope: float = 0.01) -> Value:
    _floats(x)
    return r.elementwise("activation", result, x, p=slope, more=ACTIVATIONS["leaky_relu"])


def _clamp(
    r: _Recorder, result: Tensor, x: Tensor, low: float | None = None, high: float | None = None
) -> Value:
    _floats(x)
    value = r.value(x)
    if low is not None:
        value = r.map("maximum", r.new(result.shape), (value, r.constant(float(low))))
    if high is not None:
        value = r.map("minimum", r.new(result.shape), (value, r.constant(float(high))))
    return value


def _only_bools(*tensors: Tensor) -> None:
    if any(t.dtype is not torch.bool for t in tensors):
        raise NotRecordedError("bits of integers")


def _and(r: _Recorder, result: Tensor, a: Tensor, b: Tensor) -> Value:
    _only_bools(a, b)
    return r.elementwise("multiply", result, a, b)


def _or(r: _Recorder, result: Tensor, a: Tensor, b: Tensor) -> Value:
    _only_bools(a, b)
    return r.elementwise("maximum", result, a, b)


def _not(r: _Recorder, result: Tensor, a: Tensor) -> Value:
    _only_bools(a)
    return r.elementwise("equal", result, a, 0.0)


def _cast(r: _Recorder, result: Tensor, x: Tensor, **_: Any) -> Value:
    if result.dtype is torch.bool and x.dtype is not torch.bool:
        return r.elementwise("not_equal", result, x, 0.0)
    integers = (torch.int32, torch.int64)
    if result.dtype not in (torch.float32, torch.bool, *integers) or (
        result.dtype in integers and x.is_floating_point()
    ):
        raise NotRecordedError(f"a cast from {x.dtype} to {result.dtype}")
    return r.value(x)


def _same(r: _Recorder, result: Tensor, x: Tensor, *_: Any, **__: Any) -> Value:
    return r.value(x)


def _fill(r: _Recorder, result: Tensor, number: float) -> Value:
    if not result.numel():
        raise NotRecordedError("no numbers")
    constant = r.constant(number)
    return constant._replace(meta=constant.meta.expand(result.shape))


def _filled(number: float) -> _Lower:
    return lambda r, result, *_, **__: _fill(r, result, number)


def _full(r: _Recorder, result: Tensor, like: Any, number: float, **_: Any) -> Value:
    return _fill(r, result, float(number))


def _scalar(r: _Recorder, result: Tensor, number: float, **_: Any) -> Value:
    _floats(result)
    return r.constant(float(number))


def _masked_fill(r: _Recorder, result: Tensor, x: Tensor, mask: Tensor, number: Any) -> Value:
    _floats(x)
    return r.elementwise("select", result, mask, number, x)


def _where(r: _Recorder, result: Tensor, condition: Tensor, a: Any, b: Any) -> Value:
    _floats(result)
    return r.elementwise("select", result, condition, a, b)


def _sum(r: _Recorder, result: Tensor, x: Tensor, dim: Any = (), keepdim: bool = False, **_: Any) -> Value:
    _floats(x, result)
    return r.reduce(False, x, dim or (), keepdim)


def _mean(r: _Recorder, result: Tensor, x: Tensor, dim: Any = (), keepdim: bool = False, **_: Any) -> Value:
    _floats(x, result)
    return r.reduce(False, x, dim or (), keepdim, x.numel() / result.numel())


def _maximum(r: _Recorder, result: Tensor, x: Tensor, dim: Any = (), keepdim: bool = False) -> Value:
    _floats(x)
    return r.reduce(True, x, dim or (), keepdim)


def _any(r: _Recorder, result: Tensor, x: Tensor, dim: Any = (), keepdim: bool = False) -> Value:
    _only_bools(x)
    dims = (dim,) if isinstance(dim, int) else dim
    return r.reduce(True, x, dims or (), keepdim)


def _softmax(r: _Recorder, result: Tensor, x: Tensor, dim: int, half: bool) -> Value:
    _floats(x)
    return r.softmax(x, dim)


def _matrices(value: Value) -> Value:
    return value._replace(meta=value.meta.unsqueeze(0))


def _mm(r: _Recorder, result: Tensor, a: Tensor, b: Tensor) -> Value:
    _floats(a, b)
    return r.multiply(_matrices(r.value(a)), _matrices(r.value(b)), None, result.shape)


def _bmm(r: _Recorder, result: Tensor, a: Tensor, b: Tensor) -> Value:
    _floats(a, b)
    return r.multiply(r.value(a), r.value(b), None, result.shape)


def _addmm(
    r: _Recorder, result: Tensor, bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1
) -> Value:
    _floats(bias, a, b)
    if bias.dim() != 1 or beta != 1 or alpha != 1:
        raise NotRecordedError("addmm")
    start = r.value(bias)
    start = start._replace(meta=start.meta.expand(b.shape[1]))
    return r.multiply(_matrices(r.value(a)), _matrices(r.value(b)), start, result.shape)


def _cat(r: _Recorder, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Value:
    if not result.numel() or any(t.dtype is not result.dtype or t.dim() != result.dim() for t in tensors):
        raise NotRecordedError("cat")
    to = r.new(result.shape)
    sizes = [t.shape[dim] for t in tensors]
    for part, tensor in zip(to.meta.split(sizes, dim), tensors, strict=True):
        if tensor.numel():
            r.map("copy", to._replace(meta=part), (r.value(tensor),))
    return to


def _pad(r: _Recorder, result: Tensor, x: Tensor, pads: Sequence[int], number: float = 0.0) -> Value:
    _floats(x)
    if min(pads) < 0 or not x.numel():
        raise NotRecordedError("a part")
    value = r.value(x)
    to = r.new_in_order(result.shape, value.meta)
    inner = to.meta
    for i in range(len(pads) // 2):
        dim = x.dim() - 1 - i
        inner = inner.narrow(dim, pads[2 * i], x.shape[dim])
    r.map("copy", to, (r.constant(float(number)),))
    r.map("copy", to._replace(meta=inner), (value,))
    return to


def _embedding(r: _Recorder, result: Tensor, table: Tensor, ids: Tensor, *_: Any) -> Value:
    _floats(table)
    rows, columns = table.shape
    if rows >= _EXACT or not result.numel():
        raise NotRecordedError("embedding")
    weights, at, to = r.value(table), r.dense(r.value(ids)), r.new(result.shape)
    if weights.meta.stride(1) != 1:
        raise NotRecordedError("embedding")
    words = (at.operand(), ids.numel(), to.operand(), weights.operand())
    r.writer.emit("look_up", (*words, weights.meta.stride(0), rows, columns), 2 * result.numel())
    return to


def _two(numbers: Sequence[int], missing: int) -> list[int]:
    return [missing, *numbers][-2:]


def _convolution(
    r: _Recorder,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    """Multiply windows, as rows, with the filters, as they lie in memory."""
    _floats(x, weight, *(() if bias is None else (bias,)))
    filters = r.value(weight)
    if transposed or groups != 1 or x.dim() > 4 or not (x.numel() and result.numel()):
        raise NotRecordedError("a convolution")
    if not filters.meta.is_contiguous() or x.dim() != weight.dim():
        raise NotRecordedError("a convolution")
    value = r.value(x)
    meta = value.meta.unsqueeze(2) if x.dim() == 3 else value.meta
    kernel, out = _two(weight.shape[2:], 1), _two(result.shape[2:], 1)
    count, channels = result.shape[0], result.shape[1]
    positions, window = count * math.prod(out), meta.shape[1] * math.prod(kernel)
    columns = r.new((1, window, positions))
    sizes = [*meta.shape, *kernel, *out, *_two(stride, 1), *_two(padding, 0), *_two(dilation, 1)]
    words = (*sizes, value.operand(), *meta.stride(), columns.operand())
    r.writer.emit("unfold", words, 2 * positions * window)
    rows = columns._replace(meta=columns.meta.transpose(1, 2))
    matrix = filters._replace(meta=filters.meta.reshape(1, channels, window).transpose(1, 2))
    found = r.multiply(rows, matrix, None if bias is None else r.value(bias), (positions, channels))
    shaped = found.meta.reshape(count, *result.shape[2:], channels).movedim(-1, 1)
    return found._replace(meta=shaped)


def _pool(
    r: _Recorder, result: Tensor, x: Tensor, size: Sequence[int], stride: Sequence[int], mean: bool
) -> Value:
    _floats(x)
    if x.dim() != 4 or not (x.numel() and result.numel()):
        raise NotRecordedError("pooling")
    value = r.value(x)
    # Channels last, as whatever is in Keras' order.
    place = r.new([result.shape[i] for i in (0, 2, 3, 1)])
    to = place._replace(meta=place.meta.permute(0, 3, 1, 2))
    kernel, steps = list(size) * (3 - len(size)), list(stride or size) * (3 - len(stride or size))
    sizes = (*x.shape, *kernel, *result.shape[2:], *steps, 0, 0, 1, 1)
    words = (*sizes, value.operand(), *value.meta.stride(), to.operand(), *to.meta.stride(), int(mean))
    r.writer.emit("pool", words, 2 * result.numel() * math.prod(kernel))
    return to


def _max_pool(
    r: _Recorder,
    result: tuple[Tensor, Tensor],
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Value:
    if any(padding) or set(dilation) != {1} or ceil:
        raise NotRecordedError("pooling")
    return _pool(r, result[0], x, size, stride, mean=False)


def _average_pool(
    r: _Recorder,
    result: Tensor,
    x: Tensor,
    size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil: bool = False,
    include: bool = True,
    divisor: int | None = None,
) -> Value:
    if any(padding) or ceil or divisor is not None:
        raise NotRecordedError("pooling")
    return _pool(r, result, x, size, stride, mean=True)


def _batch_norm(
    r: _Recorder,
    result: tuple[Tensor, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    *rest: Any,
) -> Value:
    """Multiply by weight / sqrt(variance + eps), and add what is left."""
    if len(rest) == 3 and rest[0]:
        raise NotRecordedError("training")
    _floats(x)
    eps = float(rest[-1])
    of_channels = variance.shape
    start = r.constant(1.0) if weight is None else r.value(weight)
    scale = r.map("over_root", r.new(of_channels), (start, r.value(variance)), p=eps)
    moved = r.map("multiply", r.new(of_channels), (r.value(mean), scale))
    end = r.constant(0.0) if bias is None else r.value(bias)
    shift = r.map("add", r.new(of_channels), (end, moved), p=-1.0)

    def along_axis(value: Value) -> Value:
        return value._replace(meta=value.meta.reshape(-1, *[1] * (x.dim() - 2)))

    value = r.value(x)
    return r.map("multiply_add", r.new(value.meta), (value, along_axis(scale), along_axis(shift)))


def _layer_norm(
    r: _Recorder,
    result: tuple[Tensor, ...],
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Value:
    _floats(x)
    value, n = r.dense(r.value(x)), math.prod(shape)
    if not n or not x.numel():
        raise NotRecordedError("no numbers")
    to = r.new(x.shape)
    more = [0 if p is None else r.dense(r.value(p)).operand() for p in (weight, bias)]
    words = (x.numel() // n, n, value.operand(), n, to.operand(), *more, to_word(eps))
    r.writer.emit("normalize", words, 8 * x.numel())
    return to


_VIEWS = frozenset(
    {
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.t.default,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.squeeze.default,
        _aten.expand.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.alias.default,
        _aten.detach.default,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.unbind.int,
    }
)

_LOWERED: Mapping[Any, _Lower] = {
    _aten.add.Tensor: _add(1.0),
    _aten.sub.Tensor: _add(-1.0),
    _aten.mul.Tensor: _binary("multiply"),
    _aten.div.Tensor: _binary("divide"),
    _aten.maximum.default: _binary("maximum"),
    _aten.minimum.default: _binary("minimum"),
    _aten.eq.Scalar: _compare("equal"),
    _aten.eq.Tensor: _compare("equal"),
    _aten.ne.Scalar: _compare("not_equal"),
    _aten.ne.Tensor: _compare("not_equal"),
    _aten.lt.Scalar: _compare("less"),
    _aten.lt.Tensor: _compare("less"),
    _aten.le.Scalar: _compare("less_equal"),
    _aten.le.Tensor: _compare("less_equal"),
    _aten.gt.Scalar: _compare("less", turned=True),
    _aten.gt.Tensor: _compare("less", turned=True),
    _aten.ge.Scalar: _compare("less_equal", turned=True),
    _aten.ge.Tensor: _compare("less_equal", turned=True),
    _aten.relu.default: _activate("relu"),
    _aten.tanh.default: _activate("tanh"),
    _aten.sigmoid.default: _activate("sigmoid"),
    _aten.silu.default: _activate("silu"),
    _aten.hardswish.default: _activate("hard_silu"),
    _aten.hardsigmoid.default: _activate("hard_sigmoid_1/6"),
    _aten.leaky_relu.default: _leaky,
    _aten.clamp.default: _clamp,
    _aten.logical_and.default: _and,
    _aten.bitwise_and.Tensor: _and,
    _aten.logical_or.default: _or,
    _aten.bitwise_or.Tensor: _or,
    _aten.logical_not.default: _not,
    _aten.bitwise_not.default: _not,
    _aten._to_copy.default: _cast,
    _aten.clone.default: _same,
    _aten.zeros_like.default: _filled(0.0),
    _aten.ones_like.default: _filled(1.0),
    _aten.new_zeros.default: _filled(0.0),
    _aten.new_ones.default: _filled(1.0),
    _aten.full_like.default: _full,
    _aten.scalar_tensor.default: _scalar,
    _aten.masked_fill.Scalar: _masked_fill,
    _aten.where.self: _where,
    _aten.where.ScalarOther: _where,
    _aten.where.ScalarSelf: _where,
    _aten.where.Scalar: _where,
    _aten.sum.dim_IntList: _sum,
    _aten.mean.dim: _mean,
    _aten.amax.default: _maximum,
    _aten.any.dim: _any,
    _aten.any.dims: _any,
    _aten._softmax.default: _softmax,
    _aten.mm.default: _mm,
    _aten.bmm.default: _bmm,
    _aten.addmm.default: _addmm,
    _aten.cat.default: _cat,
    _aten.constant_pad_nd.default: _pad,
    _aten.embedding.default: _embedding,
    _aten.convolution.default: _convolution,
    _aten.max_pool2d_with_indices.default: _max_pool,
    _aten.avg_pool2d.default: _average_pool,
    _aten.native_batch_norm.default: _batch_norm,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
}
