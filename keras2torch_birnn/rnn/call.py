"""What a recurrent layer is asked for and what it gives, whichever engine runs it.

B batch, T time, F features, H units.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

# h (B, H), and an LSTM's c.
State: TypeAlias = tuple[Tensor, ...]
# Outputs (B, T, H) in the order of time, one per direction or one for both if they were to be
# merged; final states, one per direction.
Result: TypeAlias = tuple[tuple[Tensor, ...], tuple[State, ...]]


class Asked(NamedTuple):
    """One run of a layer.

    x: (B, T, F). lengths: (B,), the steps of each row that count, None if all do; outputs past
    them are zero, and a row without any keeps the state it had. start: a state for each direction,
    None for zeros. merge: how two directions become one output (a key of ``MERGE``), None to keep
    them apart. final: whether final states are wanted; an engine may give none where they are not.
    """

    x: Tensor
    lengths: Tensor | None = None
    start: tuple[State, ...] | None = None
    merge: str | None = None
    final: bool = True

    def states(self) -> list[Tensor]:
        """Those of ``start``, direction by direction."""
        return [s for state in self.start for s in state] if self.start else []
