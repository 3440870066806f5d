"""Keras' merge modes, in one table: how the outputs of the two directions become one tensor.

A mode is added here, and to ``codes.h`` and ``merged`` of the native library. Torch and NumPy are
imported only to concatenate.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

MergeName: TypeAlias = Literal["concat", "sum", "mul", "ave"]


class MergeMode(NamedTuple):
    """Facts about one merge mode.

    on_tensors: (B, ..., Hf) and (B, ..., Hb) -> the merged tensor; on_arrays: the same in NumPy.
    source: the expression in PyTorch source, of two others. native_code:
    ``enum K2tMerge``; "concat" is two outputs side by side. reduction: the method of a tensor that
    merges an axis of the directions, if there is one.
    """

    on_tensors: Callable[[Tensor, Tensor], Tensor]
    on_arrays: Callable[[Any, Any], Any]
    source: str
    native_code: int
    reduction: str | None = None


def _concat_tensors(forward: Tensor, backward: Tensor) -> Tensor:
    import torch

    return torch.cat((forward, backward), dim=-1)


def _concat_arrays(forward: Any, backward: Any) -> Any:
    import numpy as np

    return np.concatenate([forward, backward], axis=-1)


def _average(forward: Any, backward: Any) -> Any:
    return (forward + backward) / 2


# Without merge_mode None, which keeps both apart.
MERGE_MODES: Mapping[str, MergeMode] = {
    "concat": MergeMode(
        _concat_tensors, _concat_arrays, "torch.cat(({}, {}), dim=-1)", native_code=0
    ),
    "sum": MergeMode(operator.add, operator.add, "{} + {}", 1, reduction="sum"),
    "mul": MergeMode(operator.mul, operator.mul, "{} * {}", 2),
    "ave": MergeMode(_average, _average, "({} + {}) / 2", 3, reduction="mean"),
}


def merge_outputs(outputs: tuple[Tensor, ...], merge: str | None) -> tuple[Tensor, ...]:
    """Merge the outputs of two directions into one; one output, or no mode, stays as it is."""
    if merge is None or len(outputs) == 1:
        return outputs
    return (MERGE_MODES[merge].on_tensors(*outputs),)
