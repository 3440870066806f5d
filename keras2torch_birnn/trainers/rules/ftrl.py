"""Ftrl: follow the regularized leader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from keras2torch_birnn.trainers.compiled import Family
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.rules.rule import Now, Rule, Slots, Tensors

_SCALED = ("2.4.", "2.5.")  # versions of tf.keras; that of TensorFlow 2.3 is 2.4, too


@dataclass(frozen=True)
class Ftrl(Rule):
    """Weights as the solution of a problem with penalties l1 and l2, from sums of gradients.

    ``scaled``: where gradients are dense and there is a shrinkage, the slot ``linear`` holds the
    sum times the learning rate. The operation of TensorFlow 2.3 to 2.5 does so.
    """

    power: float
    first: float
    l1: float
    l2: float
    shrinkage: float
    beta: float
    scaled: bool
    known: ClassVar = frozenset(
        {
            "learning_rate_power",
            "initial_accumulator_value",
            "l1_regularization_strength",
            "l2_regularization_strength",
            "l2_shrinkage_regularization_strength",
            "beta",
        }
    )

    @classmethod
    def parse(cls, options: Options, family: Family) -> Ftrl:
        """Read the options of a file."""
        first = options.number("initial_accumulator_value", default=0.1)
        rounds = family != "legacy" and options.on_tensorflow
        return cls(
            family,
            options.number("learning_rate_power", default=-0.5),
            single(first) if rounds else first,
            options.number("l1_regularization_strength"),
            options.number("l2_regularization_strength"),
            options.number("l2_shrinkage_regularization_strength"),
            options.number("beta"),
            scaled=family == "legacy" and options.version.startswith(_SCALED),
        )

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots."""
        return (("accumulator", "linear"),)

    def start(self, slot: str) -> float:
        """Return the value that a new slot is filled with."""
        return self.first if slot == "accumulator" else 0.0

    def left_alone(self) -> Literal["", "weights", "all"]:
        """Tell what OptimizerV2 leaves as it is in rows that were not looked up."""
        return "all"

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Add to both sums, and solve for the weights."""

        def option(value: float) -> float:
            return float(now.cast(value)) if self.family == "legacy" else value

        rate, power, l1 = now.rate, option(self.power), option(self.l1)
        l2 = option(self.l2) + option(self.beta) / (2 * rate)
        befores = [squares.pow(-power) for squares in slots["accumulator"]]
        now.add_squares(slots["accumulator"], grads, 1.0)
        pairs = zip(params, grads, slots["accumulator"], slots["linear"], befores, strict=True)
        for number, (param, grad, squares, linear, before) in enumerate(pairs):
            scaled = self.scaled and self.shrinkage > 0 and number not in now.tables
            by = rate if scaled else 1.0
            after = squares.pow(-power)
            linear.add_(grad, alpha=by).add_(param, alpha=2 * option(self.shrinkage) * by)
            linear.sub_((after - before).mul_(param).mul_(by / rate))
            quadratic = after.mul_(by / rate).add_(2 * l2 * by)
            param.copy_(linear.clamp(-l1 * by, l1 * by).sub_(linear).div_(quadratic))
