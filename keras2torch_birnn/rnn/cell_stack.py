"""A stack of cells: each a module of its own, the later ones reading what the earlier give.

Keras runs all cells at one step before it goes to the next; the numbers are the same, since no cell
looks at a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from keras2torch_birnn.rnn.call import Asked, Result, State
from keras2torch_birnn.rnn.modules import Plan, Sequences, recurrent_forward, shown_options


class StackedRNN(nn.Module):
    """Cells as modules of one direction each; called as Keras calls its RNN.

    ``order``: for the states that go in and out, whose they are: (number of the cell, how many).
    """

    carried: tuple[State, ...] | None = None
    forward: Any = recurrent_forward

    def __init__(
        self, cells: Sequence[nn.Module], order: Sequence[tuple[int, int]], plan: Plan
    ) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.order = tuple(order)
        self.plan = plan

    def run_sequence(self, asked: Asked) -> Result:
        """See ``Sequences``; one direction, so there is nothing to merge."""
        x, lengths, start, _, _ = asked
        begin: dict[int, State] = {}
        if start is not None:
            given = iter(start[0])
            begin = {cell: tuple(next(given) for _ in range(count)) for cell, count in self.order}
        outputs, states = [], []
        for number, cell in enumerate(self.cells):
            own = (begin[number],) if begin else None
            (x,), (state,) = cast(Sequences, cell).run_sequence(Asked(x, lengths, own))
            outputs.append(x)
            states.append(state)
        if self.plan.rules == ("previous_first_state",) and lengths is not None:
            x = torch.cat((x, outputs[0]), dim=-1)
        return (x,), (tuple(s for cell, _ in self.order for s in states[cell]),)

    def extra_repr(self) -> str:
        """Keras' options."""
        return ", ".join(shown_options(self.plan))
