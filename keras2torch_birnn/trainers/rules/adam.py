"""Adam with AMSGrad and AdamW, Nadam, Adamax, Lamb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.compiled import Family
from keras2torch_birnn.trainers.options import Options
from keras2torch_birnn.trainers.rules.rule import EPSILON, Now, Rule, Slots, Tensors, option


@dataclass(frozen=True)
class _Moments(Rule):
    """Rules with two moments, which differ in how they use them."""

    beta_1: float = option(0.9)
    beta_2: float = option(0.999)
    epsilon: float = option(EPSILON)

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots; older files have all first moments before the second."""
        return (("m",), ("v",)) if self.family in ("keras2", "legacy") else (("m", "v"),)


def _follow(m: Tensors, v: Tensors, grads: Tensors, rule: _Moments, now: Now) -> None:
    """Update both moments."""
    foreach.lerp_(m, grads, now.weight(rule.beta_1))
    weight = now.weight(rule.beta_2)
    foreach.mul_(v, 1 - weight)
    now.add_squares(v, grads, weight)


@dataclass(frozen=True)
class Adam(_Moments):
    """Adam. epsilon is added to the root of the second moment as it is, other than in torch."""

    amsgrad: bool = option(False)
    ignored: ClassVar = ("adaptive_epsilon",)

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots; Keras 2 has a third one without AMSGrad, too."""
        return (*super().slots(), ("v_hat",)) if self.amsgrad else super().slots()

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by p -= a m / (sqrt(v) + epsilon); a = rate sqrt(1 - b2^t) / (1 - b1^t)."""
        m, v, one = slots["m"], slots["v"], now.exact(1)
        _follow(m, v, grads, self, now)
        step = now.exact(now.step)
        rise = np.sqrt(one - now.cast(self.beta_2) ** step)
        alpha = now.exact(now.rate) * rise / (one - now.cast(self.beta_1) ** step)
        if self.amsgrad:
            foreach.maximum_(slots["v_hat"], v)
            v = slots["v_hat"]
        root = list(foreach.sqrt(v))
        foreach.add_(root, self.epsilon)
        foreach.addcdiv_(params, m, root, -float(alpha))


@dataclass(frozen=True)
class Adamax(_Moments):
    """Adam with the largest gradient in place of the second moment."""

    left: ClassVar = "all"

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by u = max(b2 u, |g|); p -= rate m / ((1 - b1^t) (u + epsilon))."""
        m, u = slots["m"], slots["v"]
        foreach.lerp_(m, grads, now.weight(self.beta_1))
        older = self.family in ("keras2", "legacy")
        foreach.mul_(u, float(now.cast(self.beta_2)) if older else self.beta_2)
        sizes = list(foreach.abs(grads))
        for number, rows in now.rows.items():
            sizes[number] = rows.dense(grads[number], rows.values.abs())
        foreach.maximum_(u, sizes)
        below = now.exact(1) - now.cast(self.beta_1) ** now.exact(now.step)
        largest = list(foreach.add(u, self.epsilon))
        foreach.addcdiv_(params, m, largest, -float(now.exact(now.rate) / below))


@dataclass(frozen=True)
class Nadam(_Moments):
    """Adam with Nesterov's momentum, whose factors have a schedule and a running product."""

    decay: float = option(0.004)
    ignored: ClassVar = ("schedule_decay",)  # another name of the decay
    left: ClassVar = "weights"

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file; the schedule is fixed in newer optimizers."""
        older = family in ("keras2", "legacy")
        decay = options.number("schedule_decay", "decay", default=0.004) if older else 1.0
        return super().parse(options, family, decay=decay)

    def shared(self) -> Mapping[str, float]:
        """Return the product of the factors so far, and how often it was multiplied."""
        if self.family == "tf.keras":
            return {"product": 1.0, "count": 1.0}
        return {"product": 1.0}

    def _factor(self, step: int, now: Now) -> float:
        power = now.cast(0.96) ** (now.exact(step) * now.exact(self.decay))
        return float(now.cast(self.beta_1) * (now.exact(1) - now.exact(0.5) * power))

    def _products(self, factor: float, now: Now) -> Iterator[tuple[float, list[int]]]:
        """Yield the product of the factors up to this step, and the parameters that it is for.

        tf.keras counts multiplications, and not steps: a loaded model, whose count starts anew,
        catches up by multiplying for one variable after another.
        """
        shared = now.shared
        if self.family != "tf.keras":
            own = factor
            if self.family == "keras3":  # there from the numbers of Python, elsewhere rounded
                own = self.beta_1 * (1.0 - 0.5 * 0.96**now.step)
            shared["product"] = float(now.exact(shared["product"]) * now.exact(own))
            yield shared["product"], list(range(len(now.owners)))
            return
        for owner in dict.fromkeys(now.owners):
            if shared["count"] != now.step + 1:
                shared["product"] = float(now.exact(shared["product"]) * now.exact(factor))
                shared["count"] += 1
            yield shared["product"], [i for i, one in enumerate(now.owners) if one == owner]

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Combine the first moment at the next step with the gradient; see Dozat 2015."""
        m, v = slots["m"], slots["v"]
        older: Family = "keras2" if self.family == "keras2" else "legacy"
        _follow(m, v, grads, self, replace(now, family=older))  # every Nadam casts its betas
        factor, next_factor = self._factor(now.step, now), self._factor(now.step + 1, now)
        root = foreach.div(v, float(now.exact(1) - now.cast(self.beta_2) ** now.exact(now.step)))
        foreach.sqrt_(root)
        foreach.add_(root, self.epsilon)
        for product, at in self._products(factor, now):
            by = next_factor / (1 - product * next_factor)
            ahead = foreach.mul([m[i] for i in at], by)
            by = (1 - factor) / (1 - product)
            foreach.add_(ahead, [grads[i] for i in at], alpha=by)
            some, below = [params[i] for i in at], [root[i] for i in at]
            foreach.addcdiv_(some, list(ahead), below, -now.rate)


@dataclass(frozen=True)
class Lamb(_Moments):
    """Adam whose step for each variable is as long as the variable, times the rate."""

    of_whole_variables: ClassVar = True

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by u = m' / (sqrt(v') + epsilon); p -= rate |p| / |u| u; ' without the bias."""
        m, v, one, step = slots["m"], slots["v"], now.exact(1), now.exact(now.step)
        _follow(m, v, grads, self, now)
        below = foreach.div(v, float(one - now.cast(self.beta_2) ** step))
        foreach.sqrt_(below)
        foreach.add_(below, self.epsilon)
        updates = foreach.div(m, float(one - now.cast(self.beta_1) ** step))
        foreach.div_(updates, below)
        for param, update in zip(params, updates, strict=True):
            length, of_update = param.square().sum(), update.square().sum()
            ratio = torch.where((length > 0) & (of_update > 0), (length / of_update).sqrt(), 1.0)
            param.sub_(update * ratio * now.rate)
