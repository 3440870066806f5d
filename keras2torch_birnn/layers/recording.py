"""A model's operations for given sizes, recorded as a program of the native library.

What runs once is a twin of the model, whose weights and inputs have no values, under a mode that
sees every operator of torch. Whoever reads a value, to branch on it or to compute by other means,
gets an error, so no value of one call becomes part of a program. Views become strides, recurrent
layers are one operation each, and what depends on weights alone is computed now.
"""

from __future__ import annotations

import copy
import struct
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.recorded_layers import LayerRecorder
from keras2torch_birnn.layers.recorded_operators import EXACT, OPERATORS, SOURCES, VIEWS, aten
from keras2torch_birnn.layers.recorded_values import NotRecordedError, Value, Writer
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.native.codes import BY_TORCH
from keras2torch_birnn.rnn.native.library import (
    PROGRAM,
    check_code,
    instruction_set,
    library,
    why_missing,
)
from keras2torch_birnn.rnn.native.op import use_torch_threads
from keras2torch_birnn.rnn.tensor_memory import has_global_hooks
from keras2torch_birnn.rnn.torch_private import find

# Multiply-adds beside the recurrent layers on one thread, and times the threads on several: for
# more, torch's kernels may take no longer. Floats of the workspace, of which each thread has one.
WORK, WORK_OF_SEVERAL, FLOATS = 32_000_000, 8_000_000, 1 << 24

# Inputs and outputs; and floats behind the workspace: operations read up to two vectors, of which
# they use a part.
_ARGUMENTS_AT_MOST, _BEHIND = 256, 32

_IS_CPU = attrgetter("is_cpu")
_FLOAT = torch.empty((), dtype=torch.float32, device="cpu")
_make_like = partial(torch.empty_like, memory_format=torch.contiguous_format)

# ---- the tensors of a call ----------------------------------------------------------------------

_CONSTANTS = (type(None), bool, int, float, str)


class UnknownStructureError(Exception):
    """Arguments hold what no program is recorded for, such as a packed sequence."""


def take_apart(value: Any, leaves: list[Tensor]) -> Any:
    """Append all tensors to ``leaves``; return a hashable form of what holds them.

    Raises:
        UnknownStructureError: they are not in tuples, lists and dicts.
    """
    if isinstance(value, Tensor):
        leaves.append(value)
        return len(leaves) - 1
    kind = type(value)
    if kind is dict:
        return dict, tuple((name, take_apart(one, leaves)) for name, one in value.items())
    if kind in (tuple, list):
        return kind, tuple(take_apart(one, leaves) for one in value)
    if kind in _CONSTANTS:
        return kind, value
    raise UnknownStructureError(kind.__name__)


def put_together(form: Any, leaves: Sequence[Any]) -> Any:
    """Return what ``take_apart`` took apart, with other leaves."""
    if isinstance(form, int):
        return leaves[form]
    kind, inner = form
    if kind is dict:
        return {name: put_together(one, leaves) for name, one in inner}
    return inner if kind in _CONSTANTS else kind(put_together(one, leaves) for one in inner)


# ---- recording ----------------------------------------------------------------------------------


class Program:
    """A recorded call: words that the native library runs. Several threads may run it.

    No weight that it reads changes afterwards: none is compared.
    """

    def __init__(self, writer: Writer, like: Sequence[Tensor], form: Any) -> None:
        """Take what is written; like, form: of the outputs, and of what holds them.

        form: as of ``take_apart``; None for one output alone.
        """
        self._words, self._isa = array("q", writer.words), instruction_set()
        self._head = (self._words.buffer_info()[0], len(self._words), writer.floats + _BEHIND)
        self._pack = struct.Struct(f"{PROGRAM.format}{writer.argument_count}q").pack
        self._writer, self._like, self._form = writer, like, form

    def run(self, leaves: Sequence[Tensor]) -> Any:
        """Return the outputs; None where values leave them to torch.

        leaves: plain tensors on the CPU, of the sizes and dtypes of the recording.

        Raises:
            MemoryError: no workspace.
        """
        outputs = [*map(_make_like, self._like)]
        dense = [*map(Tensor.contiguous, leaves)]
        use_torch_threads()
        addresses = (*map(Tensor.data_ptr, dense), *map(Tensor.data_ptr, outputs))
        words = self._pack(*self._head, torch.get_num_threads(), *addresses)
        code: int = library().k2t_run_program(self._isa, words)
        if code == BY_TORCH:
            return None
        check_code(code)
        return outputs[0] if self._form is None else put_together(self._form, outputs)


