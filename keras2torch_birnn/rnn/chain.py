"""Consecutive modules of a converted model as one call of the native kernel, where that is exact.

Without gradients and in evaluation mode; elsewhere the modules are called one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.merge_modes import merge_outputs
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.engines.native import pays_for_any_rows
from keras2torch_birnn.rnn.engines.native_gradient import native_cell_of
from keras2torch_birnn.rnn.engines.reduced import can_reduce
from keras2torch_birnn.rnn.engines.static import SEVERAL
from keras2torch_birnn.rnn.guard import PATIENCE, Guard, guard_calls
from keras2torch_birnn.rnn.modules import (
    GRU,
    LSTM,
    RNN,
    LoopRNN,
    Output,
    Plan,
    RecurrentModule,
    recurrent_forward,
)
from keras2torch_birnn.rnn.native.codes import ReducedPrecision
from keras2torch_birnn.rnn.native.op import lengths_of_padded
from keras2torch_birnn.rnn.native.program import NativeLayer, PreparedCalls
from keras2torch_birnn.rnn.native.stack import PreparedStack, can_read, prepare
from keras2torch_birnn.rnn.observed_code import Observer
from keras2torch_birnn.rnn.tensor_memory import has_global_hooks, is_plain

# A subclass, such as a parametrized module, may do more.
RECURRENT_CLASSES = (LSTM, GRU, RNN, LoopRNN)

# Rules by which valid steps show all outputs, and a masked last step the last state, of zeros at
# first, or zeros: those that the library knows.
LAST_STATE = frozenset(("zeros", "previous_output", "previous_state"))


class Link(NamedTuple):
    """One module of a chain.

    path: the names that lead to it. recurrent: whether it is a recurrent module; others are the
    identity in evaluation mode.
    """

    path: tuple[str, ...]
    recurrent: bool


def can_lead(module: nn.Module) -> bool:
    """Return whether a module may be followed by others in a chain."""
    if not can_end(module):
        return False
    plan: Plan = cast(Any, module).plan
    return plan.return_sequences and (len(plan.rules) == 1 or plan.merge_mode is not None)


def can_end(module: nn.Module) -> bool:
    """Return whether a module may be the last of a chain."""
    if type(module) not in RECURRENT_CLASSES:
        return False
    recurrent = cast(RecurrentModule, module)
    return recurrent.native is not None and not recurrent.plan.return_state


class _Prepared(NamedTuple):
    """The recurrent modules of a chain, as long as the guard of all its modules holds.

    plan: of the chain as one module. stateful: the indices of modules that carry states. from_end:
    whether one reads from the last step. changes_valid: whether one before the last changes outputs
    at valid steps, too, under a mask. few_rows: whether torch's kernel is faster from ``SEVERAL``
    rows on. shows_last_state: whether the output is that of the last step alone, and shows the last
    state, or zeros, where that step is masked.
    """

    guard: Guard
    modules: tuple[RecurrentModule, ...]
    precision: ReducedPrecision | None
    stack: PreparedStack
    plan: Plan
    stateful: tuple[int, ...]
    from_end: bool
    changes_valid: bool
    few_rows: bool
    shows_last_state: bool

    def can_be_masked(self) -> bool:
        """Return whether what follows a module reads its outputs at valid steps as they are."""
        return not (self.from_end or self.changes_valid or self.stateful)

    def holds(self, modules: Sequence[nn.Module]) -> bool:
        """Return whether the modules are the prepared ones and have not changed."""
        return self.guard.is_of(modules) and self.guard.holds()


class Chain(PreparedCalls):
    """Modules, each called with the output of the one before."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = tuple(links)
        self._prepared: _Prepared | None = None
        # Preparations in succession, each dropped by a change before its first call.
        self._in_vain = 0

    def call(self, root: Mapping[str, nn.Module | None], x: Tensor, mask: Tensor | None) -> Any:
        """Call the modules. root: the children of the module that holds them. mask: of all.

        Raises:
            ArgumentTypeError, ArgumentValueError, UsageError: as the modules.
        """
        modules = [_find(root, link.path) for link in self._links]
        if not (torch.is_grad_enabled() or has_global_hooks()):
            prepared = self._prepared
            if prepared is not None and prepared.holds(modules):
                self._in_vain = 0
            else:
                self._prepared = prepared = self._prepare(modules, x, mask)
            found = None if prepared is None else self._call_at_once(prepared, x, mask)
            if found is not None:
                return found
        return self._call_each(modules, x, mask)

    def _call_each(self, modules: Sequence[nn.Module], x: Tensor, mask: Tensor | None) -> Any:
        given = {} if mask is None else {"mask": mask}
        for module, link in zip(modules, self._links, strict=True):
            x = module(x, **given) if link.recurrent else module(x)
        return x

    def _prepare(
        self, modules: Sequence[nn.Module], x: Tensor, mask: Tensor | None
    ) -> _Prepared | None:
        """Prepare modules; None if the kernel cannot run them at once."""
        if self._in_vain > PATIENCE or not can_read(x, ()):
            return None
        self._in_vain += 1
        recurrent: Any = [m for m, at in zip(modules, self._links, strict=True) if at.recurrent]

        def call_once(observer: Observer) -> None:
            with observer, _without_carried(recurrent):
                self._call_each(modules, x[:1, :2], None if mask is None else mask[:1, :2])

        called = guard_calls(modules, call_once)
        return None if called is None else _prepare(called[1], recurrent)

    def _call_at_once(self, ready: _Prepared, x: Tensor, mask: Tensor | None) -> Output | None:
        """Compute all recurrent modules in one call of the kernel; None if that is impossible."""
        modules, stack = ready.modules, ready.stack
        if not all(map(_may_run_kernel, modules)):
            return None
        initial = [module.carried or () for module in modules] if ready.stateful else None
        if not can_read(x, [s for layer in initial or () for state in layer for s in state]):
            return None
        rows, _, features = x.shape
        torch_may_pay = ready.few_rows and ready.precision is None
        if mask is None and torch_may_pay and rows >= SEVERAL:
            return None
        if mask is not None and not (ready.can_be_masked() and is_plain((mask,))):
            return None
        if stack.features != features:
            return None
        if initial and not all(map(partial(_fit, rows), initial, stack.units)):
            return None
        if not ready.stateful:
            layers = partial(_layers, modules)
            if mask is None:
                return _run_unmasked(layers, ready.plan, stack, x)
            if ready.shows_last_state and mask.dtype is torch.bool and mask.shape == x.shape[:2]:
                lengths = lengths_of_padded(mask)
                if lengths is not None:
                    return _run_padded(layers, ready.plan, stack, x, mask, lengths)
        return recurrent_forward(_AtOnce(ready, initial), x, mask)


