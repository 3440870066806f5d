"""Adagrad, Adadelta, RMSprop: gradients divided by the root of an average of their squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.compiled import Family, is_experimental
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.rules.rule import EPSILON, Now, Rule, Slots, Tensors, option


def _root(squares: Tensors, epsilon: float, *, inside: bool) -> Tensors:
    """Return the roots of averages of squares, with epsilon inside of the root or added to it."""
    if inside:
        root = list(foreach.add(squares, epsilon))
        foreach.sqrt_(root)
        return root
    root = list(foreach.sqrt(squares))
    foreach.add_(root, epsilon)
    return root


@dataclass(frozen=True)
class Adagrad(Rule):
    """The sum of all squares, which starts from a number of the options."""

    epsilon: float = option(EPSILON)
    first: float = option(0.1, "initial_accumulator_value")
    slot_names: ClassVar = (("accumulator",),)

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file."""
        usual = 0.0 if family == "keras2" else 0.1
        first = options.number("initial_accumulator_value", default=usual)
        rounds = family == "keras3" and options.on_tensorflow
        return super().parse(options, family, first=single(first) if rounds else first)

    def start(self, slot: str) -> float:
        """Return the value that a new slot is filled with."""
        return self.first

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by a += g^2; p -= rate g / sqrt(a + epsilon), older: sqrt(a) + epsilon."""
        squares = slots["accumulator"]
        now.add_squares(squares, grads, 1.0)
        root = _root(squares, self.epsilon, inside=self.family in ("keras3", "tf.keras"))
        foreach.addcdiv_(params, grads, root, -now.rate)


@dataclass(frozen=True)
class Adadelta(Rule):
    """Steps of the size of the steps before."""

    rho: float = option(0.95)
    epsilon: float = option(EPSILON)
    left: ClassVar = "all"

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots."""
        older = self.family in ("keras2", "legacy")
        return (("squares",), ("steps",)) if older else (("squares", "steps"),)

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by a = rho a + (1 - rho) g^2; d = sqrt((s + e) / (a + e)) g; p -= rate d."""
        squares, steps = slots["squares"], slots["steps"]
        rho = float(now.cast(self.rho)) if self.family == "legacy" else self.rho
        foreach.mul_(squares, rho)
        now.add_squares(squares, grads, 1 - rho)
        step = _root(steps, self.epsilon, inside=True)
        foreach.div_(step, _root(squares, self.epsilon, inside=True))
        of_rows = {i: step[i].square() * rows.squares(grads[i]) for i, rows in now.rows.items()}
        foreach.mul_(step, grads)
        foreach.add_(params, step, alpha=-now.rate)
        foreach.mul_(step, step)
        for number, squared in of_rows.items():
            step[number] = squared
        foreach.mul_(steps, rho)
        foreach.add_(steps, step, alpha=1 - rho)


@dataclass(frozen=True)
class RMSprop(Rule):
    """A moving average of squares; momentum is added to what was divided."""

    rho: float = option(0.9)
    epsilon: float = option(EPSILON)
    momentum: float = option(0.0)
    centered: bool = option(False)

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file."""
        if cls is RMSprop and is_experimental(family, options.version):
            return ExperimentalRMSprop.parse(options, family)
        return super().parse(options, family)

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots."""
        momentum = (("momentum",),) if self.momentum else ()
        return (("squares",), *momentum, *((("mean",),) if self.centered else ()))

    def left_alone(self) -> Literal["", "weights", "all"]:
        """Tell what OptimizerV2 leaves alone: without momentum nothing."""
        return "all" if self.momentum else ""

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Divide the gradient by the root of the average of squares, less that of its mean.

        epsilon is inside of the root, but in older rules without momentum.
        """
        squares = slots["squares"]
        older = self.family in ("keras2", "legacy")
        weight = now.weight(self.rho)
        foreach.mul_(squares, float(now.cast(self.rho)) if older else self.rho)
        now.add_squares(squares, grads, weight)
        if self.centered:
            mean = slots["mean"]
            foreach.lerp_(mean, grads, weight)
            squares = list(foreach.addcmul(squares, mean, mean, -1.0))
        root = _root(squares, self.epsilon, inside=not older or bool(self.momentum))
        if not self.momentum:
            foreach.addcdiv_(params, grads, root, -now.rate)
            return
        steps = slots["momentum"]
        foreach.mul_(steps, float(now.cast(self.momentum)) if older else self.momentum)
        foreach.addcdiv_(steps, grads, root, now.rate)
        foreach.sub_(params, steps)


@dataclass(frozen=True)
class ExperimentalRMSprop(RMSprop):
    """RMSprop of ``optimizers.experimental`` in tf.keras 2.10.

    Where it is centered, it averages squares a second time, and keeps the difference as the first
    average. The learning rate is outside of the momentum.
    """

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by v = rho v + (1 - rho) g^2; m = momentum m + g / (sqrt(v) + e); p -= rate m."""
        squares = slots["squares"]
        averages = [squares, slots["mean"]] if self.centered else [squares]
        for average in averages:
            foreach.mul_(average, self.rho)
            now.add_squares(average, grads, 1 - self.rho)
        if self.centered:
            foreach.addcmul_(squares, slots["mean"], slots["mean"], -1.0)
        root = _root(squares, self.epsilon, inside=False)
        if not self.momentum:
            foreach.addcdiv_(params, grads, root, -now.rate)
            return
        steps = slots["momentum"]
        foreach.mul_(steps, self.momentum)
        foreach.addcdiv_(steps, grads, root)
        foreach.add_(params, steps, alpha=-now.rate)