class Twin:
    """A copy of a model whose tensors have no values, each with the real one."""

    def __init__(self, model: nn.Module) -> None:
        real = {id(t): t for t in chain(model.parameters(), model.buffers())}
        bare: dict[int, Any] = {key: _without_values(t) for key, t in real.items()}
        self.model: Any = copy.deepcopy(model, dict(bare))
        self.pairs = [(bare[key], t.detach()) for key, t in real.items()]

    def record(self, form: Any, leaves: Sequence[Tensor]) -> Program:
        """Record a call; form: of its arguments and named arguments, None for leaves alone.

        Raises:
            NotRecordedError: the library lacks something, or the model is too large. The message
                is the reason.
        """
        if reason := self._why_not(leaves):
            raise NotRecordedError(reason)
        recorder = _Recorder(self)
        writer = recorder.values.writer
        with torch.inference_mode(False), torch.no_grad():
            read = [
                recorder.values.read(i, torch.empty(t.shape, dtype=t.dtype, device="meta"))
                for i, t in enumerate(leaves, 1)
            ]
            args, named = (tuple(read), {}) if form is None else put_together(form, read)
            result = recorder.call(self.model, args, named)
            outputs: list[Tensor] = []
            try:
                form_of_outputs = take_apart(result, outputs)
            except UnknownStructureError as error:
                raise NotRecordedError(f"an output of {error}") from None
            for i, y in enumerate(outputs, 1 + len(read)):
                recorder.values.write(i, y)
        writer.argument_count = len(read) + len(outputs)
        threads = torch.get_num_threads()
        most = WORK if threads == 1 else WORK_OF_SEVERAL // threads
        if writer.work > most or writer.floats > FLOATS:
            raise NotRecordedError("much to compute beside recurrent layers")
        if writer.argument_count >= _ARGUMENTS_AT_MOST:
            raise NotRecordedError("many inputs and outputs")
        like = [_FLOAT.expand(y.shape) for y in outputs]
        alone = isinstance(result, Tensor)
        return Program(writer, like, None if alone else form_of_outputs)

    def _why_not(self, leaves: Sequence[Tensor]) -> str:
        if reason := why_missing():
            return reason
        if _RecordingMode is None:
            return "torch shows no operators"
        if engines.REQUESTED not in ("auto", "native"):
            return f"the engine {engines.REQUESTED!r} was chosen"
        if has_global_hooks() or any(
            m._forward_hooks or m._forward_pre_hooks for m in self.model.modules()
        ):
            return "a module with hooks"
        if not all(map(_IS_CPU, (*leaves, *(t for _, t in self.pairs)))):
            return "not on the CPU"
        return "" if all(map(torch.numel, leaves)) else "no numbers"


def _without_values(tensor: Tensor) -> Tensor:
    size, stride = tensor.shape, tensor.stride()
    bare = torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")
    return nn.Parameter(bare, requires_grad=False) if isinstance(tensor, nn.Parameter) else bare


