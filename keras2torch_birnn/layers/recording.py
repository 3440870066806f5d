"""A model's operations for given sizes, recorded as a program of the native library.

The model runs once under a mode that sees every operator of torch. Views become strides, recurrent
modules are one operation each, and an operator that the library lacks ends the recording: the
model then runs as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.layers.recorded_operators import OPERATORS, VIEWS, aten
from keras2torch_birnn.layers.recorded_values import NotRecordedError, Value, Values
from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn.chain import LAST_STATE, RECURRENT_CLASSES, may_choose_kernel, pays
from keras2torch_birnn.rnn.engines.static import SEVERAL
from keras2torch_birnn.rnn.modules import Plan, RecurrentModule, recurrent_forward
from keras2torch_birnn.rnn.native.codes import STATES
from keras2torch_birnn.rnn.native.op import order_states
from keras2torch_birnn.rnn.native.program import NativeLayer, Writer
from keras2torch_birnn.rnn.observed_code import Observer, is_ours
from keras2torch_birnn.torch_private import find


def record(
    model: nn.Module,
    graph: fx.Graph,
    inputs: Sequence[Tensor],
    work: int,
    floats: int,
    observer: Observer,
) -> tuple[Writer, list[torch.Size], bool]:
    """Record a model: its program, the sizes of its outputs, and whether they are a tuple.

    graph: of the model, which computes in evaluation mode. work, floats: how much of these the
    program may have. observer: takes note of the model's code.

    Raises:
        NotRecordedError: the library lacks something, or the model is too large.
    """
    if _RecordingMode is None:
        raise NotRecordedError("torch shows no operators")
    recorder = _Recorder(model, observer)
    writer = recorder.values.writer
    rest = iter(enumerate(inputs, 1))
    found: dict[fx.Node, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for node in graph.nodes:
            args = fx.node.map_arg(node.args, found.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, found.__getitem__)
            if node.op == "placeholder":
                number, x = next(rest)
                found[node] = recorder.values.read(number, x.clone())
            elif node.op == "output":
                (result,) = args
                outputs = result if isinstance(result, tuple) else (result,)
                for number, y in enumerate(outputs, 1 + len(inputs)):
                    recorder.values.write(number, y)
                writer.argument_count = len(inputs) + len(outputs)
                sizes = [y.shape for y in outputs]
                return writer, sizes, isinstance(result, tuple)
            else:
                found[node] = _call(model, recorder, node, args, kwargs)
            if writer.work > work or writer.floats > floats:
                raise NotRecordedError("a large model")
    raise NotRecordedError("no output")


def _call(model: nn.Module, recorder: _Recorder, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module) in RECURRENT_CLASSES:
            return recorder.run_layer(cast(Any, module), *args, **kwargs)
        return recorder.see(module, *args, **kwargs)
    if node.op == "call_function":
        return recorder.see(_find_function(cast(Callable[..., Any], node.target)), *args, **kwargs)
    if node.op == "call_method":
        return recorder.see(getattr(args[0], str(node.target)), *args[1:], **kwargs)
    if node.op == "get_attr":  # of a module that a function calls
        return model.get_submodule(str(node.target))
    raise NotRecordedError(node.op)


def _find_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a graph, which has torch's own by name in its code."""
    if not (is_ours(function) or isinstance(function, type(torch.add))):
        raise NotRecordedError("a function of others")
    if (name_of := find("function_name")) is None:
        raise NotRecordedError("a function whose name torch does not tell")
    package, _, path = name_of(function).partition(".")
    if package == "torch" and attrgetter(path)(torch) is not function:
        raise NotRecordedError("a function that another has replaced")
    return function


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


