"""SGD with momentum, and Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from keras2torch_birnn.torch_private import foreach
from keras2torch_birnn.trainers.compiled import Family, is_experimental
from keras2torch_birnn.trainers.options import Options
from keras2torch_birnn.trainers.rules.rule import Now, Rule, Slots, Tensors, option


@dataclass(frozen=True)
class SGD(Rule):
    """Gradient descent. The learning rate is inside of the velocity, other than in torch.

    ``always``: there is a slot for the velocity without momentum, too, which nothing uses.
    """

    momentum: float = option(0.0)
    nesterov: bool = option(False)
    always: bool = False

    @classmethod
    def parse(cls, options: Options, family: Family, **computed: Any) -> Rule:
        """Read the options of a file."""
        newer = family == "tf.keras" and not is_experimental(family, options.version)
        return super().parse(options, family, always=family == "keras2" or newer)

    def slots(self) -> tuple[tuple[str, ...], ...]:
        """Return the names of the slots."""
        return (("momentum",),) if self.always or self.momentum else ()

    def left_alone(self) -> Literal["", "weights", "all"]:
        """Tell what OptimizerV2 leaves alone: without momentum nothing."""
        return "all" if self.momentum else ""

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by v = momentum v - rate g; p += v, or momentum v - rate g by Nesterov."""
        if not self.slots():
            foreach.add_(params, grads, alpha=-now.rate)
            return
        velocity, momentum = slots["momentum"], float(now.cast(self.momentum))
        foreach.mul_(velocity, momentum)
        foreach.add_(velocity, grads, alpha=-now.rate)
        if self.nesterov:
            foreach.add_(params, velocity, alpha=momentum)
            foreach.add_(params, grads, alpha=-now.rate)
        else:
            foreach.add_(params, velocity)


@dataclass(frozen=True)
class Lion(Rule):
    """Steps of one size in the direction of the sign of a moving average."""

    beta_1: float = option(0.9)
    beta_2: float = option(0.99)
    slot_names: ClassVar = (("momentum",),)

    def apply(self, params: Tensors, grads: Tensors, slots: Slots, now: Now) -> None:
        """Step by p -= rate sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g."""
        m, b1, b2 = slots["momentum"], now.cast(self.beta_1), now.cast(self.beta_2)
        signs = foreach.mul(m, float(b1))
        foreach.add_(signs, grads, alpha=float(1 - b1))
        foreach.sign_(signs)
        foreach.add_(params, list(signs), alpha=-now.rate)
        foreach.mul_(m, float(b2))
        foreach.add_(m, grads, alpha=float(1 - b2))
