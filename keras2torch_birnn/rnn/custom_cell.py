"""A cell that a plugin supplies, in a loop over time.

The module of the cell takes one step, ``(x_t, states) -> (y, states)``: (B, F), and a tuple of
(B, size) for each state. B batch, T time, F features, Y size of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import ArgumentValueError, PluginError
from keras2torch_birnn.rnn.checks import check_dtypes, check_states
from keras2torch_birnn.rnn.layer import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.masks import zero_past
from keras2torch_birnn.rnn.modules import (
    AnyRecurrent,
    Plan,
    SequenceModule,
)
from keras2torch_birnn.schema.custom_cells import gives_states, sizes_of
from keras2torch_birnn.schema.custom_layers import custom_layer_of, shown
from keras2torch_birnn.spec import LayerSpec, format_shape


class CustomRNN(AnyRecurrent, nn.Module):
    """One direction of a loop over a plugin's cell; called as Keras calls its RNN."""

    # Keras' reset_states leaves zeros, whatever the states were before the first batch.
    from_zeros = False

    def __init__(self, cell: nn.Module, layer: LayerSpec, plan: Plan) -> None:
        super().__init__()
        self.cell = cell
        self.plan = plan
        self.layer = layer  # without weights, for errors
        self.sizes = sizes_of(layer)
        self.gives_states = gives_states(layer)
        _check_method(cell, layer)

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the steps in a loop, as Keras does; one direction, so there is nothing to merge.

        A step at or past a row's length leaves the states alone. With lengths and the rule
        "previous_first_state" the first state is behind the output, (B, T, Y + size).

        Raises:
            ArgumentTypeError, ArgumentValueError: the states do not fit the cell.
            PluginError: the cell gives something else than its plugin declares.
        """
        x, lengths = call.x, call.lengths
        states = self._start(x, call.initial_state)
        valid = None
        if lengths is not None:
            valid = torch.arange(x.shape[1], device=x.device)[:, None, None] < lengths[:, None]
        shows_state = self.plan.rules == ("previous_first_state",) and lengths is not None
        outputs: list[Tensor] = []
        for t, step in enumerate(x.unbind(dim=1)):
            y, new = self._step(step, states)
            if valid is not None:
                new = tuple(torch.where(valid[t], a, b) for a, b in zip(new, states, strict=True))
            states = new
            outputs.append(torch.cat((y, states[0]), dim=1) if shows_state else y)
        if not outputs:
            width = self.sizes.output + shows_state * self.sizes.states[0]
            return (x.new_zeros(x.shape[0], 0, width),), (states,)
        return (zero_past(torch.stack(outputs, dim=1), lengths),), (states,)

    def _start(self, x: Tensor, initial_state: tuple[State, ...] | None) -> State:
        if initial_state is None and self.gives_states and not self.from_zeros:
            return initial_states(self.cell, self.layer, x, x.shape[0])
        if initial_state is None:
            return tuple(x.new_zeros(x.shape[0], size) for size in self.sizes.states)
        check_dtypes(x, initial_state, x, "initial_state")
        check_states(initial_state, [(x.shape[0], size) for size in self.sizes.states])
        return initial_state[0]

    def _step(self, x: Tensor, states: State) -> tuple[Tensor, State]:
        result = self.cell(x, states)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._wrong(f"{type(result).__name__}", "a pair is expected: (output, states)")
        y, new = result
        new = (new,) if isinstance(new, Tensor) else tuple(new)
        rows, wanted = x.shape[0], (self.sizes.output, *self.sizes.states)
        if len(new) != len(states):
            raise self._wrong(f"{len(new)} states", f"state_size= declares {len(states)}")
        for number, (tensor, size) in enumerate(zip((y, *new), wanted, strict=True)):
            what = f"state {number - 1}" if number else "an output"
            if not isinstance(tensor, Tensor):
                raise self._wrong(f"{what} of type {type(tensor).__name__}", "a tensor is expected")
            if tensor.shape != (rows, size):
                option = "state_size" if number else "output_size"
                raise self._wrong(
                    f"{what} of shape {format_shape(tuple(tensor.shape))}",
                    f"{option}= says {format_shape((rows, size))}",
                )
        return y, new

    def _wrong(self, returned: str, advice: str) -> PluginError:
        return PluginError(
            f"{shown(self.layer)}: its module returns {returned}", advice, place=self.layer.place
        )


def split_first_state(module: CustomRNN, output: Tensor) -> tuple[Tensor, Tensor]:
    """Split a loop's result into outputs (B, T, Y) and what follows them on the last axis.

    With ``masked_output="previous_first_state"`` the first states follow; else nothing does.
    """
    width = module.sizes.output
    return output[..., :width], output[..., width:]


def initial_states(cell: nn.Module, layer: LayerSpec, like: Tensor, rows: int) -> State:
    """Ask a cell's module for the states before the first step, in the dtype and place of ``like``.

    Raises:
        PluginError: its tensors do not fit ``state_size=``.
    """
    given = cast(Any, cell).get_initial_state(rows)
    states = (given,) if isinstance(given, Tensor) else tuple(given)
    found = tuple(state.to(like) for state in states)
    wanted = [(rows, size) for size in sizes_of(layer).states]
    if [state.shape for state in found] != wanted:
        raise PluginError(
            f"{shown(layer)}: its get_initial_state returns "
            f"{', '.join(format_shape(tuple(state.shape)) for state in found)}",
            f"state_size= says {', '.join(map(format_shape, wanted))}",
            place=layer.place,
        )
    return found


def _check_method(cell: nn.Module, layer: LayerSpec) -> None:
    """Refuse a plugin whose words and whose module differ about the initial states."""
    own = custom_layer_of(layer)
    stated = own is not None and own.initial_state
    has_method = callable(getattr(cell, "get_initial_state", None))
    if stated == "own" and not has_method:
        raise PluginError(
            f'{shown(layer)}: it says initial_state="own", and its module has no get_initial_state',
            "write that method, (rows) -> states, as in the Keras class",
            place=layer.place,
        )
    if stated is None and has_method:
        raise PluginError(
            f"{shown(layer)}: its module has get_initial_state, which is not called",
            'say initial_state="own" in the plugin, or "zeros"',
            place=layer.place,
        )


# ---- Stacks of cells ----------------------------------------------------------------------------


class StackedRNN(AnyRecurrent, nn.Module):
    """Cells as modules of one direction each; called as Keras calls its RNN.

    order: of the states that go in and out: (index of the cell, number of its states).
    """

    def __init__(
        self, cells: Sequence[nn.Module], order: Sequence[tuple[int, int]], plan: Plan
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.order = tuple(order)
        self.plan = plan

    def run_sequence(self, call: RnnCall) -> RnnResult:
        """Run the cells one after the other; one direction, so there is nothing to merge."""
        x, initial = call.x, self._split_states(call)
        first, states = self.order[0][0], []
        shows_state = self.plan.rules == ("previous_first_state",) and call.lengths is not None
        shown = x
        for number, cell in enumerate(self.cells):
            own = (initial[number],) if initial else None
            (x,), (state,) = cast(SequenceModule, cell).run_sequence(RnnCall(x, call.lengths, own))
            states.append(state)
            if number == first:
                x, shown = split_first_state(cell, x) if isinstance(cell, CustomRNN) else (x, x)
        if shows_state:
            x = torch.cat((x, shown), dim=-1)
        return (x,), (tuple(s for cell, _ in self.order for s in states[cell]),)

    def _split_states(self, call: RnnCall) -> dict[int, State]:
        """Return the initial states of each cell, none if none are given."""
        if call.initial_state is None:
            return {}
        (given,) = call.initial_state
        wanted = sum(count for _, count in self.order)
        if len(given) != wanted:
            raise ArgumentValueError(
                f"{wanted} states are expected, found {len(given)}", place="initial_state"
            )
        rest = iter(given)
        return {cell: tuple(next(rest) for _ in range(count)) for cell, count in self.order}