# What ``recurrent_forward`` computes, in fewer steps: a short call would feel them.
def _run_unmasked(
    layers: Callable[[], Sequence[NativeLayer]], plan: Plan, stack: PreparedStack, x: Tensor
) -> Output:
    if plan.return_sequences:
        outputs = stack.run(layers, x, None, plan.merge_mode)
    else:
        outputs = merge_outputs(stack.run_to_last_step(layers, x, None), plan.merge_mode)
    return outputs[0] if len(outputs) == 1 else outputs


def _run_padded(
    layers: Callable[[], Sequence[NativeLayer]],
    plan: Plan,
    stack: PreparedStack,
    x: Tensor,
    mask: Tensor,
    lengths: Tensor,
) -> Output:
    """Compute the output of the last step alone: the last state, or zeros if the step is masked."""
    states = stack.run_to_last_step(layers, x, lengths)
    outputs = tuple(
        torch.where(mask[:, 0 if backward else -1, None], h, 0.0) if rule == "zeros" else h
        for backward, (h, rule) in enumerate(zip(states, plan.rules, strict=True))
    )
    outputs = merge_outputs(outputs, plan.merge_mode)
    return outputs[0] if len(outputs) == 1 else outputs


class _AtOnce:
    """A chain as one module, for ``recurrent_forward``."""

    carried: tuple[State, ...] | None = None

    def __init__(self, ready: _Prepared, initial: Sequence[Sequence[State]] | None) -> None:
        self.plan, self._ready, self._initial = ready.plan, ready, initial

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the kernel, and keep the states of stateful modules."""
        ready, stack, modules = self._ready, self._ready.stack, self._ready.modules
        layers = partial(_layers, modules)
        # The last step that a direction reads leaves its state.
        sequences = ready.plan.return_sequences or call.lengths is not None
        if sequences and not ready.stateful:
            return stack.run(layers, call.x, call.lengths, call.merge), ()
        rows = call.x.shape[0]
        final = [
            [
                call.x.new_empty((d, rows, units))
                for _ in range(native_cell_of(m.rnn_layer()).states)
            ]
            for m, d, units in zip(modules, stack.directions, stack.units, strict=True)
        ]
        addresses = [(h.data_ptr(), c[0].data_ptr() if c else 0) for h, *c in final]
        given = (layers, call.x, call.lengths, call.merge, self._initial, addresses)
        out = stack.run(*given, sequences=sequences)
        for index in ready.stateful:
            modules[index].carried = tuple(zip(*final[index], strict=True))
            ready.guard.accept_states(cast(Any, modules[index]))
        return out if sequences else tuple(h[:, None] for h in final[-1][0]), ()


@contextmanager
def _without_carried(modules: Sequence[RecurrentModule]) -> Iterator[None]:
    """Reset stateful modules for the block, and restore their states afterwards."""
    stateful = [module for module in modules if module.plan.stateful]
    carried = [module.carried for module in stateful]
    for module in stateful:
        module.carried = None
    try:
        yield
    finally:
        for module, states in zip(stateful, carried, strict=True):
            module.carried = states


def _find(root: Mapping[str, nn.Module | None], path: Sequence[str]) -> nn.Module:
    found: Any = root[path[0]]
    for name in path[1:]:
        found = found._modules[name]
    return cast(nn.Module, found)


def may_choose_kernel(module: RecurrentModule) -> bool:
    """Return whether the kernel may run a module in float32."""
    return module.precision is None and _may_run_kernel(module)


def _may_run_kernel(module: RecurrentModule) -> bool:
    """Return whether the requested engine allows the native kernel, in any precision."""
    return (module.engine or engines.REQUESTED) in ("auto", "native")


def _prepare(guard: Guard, modules: Sequence[RecurrentModule]) -> _Prepared | None:
    """Prepare modules; None if the kernel cannot run one after the other."""
    *leading, last = cast(Sequence[Any], modules)
    if not (all(map(can_lead, leading)) and can_end(last)):
        return None
    precision, layers = last.precision, _layers(modules)
    held = [p for layer in layers for p in layer.parameters if p is not None]
    if (
        any(type(module).forward is not recurrent_forward for module in (*leading, last))
        or any(module.precision != precision for module in leading)
        or not guard.watches(held)
        or not can_reduce((module.rnn_layer() for module in modules), precision)
    ):
        return None
    stack = prepare(layers, held, precision)
    if stack is None:
        return None
    plans = [module.plan for module in modules]
    return _Prepared(
        guard,
        tuple(modules),
        precision,
        stack,
        replace(plans[-1], against_time=False, stateful=False),
        tuple(index for index, plan in enumerate(plans) if plan.stateful),
        any(plan.against_time for plan in plans),
        not all(LAST_STATE.issuperset(plan.rules) for plan in plans[:-1]),
        not all(map(pays, modules)),
        not plans[-1].return_sequences and LAST_STATE.issuperset(plans[-1].rules),
    )


def pays(module: RecurrentModule) -> bool:
    """Return whether the kernel is the fastest for any number of rows."""
    return pays_for_any_rows(module.rnn_layer())


def _layers(modules: Sequence[RecurrentModule]) -> list[NativeLayer]:
    pairs = [(module.rnn_layer(), module.plan) for module in modules]
    return [
        NativeLayer(native_cell_of(layer), layer.parameters, plan.merge_mode, plan.against_time)
        for layer, plan in pairs
    ]


def _fit(rows: int, layer: Sequence[State], units: int) -> bool:
    """Return whether the initial states of a layer, if any, have the shape (rows, units)."""
    return all(s.shape == (rows, units) for state in layer for s in state)
