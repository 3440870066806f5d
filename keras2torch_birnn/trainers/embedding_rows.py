"""Gradients of an Embedding as TensorFlow has them: a row for each id that was looked up.

Keras 3 on TensorFlow squares, compares and clips these rows before repeated ids are added up;
tf.keras clips them so, and Keras 2 by value. Some rules of OptimizerV2 update only the rows of ids
that were looked up, even where their gradient is zero. torch adds the rows up at once, so they are
recorded here.

They count only as long as their sum is the gradient: a penalty of the table, another use of it,
or a change of the gradient makes it dense in Keras, too, or in torch alone (a common norm that the
caller clips by), and then the rule for dense gradients is used. A mean over processes has the rows
of all of them. Hooks are no part of a graph of ``torch.compile``, so an operation is, which gives
the rows to their record when the graph runs.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from keras2torch_birnn.layers.normalization import is_distributed
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch


@dataclass(frozen=True)
class Rows:
    """The gradient of a table (rows, columns): ``ids`` (n,), ``values`` (n, columns)."""

    ids: Tensor
    values: Tensor

    def dense(self, like: Tensor, values: Tensor) -> Tensor:
        """Add up values of the rows of each id: a tensor such as the table."""
        return torch.zeros_like(like).index_add_(0, self.ids, values.to(like.dtype))

    def squares(self, like: Tensor) -> Tensor:
        """Add up the squares of the rows."""
        return self.dense(like, self.values.square())

    def makes(self, grad: Tensor) -> bool:
        """Tell whether the sum of the rows is this gradient, but for rounding."""
        total = self.dense(grad, self.values)
        size = self.dense(grad, self.values.abs())
        tolerance = 64 * torch.finfo(grad.dtype).eps
        return bool(((total - grad).abs() <= tolerance * size).all())


class RecordedRows:
    """Rows of all look-ups of a table since the last step.

    ``key``: by which a graph finds it. A copy is a new and empty one.
    """

    def __init__(self) -> None:
        self.key = next(_KEYS)
        self.ids: list[Tensor] = []
        self.values: list[Tensor] = []
        _BY_KEY[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle it as a new one."""
        return RecordedRows, ()

    def add(self, ids: Tensor, grad: Tensor) -> None:
        """Record what came back for a look-up."""
        self.ids.append(ids.detach().reshape(-1))
        self.values.append(grad.detach().reshape(-1, grad.shape[-1]))

    def clear(self) -> None:
        """Forget all."""
        self.ids.clear()
        self.values.clear()

    def rows(self, grad: Tensor, *, together: bool) -> Rows | None:
        """Return all rows, None if the gradient is another than their sum.

        together: it is a mean over processes, which all call this.
        """
        ids = torch.cat(
            [grad.new_empty(0, dtype=torch.long), *(i.to(grad.device) for i in self.ids)]
        )
        values = torch.cat([grad[:0], *(one.to(grad) for one in self.values)])
        if together:
            ids, values = _of_all_processes(ids), _of_all_processes(values) / dist.get_world_size()
        found = Rows(ids, values)
        return found if len(ids) and found.makes(grad) else None

    def why_dense(self, grad: Tensor, *, together: bool) -> str:
        """Return a warning where the gradient has no rows, but has them in Keras; "" if it has not.

        It is dense in Keras, too, where the table has a penalty, or another use.
        """
        if is_distributed() and not together:
            why = _DENSE.format("the mean over processes (DistributedDataParallel) is not what")
            return f"{why}; {_HOW_TO_SYNCHRONIZE}"
        if not self.ids and bool(grad.any()):
            return _DENSE.format("functional calls do not show the rows that")
        return ""


_KEYS = count()
_BY_KEY: MutableMapping[int, RecordedRows] = WeakValueDictionary()


def _of_all_processes(own: Tensor) -> Tensor:
    """Put the rows of all processes one after another; their numbers may differ."""
    length = torch.tensor([len(own)], device=own.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    most = max(int(one) for one in lengths)
    padded = own.new_zeros((most, *own.shape[1:]))
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return torch.cat([rows[: int(one)] for rows, one in zip(found, lengths, strict=True)])


_DENSE = (
    "{} this model's Keras on TensorFlow squares, compares or clips one by one: the gradient of an "
    "Embedding is taken as a dense one, and the weights differ where ids are repeated or not used"
)
_HOW_TO_SYNCHRONIZE = (
    "call synchronize_rows() of the optimizer once in all processes that step together"
)
_ATTRIBUTE = "recorded_rows"


def record_rows(model: nn.Module) -> list[tuple[Tensor, RecordedRows]]:
    """Let all trained Embeddings of a model record their rows; return the tables and records."""
    found: list[tuple[Tensor, RecordedRows]] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            recorded = RecordedRows()
            found.append((module.weight, recorded))
            setattr(module, _ATTRIBUTE, recorded)
            module.register_forward_hook(_record)
    return found


def _record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if not output.requires_grad or is_exporting_by_torch():
        return None
    ids, recorded = inputs[0], getattr(module, _ATTRIBUTE)
    if torch.compiler.is_compiling():
        passed: Tensor = torch.ops.k2t.looked_up(output, ids, recorded.key)
        return passed

    def record(grads: Sequence[Tensor | None]) -> None:
        if grads[0] is not None:
            recorded.add(ids, grads[0])

    register_multi_grad_hook((output,), record)
    return None


# ---- in graphs ----------------------------------------------------------------------------------


@torch.library.custom_op("k2t::looked_up", mutates_args=())
def _looked_up(output: Tensor, ids: Tensor, key: int) -> Tensor:
    """Return what was looked up, as a new tensor."""
    return output.clone()


@torch.library.custom_op("k2t::came_back", mutates_args=())
def _came_back(grad: Tensor, ids: Tensor, key: int) -> Tensor:
    """Return the gradient of what was looked up, as a new tensor, and record it."""
    recorded = _BY_KEY.get(key)
    if recorded is not None:
        recorded.add(ids, grad)
    return grad.clone()


@_looked_up.register_fake
@_came_back.register_fake
def _like(tensor: Tensor, ids: Tensor, key: int) -> Tensor:
    return torch.empty_like(tensor)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.ids, ctx.key = inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.k2t.came_back(grad, ctx.ids, ctx.key), None, None


_looked_up.register_autograd(_backward, setup_context=_keep)
