"""Types of a call of ``BiLSTM``, ``BiGRU`` and ``BiRNN``, for type checkers and editors.

torch types the call of every module as ``Any``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# After merge_mode None the output is a pair, which no type of the call can tell. A tensor can be
# unpacked as well; a PackedSequence has four parts, so that the Any of a union accepts its pair.
MergedPacked: TypeAlias = PackedSequence | Any

FirstStates = TypeVar("FirstStates", contravariant=True)
LastStates = TypeVar("LastStates", covariant=True)


class TypedCall(Protocol[FirstStates, LastStates]):
    """Call of a stack. FirstStates: the type of ``hx``; LastStates: that of the last states."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: FirstStates | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | int | None = None,
    ) -> tuple[Tensor, LastStates]: ...

    @overload
    def __call__(
        self, input: PackedSequence, hx: FirstStates | None = None
    ) -> tuple[MergedPacked, LastStates]: ...
