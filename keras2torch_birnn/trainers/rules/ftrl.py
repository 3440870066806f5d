"""Ftrl: follow the regularized leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from keras2torch_birnn.trainers.compiled import Family
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.rules.rule import Now, Rule, Slots, Tensors, option

_SCALED = ("2.4.", "2.5.")  # versions of tf.keras; that of TensorFlow 2.3 is 2.4, too


@dataclass(frozen=True)
class Ftrl(Rule):
    """Weights as the solution of a problem with penalties l1 and l2, from sums of gradients.

    ``scaled``: where gradients are dense and there is a shrinkage, the slot ``linear`` holds the
    sum times the learning rate. The operation of TensorFlow 2.3 to 2.5 does so.
    """

    power: float = option(-0.5, "learning_rate_power")
    first: float = option(0.1, "initial_accumulator_value")
    l1: float = option(0.0, "l1_regularization_strength")
    l2: float = option(0.0, "l2_regularization_strength")
    shrinkage: float = option(0.0, "l2_shrinkage_regularization_strength")
    beta: float = option(0.0)
    scaled: bool = False
    slot_names: ClassVar = (("accumulator", "linear"),)
    left: ClassVar = "all"

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file."""
        first = options.number("initial_accumulator_value", default=0.1)
        rounds = family != "legacy" and options.on_tensorflow
        scaled = family == "legacy" and options.version.startswith(_SCALED)
        return super().parse(
            options, family, first=single(first) if rounds else first, scaled=scaled
        )

    def start(self, slot: str) -> float:
        """Return the value that a new slot is filled with."""
        return self.first if slot == "accumulator" else 0.0

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Add to both sums, and solve for the weights."""

        def cast(value: float) -> float:
            return float(now.cast(value)) if self.family == "legacy" else value

        rate, power, l1 = now.rate, cast(self.power), cast(self.l1)
        l2 = cast(self.l2) + cast(self.beta) / (2 * rate)
        befores = [squares.pow(-power) for squares in slots["accumulator"]]
        now.add_squares(slots["accumulator"], grads, 1.0)
        pairs = zip(params, grads, slots["accumulator"], slots["linear"], befores, strict=True)
        for number, (param, grad, squares, linear, before) in enumerate(pairs):
            scaled = self.scaled and self.shrinkage > 0 and number not in now.tables
            by = rate if scaled else 1.0
            after = squares.pow(-power)
            linear.add_(grad, alpha=by).add_(param, alpha=2 * cast(self.shrinkage) * by)
            linear.sub_((after - before).mul_(param).mul_(by / rate))
            quadratic = after.mul_(by / rate).add_(2 * l2 * by)
            param.copy_(linear.clamp(-l1 * by, l1 * by).sub_(linear).div_(quadratic))