def _dispatch(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return mode.see(func, args, kwargs or {})


# Calls its ``see`` in place of every operator. Made once: a class is freed by a collection only.
# By default torch would import its whole compiler for it, which takes a second.
_dispatch_mode: Any = find("dispatch_mode")
_RecordingMode: Any = _dispatch_mode and type(
    "RecordingMode",
    (_dispatch_mode,),
    {"__torch_dispatch__": _dispatch, "_should_skip_dynamo": classmethod(lambda _: False)},
)


class _Recorder(LayerRecorder):
    """A program of the operators that a twin calls."""

    def __init__(self, twin: Twin) -> None:
        super().__init__()
        # The first reason not to record, and an error of this package's own.
        self._refused: NotRecordedError | None = None
        self._failed: Exception | None = None
        # Of tensors whose numbers are known now, by their ids, which stay theirs.
        self._real: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []
        for bare, tensor in twin.pairs:
            self._keep(bare, tensor)

    def call(self, model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a twin, and write all that it computes.

        Raises:
            NotRecordedError: the library lacks something, or the model reads values.
        """
        mode = _RecordingMode()
        mode.see = self._write
        try:
            with self.in_place_of_layers(model), mode:
                result = model(*args, **named)
        except NotRecordedError:
            raise
        except Exception as error:
            if self._failed is not None:
                raise self._failed from None
            if self._refused is None:  # of the model's code, for tensors without values
                text = str(error).partition("\n")[0]
                raise NotRecordedError(f"{type(error).__name__}: {text}") from error
        if self._refused is not None:  # also where the model's code goes on after an error
            raise self._refused
        return result

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and write it."""
        if not self.active:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            self._lower(func, args, kwargs, result)
        except NotRecordedError as error:
            self._refused = self._refused or error
            raise
        except Exception as error:
            self._failed = self._failed or error
            raise
        return result

    def _lower(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if func._schema.is_mutable:
            raise NotRecordedError(str(func))
        if self._depends_on_weights_alone(func, (*args, *kwargs.values())):
            return self._compute_now(func, args, kwargs, result)
        if func in SOURCES:
            return self._compute_now(func, args, {**kwargs, "device": "cpu"}, result)
        if func in VIEWS:
            return self.values.view(func, args, kwargs, result)
        if func is aten.empty.memory_format:  # which no other operator may read
            return None
        lower: Callable[..., Value] | None = OPERATORS.get(func)
        if lower is None:
            raise NotRecordedError(str(func))
        value = lower(self.values, result, *args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        if value.meta.shape != first.shape:
            raise NotRecordedError(f"{func}: the sizes differ")
        return self.values.keep(first, value)

    def _keep(self, bare: Tensor, real: Tensor) -> None:
        """Take note of a tensor whose numbers are known now."""
        self._real[id(bare)] = real
        if _is_exact(real):
            number = real.float()
            self.values.keep(bare, Value("address", 0, number))
            self.values.writer.alive.append(number)
        else:
            self._alive.append(bare)

    def _find_real(self, value: Any) -> Any:
        """Return the real tensor that a tensor stands for, None for one that depends on inputs."""
        return self._real.get(id(value)) if isinstance(value, Tensor) else value

    def _depends_on_weights_alone(self, func: Any, given: Sequence[Any]) -> bool:
        nested = [one for many in given if isinstance(many, (list, tuple)) for one in many]
        if torch.Tag.nondeterministic_seeded in func.tags or any(
            isinstance(one, Tensor) for one in nested
        ):
            return False
        tensors = [t for t in given if isinstance(t, Tensor)]
        return bool(tensors) and all(id(t) in self._real for t in tensors)

    def _compute_now(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Run an operator of weights alone, which stay as they are.

        Raises:
            NotRecordedError: it mixes them with a tensor that the model's own code made.
        """
        real = self._find_real
        try:
            found = func(*map(real, args), **{name: real(one) for name, one in kwargs.items()})
        except RuntimeError as error:
            raise NotRecordedError(f"{func}: {error}") from error
        several = isinstance(result, (tuple, list))
        for bare, number in zip(
            *((result, found) if several else ((result,), (found,))), strict=True
        ):
            if isinstance(bare, Tensor):
                self._keep(bare, number)


def _is_exact(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers, such as flags or ids, are all numbers of float32."""
    if tensor.dtype in (torch.float32, torch.bool):
        return True
    integers = not (tensor.is_floating_point() or tensor.is_complex())
    return integers and bool((tensor.abs() < EXACT).all())
