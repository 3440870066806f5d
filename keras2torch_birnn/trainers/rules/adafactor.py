"""Adafactor: of a matrix's squared gradients only the means of rows and columns are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from keras2torch_birnn.trainers.rules.rule import Now, Rule, Slots, Tensors, option
from keras2torch_birnn.trainers.variables import Variable


@dataclass(frozen=True)
class Adafactor(Rule):
    """Steps as large as the variable, times the rate; the last two axes of it are factored.

    ``power``: of the number of the step, 1 - the weight of old squares. ``epsilon``: added to
    squares. ``smallest``: size of a variable. ``limit``: root mean square of a step.
    """

    power: float = option(-0.8, "beta_2_decay")
    epsilon: float = option(1e-30, "epsilon_1")
    smallest: float = option(1e-3, "epsilon_2")
    limit: float = option(1.0, "clip_threshold")
    ignored: ClassVar = ("relative_step",)  # a rate above 1 / sqrt(step) is never used
    slot_names: ClassVar = (("rows", "columns", "v"),)
    of_whole_variables: ClassVar = True

    def slot_shape(self, slot: str, variable: Variable) -> tuple[int, ...] | None:
        """Return the shape of a slot; vectors are not factored."""
        shape = variable.shape
        if slot == "v":
            return shape
        if len(shape) < 2:
            return None
        return shape[:-1] if slot == "rows" else (*shape[:-2], shape[-1])

    def unused_numbers(self, variable: Variable) -> int:
        """Count the numbers that stand for the missing slots of a vector."""
        return 0 if len(variable.shape) >= 2 else 2

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by u = g / sqrt(v); p -= rate max(epsilon_2, |p|) u / max(1, |u| / limit).

        v = rows columns / mean of rows; |u| is the root of the mean of squares.
        """
        step, one = now.exact(now.step), now.exact(1)
        kept = one - step ** now.exact(self.power)
        rate = torch.from_numpy(np.asarray(np.minimum(now.exact(now.rate), one / np.sqrt(step))))
        smallest = float(now.cast(self.smallest))
        for number, (param, grad) in enumerate(zip(params, grads, strict=True)):
            looked_up = now.rows.get(number)
            squares = grad.square() if looked_up is None else looked_up.squares(grad)
            squares = squares + self.epsilon
            rows, columns, v = (slots[name][number] for name in ("rows", "columns", "v"))
            new = float(one - kept)
            if param.dim() < 2:
                v.mul_(float(kept)).add_(squares, alpha=new)
            else:
                rows.mul_(float(kept)).add_(_mean(squares, now, -1), alpha=new)
                columns.mul_(float(kept)).add_(_mean(squares, now, -2), alpha=new)
                share = rows / _mean(rows, now, -1).unsqueeze(-1)
                torch.mul(share.unsqueeze(-1), columns.unsqueeze(-2), out=v)
            root = v.sqrt()
            update = grad / root
            size = _mean(update.square(), now).sqrt()
            if looked_up is not None:  # that of the rows before they are added up
                parts = looked_up.values / root[looked_up.ids]
                size = (parts.square().sum() / grad.numel()).sqrt()
            update /= now.rounded((size / self.limit).clamp_min(1.0))
            length = _mean(param.square(), now).sqrt().clamp_min(smallest)
            param.sub_(update * (now.rounded(length) * now.rounded(rate)))


def _mean(tensor: Tensor, now: Now, axis: int | None = None) -> Tensor:
    return now.rounded(tensor.contiguous()).mean(axis).to(tensor.dtype)
