"""Gradients of an Embedding as TensorFlow has them: a row for each id that was looked up.

Keras 3 on TensorFlow squares, compares and clips these rows before repeated ids are added up;
tf.keras clips them so, and Keras 2 by value. Some rules of OptimizerV2 update only the rows of ids
that were looked up, even where their gradient is zero. torch adds the rows up at once, so they are
recorded here.

They count only as long as their sum is the gradient: a penalty of the table, another use of it,
or a change of the gradient makes it dense in Keras, too, or in torch alone (a common norm that the
caller clips by, a mean over processes), and then the rule for dense gradients is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from keras2torch_birnn.layers.normalization import is_distributed


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


@dataclass
class RecordedRows:
    """Rows of all look-ups of a table since the last step."""

    ids: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, ids: Tensor, grad: Tensor) -> None:
        """Record what came back for a look-up."""
        self.ids.append(ids.detach().reshape(-1))
        self.values.append(grad.detach().reshape(-1, grad.shape[-1]))

    def clear(self) -> None:
        """Forget all."""
        self.ids.clear()
        self.values.clear()

    def rows(self, grad: Tensor) -> Rows | None:
        """Return all rows, None if the gradient is another than their sum."""
        if not self.ids or any(one.device != grad.device for one in self.ids):
            return None
        found = Rows(torch.cat(self.ids).long(), torch.cat(self.values).to(grad.dtype))
        return found if found.makes(grad) else None

    def why_dense(self, grad: Tensor) -> str:
        """Return a warning where the gradient has no rows, but has them in Keras; "" if it has not.

        It is dense in Keras, too, where the table has a penalty, or another use.
        """
        if not self.ids and bool(grad.any()):
            return _DENSE.format("torch.compile and functional calls do not show the rows that")
        if is_distributed():
            return _DENSE.format("the mean over processes (DistributedDataParallel) is not what")
        return ""


_DENSE = (
    "{} this model's Keras on TensorFlow squares, compares or clips one by one: the gradient of an "
    "Embedding is taken as a dense one, and the weights differ where ids are repeated or not used"
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


def _record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if output.requires_grad and not torch.compiler.is_compiling():
        ids, recorded = inputs[0], getattr(module, _ATTRIBUTE)

        def record(grads: Sequence[Tensor | None]) -> None:
            if grads[0] is not None:
                recorded.add(ids, grads[0])

        register_multi_grad_hook((output,), record)
