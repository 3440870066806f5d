"""Which tensors of a port's run its outputs were computed from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Functions by which values leave torch: they may come back in any later tensor.
_LEAVING = frozenset(
    "item tolist numpy equal allclose is_nonzero __array__ __bool__ __contains__ __float__ "
    "__index__ __int__".split()
)


class Sources:
    """Notes from which memory each result of a function was computed.

    Views share the memory of their tensor: what is written into one is part of all.
    """

    def __init__(self, inputs: Iterable[Tensor], constants: Iterable[Tensor]) -> None:
        self._inputs = set(map(memory_of, inputs))
        constant = set(map(memory_of, constants))
        self._of: dict[int, set[int]] = {place: set() for place in self._inputs | constant}
        self._ends: set[int] = set()

    def note(self, name: str, arguments: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """Note the tensors that a function takes, and those that it returns or writes into."""
        places = {memory_of(one) for one in arguments}
        for place in places - self._of.keys():  # from elsewhere, maybe from any earlier tensor
            self._of[place] = set(self._of)
        for one in results:
            self._of.setdefault(memory_of(one), set()).update(places)
        if name in _LEAVING:
            self._ends |= places

    def end_at(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as outputs."""
        self._ends.update(map(memory_of, tensors))

    def used(self) -> set[int] | None:
        """Return the memory that the outputs were computed from; None if that is not known."""
        found = list(self._ends)
        known = set(found)
        for place in found:  # grows meanwhile
            more = self._of.get(place, set()) - known
            known |= more
            found += more
        return known | self._inputs if known & self._inputs else None


def memory_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, which its views share; 0 if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
