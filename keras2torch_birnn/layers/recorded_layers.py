"""Recurrent layers of a recorded model: each is one operation of the program.

Converted layers, the layers of ``BiLSTM`` and its kin, and torch's own ``nn.LSTM``, ``nn.GRU`` and
``nn.RNN``. B batch, T time, H units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.recorded_values import NotRecordedError, Value, Values, to_word
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.engines.native import pays
from keras2torch_birnn.rnn.layer import Cell, RnnLayer, State
from keras2torch_birnn.rnn.modules import (
    GRU,
    LSTM,
    RNN,
    BidirectionalPair,
    LoopRNN,
    Output,
    Plan,
    RecurrentModule,
    find_parameters,
    parameter_names,
    recurrent_forward,
)
from keras2torch_birnn.rnn.native.codes import merge_code
from keras2torch_birnn.rnn.native.library import instruction_set
from keras2torch_birnn.rnn.native.op import order_states
from keras2torch_birnn.rnn.native.packing import cached_pack
from keras2torch_birnn.schema.merge_modes import merge_outputs

# A subclass, such as a parametrized module, may do more.
_CONVERTED = frozenset((LSTM, GRU, RNN, LoopRNN))
_TORCH_CELLS: Mapping[type[nn.Module], str] = {
    nn.LSTM: "LSTM",
    nn.GRU: "GRU",
    nn.RNN: "SimpleRNN",
}

# Rules by which a masked last step shows the last state, of zeros at first, or zeros.
_LAST_STATE = frozenset(("zeros", "previous_output", "previous_state"))
_ZEROS, _OUTPUTS = frozenset(("zeros",)), frozenset(("zeros", "previous_output"))


class LayerRecorder:
    """Writes recurrent layers. A base: who records a model sees its operators, too."""

    def __init__(self) -> None:
        self.values, self.active = Values(), True

    @contextmanager
    def without_operators(self) -> Iterator[None]:
        """Write no operators that run in the block."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    @contextmanager
    def in_place_of_layers(self, model: nn.Module) -> Iterator[None]:
        """Write the recurrent layers of a model that is called in the block."""
        patched: list[tuple[nn.Module, str]] = []
        for module in model.modules():
            own: Any = module
            written: Any = None
            if type(module) in _CONVERTED:
                written = self._converted
            elif type(module) is BidirectionalPair:
                written = self._pair
            elif type(module) in _TORCH_CELLS:
                written = self._torchs
            if written is not None:
                own.forward = partial(written, own)
                patched.append((module, "forward"))
            elif isinstance(module, BidirectionalStack):
                own._run_layers = partial(self._stack, own)
                patched.append((module, "_run_layers"))
        try:
            yield
        finally:
            for module, name in patched:
                delattr(module, name)

    # ---- kinds of modules -----------------------------------------------------------------------

    def _converted(
        self,
        module: RecurrentModule,
        x: Tensor,
        mask: Tensor | None = None,
        initial_state: Sequence[Tensor] | None = None,
    ) -> Output:
        kind = type(module)
        if kind.forward is not recurrent_forward or (
            kind.run_sequence is not RecurrentModule.run_sequence
        ):
            raise NotRecordedError("a layer that is computed in another way")
        layer = module.rnn_layer()
        _check_holds(cast(Any, module), layer)
        result = self._write_layer(layer, module.plan, x, mask, initial_state or ())
        return result[0] if len(result) == 1 else result

    def _pair(
        self,
        module: BidirectionalPair,
        x: Tensor,
        mask: Tensor | None = None,
        initial_state: Sequence[Tensor] | None = None,
    ) -> Output:
        """Write two halves that differ: the backward one reads what is turned around."""
        plan, given = module.plan, tuple(initial_state or ())
        halves = (module.forward_layer, module.backward_layer)
        if plan.stateful or any(type(half) not in _CONVERTED for half in halves):
            raise NotRecordedError("a half that is no plain layer")
        each = len(given) // 2
        outputs: tuple[Tensor, ...] = ()
        states: tuple[Tensor, ...] = ()
        for number, half in enumerate(halves):
            layer = half.rnn_layer()
            _check_holds(half, layer)
            back = number != plan.against_time
            x_read = torch.flip(x, (1,)) if back else x
            mask_read = torch.flip(mask, (1,)) if back and mask is not None else mask
            one = replace(plan, rules=(plan.rules[number],), merge_mode=None, against_time=False)
            own = given[number * each : (number + 1) * each]
            y, *ends = self._write_layer(layer, one, x_read, mask_read, own)
            turns = plan.return_sequences and number == 1
            outputs += (torch.flip(y, (1,)) if turns else y,)
            states += tuple(ends)
        result = (*merge_outputs(outputs, plan.merge_mode), *states)
        return result[0] if len(result) == 1 else result

    def _stack(
        self,
        module: BidirectionalStack,
        x: Tensor,
        lengths: Tensor | None,
        mask: Tensor | None,
        initial: Sequence[Sequence[State]] | None,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        if lengths is not None:
            raise NotRecordedError("lengths")
        layers = module.rnn_layers()
        for layer in layers:
            _check_holds(module, layer)
        return self._write_layers(layers, module.merge_mode, x, mask, initial)

    def _torchs(self, module: Any, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
        if type(x) is not Tensor or x.dim() != 3 or module.proj_size:
            raise NotRecordedError("a packed, projected or unbatched sequence")
        kind, count = _TORCH_CELLS[type(module)], 1 + module.bidirectional
        simple = kind == "SimpleRNN"
        functions = (module.nonlinearity, "linear") if simple else ("tanh", "sigmoid")
        cell = Cell.of(kind, *functions)
        layers = [
            RnnLayer(cell, find_parameters(module, parameter_names(count, number)))
            for number in range(module.num_layers)
        ]
        initial = None
        if hx is not None:
            given = hx if isinstance(hx, tuple) else (hx,)
            initial = [
                [[s[count * number + d] for s in given] for d in range(count)]
                for number in range(module.num_layers)
            ]
        merges = ["concat" if count == 2 else None] * module.num_layers
        x = x if module.batch_first else x.transpose(0, 1)
        y, final = self._write_layers(layers, merges, x, None, cast(Any, initial))
        y = y if module.batch_first else y.transpose(0, 1)
        return y, final if len(final) > 1 else final[0]

    def _write_layers(
        self,
        layers: Sequence[RnnLayer],
        merges: Sequence[str | None],
        x: Tensor,
        mask: Tensor | None,
        initial: Sequence[Sequence[State]] | None,
    ) -> tuple[Any, tuple[Tensor, ...]]:
        """Write layers, one after the other; return outputs and the states of all, stacked."""
        found: Any = x
        ends: list[tuple[Tensor, ...]] = []
        for index, (layer, merge) in enumerate(zip(layers, merges, strict=True)):
            directions = len(layer.parameters) // 4
            plan = Plan(("zeros",) * directions, merge, return_sequences=True, return_state=True)
            states = () if initial is None else tuple(chain.from_iterable(initial[index]))
            result = self._write_layer(layer, plan, found, mask, states)
            count = 2 if merge is None and directions == 2 else 1
            found = result[0] if count == 1 else result[:2]
            tail = result[count:]
            each = len(tail) // directions
            ends += [tail[d * each : (d + 1) * each] for d in range(directions)]
        return found, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))

    # ---- one layer ------------------------------------------------------------------------------

    def _write_layer(
        self,
        layer: RnnLayer,
        plan: Plan,
        x: Tensor,
        mask: Tensor | None,
        initial: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Write a layer; return its outputs, then its states if it returns them.

        layer: of a twin without values, whose real weights are known.
        """
        _check_call(layer, plan, x, mask, initial)
        if mask is not None and plan.against_time:
            # A mask goes with the steps: turned, not read from the end.
            x, mask = torch.flip(x, (1,)), torch.flip(mask, (1,))
            plan = replace(plan, against_time=False)
        merges = plan.return_sequences and plan.merge_mode not in (None, "concat")
        # Where masked steps show what each direction showed before, the directions are kept apart.
        apart = mask is not None and merges and not _ZEROS.issuperset(plan.rules)
        written = replace(plan, merge_mode=None) if apart else plan
        with self.without_operators():
            outputs, states = self._emit(layer, written, x, mask, initial)
        return (*merge_outputs(outputs, plan.merge_mode), *states)

    def _emit(
        self,
        layer: RnnLayer,
        plan: Plan,
        x: Tensor,
        mask: Tensor | None,
        initial: Sequence[Tensor],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Write a layer as one operation; return its outputs, and its states if it returns them."""
        values, cell = self.values, layer.cell
        if not cell.codes:
            raise NotRecordedError("a cell that the kernel lacks")
        parameters = [None if p is None else values.real(p) for p in layer.parameters]
        rows, time, features = x.shape
        directions, units = len(plan.rules), layer.get_weight_hh().shape[1]
        merge = plan.merge_mode if plan.return_sequences else None
        width = units if merge not in (None, "concat") else directions * units
        final = values.new((directions * layer.state_count(), rows, units))
        sequences = plan.return_sequences
        out = values.new((rows, time, width) if sequences else (directions, rows, units))
        steps = values.dense(values.value(x))
        step = features
        if plan.against_time:
            steps, step = steps._replace(meta=steps.meta[:, -1:]), -features
        # With a mask room for lengths (8 bytes each), and for the valid steps of x and outputs.
        rooms = (2 * rows, x.numel(), rows * time * width if sequences else 0)
        lengths, *packed = (0, 0, 0) if mask is None else map(self._reserve, rooms)
        weights = cached_pack(cell.codes[0], parameters, instruction_set())
        values.writer.alive.append(weights)
        run = (
            *(weights.unchecked, *cell.codes[1:], *map(to_word, cell.options), merge_code(merge)),
            *(rows, time, 0, steps.operand(), time * features, step, lengths),
            *self._starts(initial, directions, (rows, units)),
            *(out.operand() if sequences else 0, final.operand()),
            *(0, 0, 0, 0, 0, 0),  # nothing is kept or dropped
        )
        of_mask = 0 if mask is None else values.dense(values.value(mask)).operand()
        zeros = [rule == "zeros" for rule in plan.rules]
        last = 0 if sequences else out.operand()
        words = (*run, of_mask, *packed, last, zeros[0], zeros[-1])
        values.writer.emit("recurrent", words)
        shown = _parts(out)
        if sequences:
            apart = merge is None and directions == 2
            metas = out.meta.chunk(2, dim=2) if apart else (out.meta,)
            shown = [out._replace(meta=meta) for meta in metas]
        states = _parts(final) if plan.return_state else []
        return tuple(map(self._show, shown)), tuple(map(self._show, states))

    def _reserve(self, floats: int) -> int:
        return ~self.values.writer.reserve(floats) if floats else 0

    def _starts(
        self, initial: Sequence[Tensor], directions: int, shape: tuple[int, ...]
    ) -> list[int]:
        """Return the operands of h of both directions, then of c."""
        if len(initial) % directions or any(s.shape != shape for s in initial):
            raise NotRecordedError("initial states that do not fit")
        at = [self.values.dense(self.values.value(s)).operand() for s in initial]
        return order_states(at, len(initial) // directions)

    def _show(self, value: Value) -> Tensor:
        """Return a tensor without values for a place."""
        tensor = torch.empty(value.meta.shape, dtype=torch.float32, device="meta")
        self.values.keep(tensor, value)
        return tensor


def _parts(value: Value) -> list[Value]:
    return [value._replace(meta=meta) for meta in value.meta.unbind(0)]


def _check_holds(module: nn.Module, layer: RnnLayer) -> None:
    held = {id(t) for t in (*module._parameters.values(), *module._buffers.values())}
    if any(p is not None and id(p) not in held for p in layer.parameters):
        raise NotRecordedError("weights that are computed")


def _check_call(
    layer: RnnLayer, plan: Plan, x: Tensor, mask: Tensor | None, initial: Sequence[Tensor]
) -> None:
    """Leave to the module what the library lacks, or torch's kernel computes faster."""
    if (layer.engine or engines.REQUESTED) not in ("auto", "native"):
        raise NotRecordedError(f"the engine {layer.engine or engines.REQUESTED!r} was chosen")
    if layer.precision is not None:
        raise NotRecordedError(f"a layer of {layer.precision}")
    features = layer.get_weight_ih().shape[1]
    if x.dim() != 3 or x.shape[2] != features or 0 in x.shape or x.dtype is not torch.float32:
        raise NotRecordedError("an input that does not fit")
    if mask is None:
        if not pays(layer, x.shape[0]):
            raise NotRecordedError("rows for which torch's kernel is faster")
        return
    if mask.shape != x.shape[:2] or not _LAST_STATE.issuperset(plan.rules):
        raise NotRecordedError("a mask that the library does not know")
    # Where no step was read yet, the library shows zeros, and the last state of one output.
    shows_zeros = _OUTPUTS if plan.return_sequences else _ZEROS
    if initial and not shows_zeros.issuperset(plan.rules):
        raise NotRecordedError("a mask beside initial states")
