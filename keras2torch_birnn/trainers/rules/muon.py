"""Muon: matrices take steps of orthogonal matrices, other variables those of Adam."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_MUON_ITERATIONS
from keras2torch_birnn.trainers.compiled import Family
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.rules.adam import Adam
from keras2torch_birnn.trainers.rules.rule import EPSILON, Now, Rule, Slots, Tensors, option
from keras2torch_birnn.trainers.variables import Variable

_SMALLEST_NORM = 1e-7
_PLACE = "optimizer"
_HOW_ELSE = "exclude layers by names of their own, or make the optimizer in torch"


@dataclass(frozen=True)
class Muon(Rule):
    """Muon with the Adam of variables that are no matrices, or excluded.

    ``a``, ``b``, ``c``: factors of the polynomial of degree 5 whose ``iterations`` bring singular
    values near 1. ``scale``: of steps, times the root of the larger size; None: they are as they
    come out. ``excluded``: patterns in the paths of variables. ``beta_1``, ``beta_2``, ``epsilon``:
    of Adam; ``ratio``: of its rate to the common one; ``adam_decay``: its weight decay.
    """

    beta_1: float = option(0.9, "adam_beta_1")
    beta_2: float = option(0.999, "adam_beta_2")
    epsilon: float = option(EPSILON)
    ratio: float = option(1.0, "adam_lr_ratio")
    adam_decay: float = option(0.004, "adam_weight_decay")
    momentum: float = option(0.95)
    nesterov: bool = option(True)
    a: float = option(3.4445, "muon_a")
    b: float = option(-4.7750, "muon_b")
    c: float = option(2.0315, "muon_c")
    iterations: int = option(5, "ns_steps")
    scale: float | None = option(0.2, "rms_rate")
    excluded: tuple[re.Pattern[str], ...] = option((), "exclude_layers")
    excludes_embeddings: bool = option(True, "exclude_embeddings")
    slot_names: ClassVar = (("m", "v"),)
    of_whole_variables: ClassVar = True

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file; null stands for no decay, and for no scale."""
        iterations = options.whole("ns_steps", default=5)
        if not 0 <= iterations <= MAX_MUON_ITERATIONS:
            raise InvalidModelFileError(f"ns_steps={iterations}", "refused", place=_PLACE)
        return super().parse(
            options,
            family,
            adam_decay=options.optional("adam_weight_decay", default=0.004) or 0.0,
            iterations=iterations,
            scale=options.optional("rms_rate", default=0.2),
            excluded=options.patterns("exclude_layers"),
        )

    @property
    def adam(self) -> Adam:
        """The rule of the other variables."""
        return Adam(self.family, self.beta_1, self.beta_2, self.epsilon)

    def _takes_adam(self, variable: Variable) -> bool:
        """Tell whether a variable is updated by Adam.

        Raises:
            UnsupportedOptionError: ``load_model`` would decide otherwise than the model before it
                was saved, because the pattern is in the name of what is around the layer.
        """
        if len(variable.shape) != 2:
            return True
        loaded, saved = (
            self._excludes("/".join((*some, variable.path))) for some in ((), variable.around)
        )
        if loaded != saved:
            whole = "/".join((*variable.around, variable.path))
            raise UnsupportedOptionError(
                f"{printable(whole)} is excluded from Muon by the name of a wrapper or model, "
                "which Keras' load_model does not see",
                _HOW_ELSE,
                place=_PLACE,
            )
        return loaded

    def _excludes(self, path: str) -> bool:
        of_embedding = self.excludes_embeddings and "embedding" in path.lower()
        return of_embedding or any(one.search(path) for one in self.excluded)

    def slot_shape(self, slot: str, variable: Variable) -> tuple[int, ...] | None:
        """Return the shape of a slot; only Adam has a second moment."""
        return variable.shape if slot == "m" or self._takes_adam(variable) else None

    def weight_decay(self, variable: Variable, common: float) -> float:
        """Return the weight decay of a variable."""
        return self.adam_decay if self._takes_adam(variable) else common

    def decays(self) -> bool:
        """Tell whether Adam decays."""
        return self.adam_decay != 0

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by m = momentum m + g; p -= rate scale sqrt(size) orthogonal(g + momentum m)."""
        of_adam = replace(now, rate=float(now.exact(now.rate) * now.exact(self.ratio)))
        for number, (param, grad) in enumerate(zip(params, grads, strict=True)):
            m, v = slots["m"][number], slots["v"][number]
            if v.shape == param.shape:
                self.adam.apply([param], [grad], {"m": [m], "v": [v]}, of_adam.only(number))
                continue
            m.mul_(self.momentum).add_(grad)
            step = self._orthogonalize(grad + self.momentum * m if self.nesterov else m, now)
            scale = 1.0
            if self.scale is not None:
                root = math.sqrt(max(param.shape))
                scale = (root if now.on_tensorflow else single(root)) * self.scale
            param.sub_(step, alpha=now.rate * scale)

    def _orthogonalize(self, matrix: Tensor, now: Now) -> Tensor:
        """Bring the singular values of a matrix near 1 by Newton-Schulz iterations."""
        tall = matrix.shape[0] > matrix.shape[1]
        x: Tensor = matrix.mT if tall else matrix
        x = x / (torch.linalg.norm(now.rounded(x), dim=(0, 1)) + _SMALLEST_NORM)
        for _ in range(self.iterations):
            square = x @ x.mT
            x = self.a * x + (self.b * square + self.c * square @ square) @ x
        return x.mT if tall else x
