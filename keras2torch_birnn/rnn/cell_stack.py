"""A stack of cells, each a module that reads the outputs of the one before.

Keras runs all cells at one step before the next step; the numbers are the same, since no cell reads
a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, State
from keras2torch_birnn.rnn.custom_cell import CustomRNN, split_first_state
from keras2torch_birnn.rnn.modules import (
    AnyRecurrent,
    Plan,
    SequenceModule,
)


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