class _Recorder:
    """A program of the operators that a model calls.

    Nothing that it holds refers to it: its tensors, among them views of the weights, go with it.
    """

    def __init__(self, model: nn.Module, observer: Observer) -> None:
        self.values, self._observer = Values(), observer
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype is torch.float32 and tensor.is_cpu:
                self.values.keep(tensor, Value("address", 0, tensor.detach()))

    def see(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, and write all operators that it runs."""
        mode = _RecordingMode()
        mode.see = partial(self._observer.record, self._write)
        with mode, self._observer:
            return function(*args, **kwargs)

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and write it."""
        if func._schema.is_mutable:
            raise NotRecordedError(str(func))
        result = func(*args, **kwargs)
        if func in VIEWS:
            self.values.view(func, args, kwargs, result)
            return result
        if func is aten.empty.memory_format:  # which no other operator may read
            return result
        lower = OPERATORS.get(func)
        if lower is None:
            raise NotRecordedError(str(func))
        value = lower(self.values, result, *args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        if value.meta.shape != first.shape:
            raise NotRecordedError(f"{func}: the sizes differ")
        self.values.keep(first, value)
        return result

    def run_layer(
        self,
        module: RecurrentModule,
        x: Tensor,
        mask: Tensor | None = None,
        initial_state: Sequence[Tensor] | None = None,
    ) -> Any:
        """Write a recurrent layer; return tensors of its outputs, without their numbers."""
        plan, layer, native = module.plan, module.rnn_layer(), module.native
        if native is None or plan.stateful or not may_choose_kernel(module):
            raise NotRecordedError("a layer that the kernel cannot run")
        self._observe(module, x, mask, initial_state)
        self._check_weights(cast(Any, module), layer.parameters)
        _check_input(module, x)
        _check_mask(module, x, mask, starts=initial_state is not None)
        values, directions = self.values, len(plan.rules)
        rows, time, _ = x.shape
        units = layer.get_weight_hh().shape[1]
        merge = plan.merge_mode if plan.return_sequences else None
        width = units if merge not in (None, "concat") else directions * units
        final = values.new((directions * STATES[native.kind], rows, units))
        sequences = plan.return_sequences
        out = values.new((rows, time, width) if sequences else (directions, rows, units))
        read = [values.dense(values.value(t)).operand() for t in (x, mask) if t is not None]
        strides = (time * x.shape[2], x.shape[2])
        rooms = (2 * rows, x.numel(), rows * time * width if sequences else 0)  # lengths: 8 bytes
        masked = [0, 0, 0, 0] if mask is None else [read[1], *map(self._reserve, rooms)]
        starts = self._starts(initial_state, directions, (rows, units))
        outs = (out.operand(), 0) if sequences else (0, out.operand())
        zeros = [rule == "zeros" for rule in plan.rules]
        words = (rows, time, read[0], *strides, *masked, *starts, *outs, final.operand())
        described = NativeLayer(native, layer.parameters, merge, plan.against_time)
        values.writer.emit_layer(described, (*words, 0, 0, zeros[0], zeros[-1]))
        outputs = self._outputs(plan, out)
        tail = map(self._show, _parts(final)) if plan.return_state else ()
        result = (*outputs, *tail)
        return result[0] if len(result) == 1 else result

    def _observe(self, module: Any, *args: Any) -> None:
        """Call a layer as the model does, for its code; the numbers are not used."""
        kind = type(module)
        if kind.forward is not recurrent_forward or (
            kind.run_sequence is not RecurrentModule.run_sequence
        ):
            raise NotRecordedError("a layer that is computed in another way")
        with self._observer:
            module(*args)

    def _outputs(self, plan: Plan, out: Value) -> tuple[Tensor, ...]:
        """Return tensors of a layer's outputs, merged if they are to be."""
        if not plan.return_sequences:
            lasts = tuple(map(self._show, _parts(out)))
            merged: tuple[Tensor, ...] = self.see(merge_outputs, lasts, plan.merge_mode)
            return merged
        apart = plan.merge_mode is None and len(plan.rules) == 2
        metas = out.meta.chunk(2, dim=2) if apart else (out.meta,)
        return tuple(self._show(out._replace(meta=meta)) for meta in metas)

    def _check_weights(self, module: nn.Module, parameters: Sequence[Tensor | None]) -> None:
        held = {id(t) for t in (*module._parameters.values(), *module._buffers.values())}
        for p in parameters:
            if p is not None and not (id(p) in held and self.values.knows(p)):
                raise NotRecordedError("weights that are computed")

    def _reserve(self, floats: int) -> int:
        return ~self.values.writer.reserve(floats) if floats else 0

    def _starts(
        self, initial: Sequence[Tensor] | None, directions: int, shape: tuple[int, ...]
    ) -> list[int]:
        """Return the operands of h of both directions, then of c."""
        states = initial or ()
        if len(states) % directions or any(s.shape != shape for s in states):
            raise NotRecordedError("initial states that do not fit")
        at = [self.values.dense(self.values.value(s)).operand() for s in states]
        return order_states(at, len(states) // directions)

    def _show(self, value: Value) -> Tensor:
        """Return a tensor of zeros for a place."""
        tensor = torch.zeros(value.meta.shape, dtype=torch.float32, device="cpu")
        self.values.keep(tensor, value)
        return tensor


def _parts(value: Value) -> list[Value]:
    return [value._replace(meta=meta) for meta in value.meta.unbind(0)]


def _check_input(module: RecurrentModule, x: Tensor) -> None:
    features = module.rnn_layer().get_weight_ih().shape[1]
    if x.dim() != 3 or x.shape[2] != features or 0 in x.shape or x.dtype is not torch.float32:
        raise NotRecordedError("an input that does not fit")


def _check_mask(module: RecurrentModule, x: Tensor, mask: Tensor | None, *, starts: bool) -> None:
    plan = module.plan
    if mask is None:
        if x.shape[0] >= SEVERAL and not pays(module):
            raise NotRecordedError("a layer for torch's kernel")
        return
    if mask.shape != x.shape[:2] or plan.against_time or not LAST_STATE.issuperset(plan.rules):
        raise NotRecordedError("a mask that the library does not know")
    merged = plan.return_sequences and plan.merge_mode not in (None, "concat")
    if (starts or merged) and set(plan.rules) != {"zeros"}:
        raise NotRecordedError("a mask beside initial states or merged outputs")
