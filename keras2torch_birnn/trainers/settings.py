"""Options that all optimizers of Keras share: clipping, decay, averages of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.trainers.compiled import Family, OptimizerConfig, runs_on_tensorflow
from keras2torch_birnn.trainers.options import Options, single
from keras2torch_birnn.trainers.schedules import Schedule, find_nominal_rate, parse_schedule

Clip = Literal["by variable", "by all", "by all, as Keras 2", "by all, as Keras 3", "by value"]
# loss_scale_factor: of the loss, and back: it changes nothing.
_COMMON = frozenset(
    "name learning_rate lr decay weight_decay clipnorm clipvalue global_clipnorm use_ema "
    "ema_momentum ema_overwrite_frequency jit_compile is_legacy_optimizer loss_scale_factor "
    "gradient_accumulation_steps".split()
)
_DEFAULT_RATE: Mapping[str, float] = {"sgd": 0.01}


@dataclass(frozen=True)
class Settings:
    """Settings of an optimizer besides its rule.

    ``class_name``: that of Keras, in lower case. ``rate``: the learning rate, or that of a
    schedule from which changes are measured, never 0. ``decay``: of the rate, by iterations.
    ``clips``: kind and limit, in order. ``average``: momentum of the moving averages of the
    weights, None without them; they replace the weights every ``overwrite`` steps (0: never).
    ``accumulate``: steps whose gradients
    are averaged for one update. ``backend``: of Keras, "" if the file does not say it.
    ``scaled``: steps whose gradients are not finite are left out, as where a loss is scaled.
    """

    class_name: str
    family: Family
    rate: float
    schedule: Schedule | None
    decay: float
    weight_decay: float
    clips: tuple[tuple[Clip, float], ...]
    average: float | None
    overwrite: int
    accumulate: int
    backend: str = ""
    scaled: bool = False

    @property
    def on_tensorflow(self) -> bool:
        """Tell whether this is Keras on TensorFlow."""
        return runs_on_tensorflow(self.backend)

    def rate_at(self, iterations: int, base: float, *, double: bool) -> float:
        """Return the learning rate of a step; base: the rate that is set now."""
        exact: Any = np.float64 if double else np.float32
        if self.schedule is not None:
            kind = np.float32 if self.on_tensorflow else exact
            rate = exact(self.schedule(iterations, kind)) * exact(base / self.rate)
        else:
            rate = exact(single(base) if self.family == "legacy" else base)
        if not self.decay:
            return float(rate)
        decay = exact(single(self.decay) if self.family == "legacy" else self.decay)
        below = exact(1) + decay * exact(iterations)
        return float(rate / below if self.family == "legacy" else rate * (exact(1) / below))


def parse_settings(config: OptimizerConfig, rule_options: frozenset[str]) -> Settings:
    """Read the settings of an optimizer; ``rule_options``: the options that its rule reads.

    Raises:
        InvalidModelFileError: an option is broken; UnsupportedOptionError: an unknown one.
    """
    options = Options(config.config, "optimizer")
    options.check_names(_COMMON | rule_options)
    family = config.family
    found = config.config.get("learning_rate")
    schedule: Schedule | None = None
    if isinstance(found, Mapping):
        schedule = parse_schedule(found)
        rate = find_nominal_rate(schedule, found)
    else:
        default = _DEFAULT_RATE.get(config.class_name.lower(), 0.001)
        rate = options.number("learning_rate", "lr", default=default)
    averages = options.flag("use_ema")
    older = family in ("keras2", "legacy") and "decay" not in rule_options
    return Settings(
        config.class_name.lower(),
        family,
        rate,
        schedule,
        _positive(options, "decay") if older else 0.0,
        options.number("weight_decay"),
        _parse_clips(options, family),
        options.number("ema_momentum", default=0.99) if averages else None,
        options.whole("ema_overwrite_frequency") if averages else 0,
        options.whole("gradient_accumulation_steps"),
        config.backend,
        config.scaled,
    )


def _positive(options: Options, name: str) -> float:
    value = options.number(name)
    if value < 0:
        raise InvalidModelFileError(f"{name}={value} of an optimizer", "refused", place="optimizer")
    return value


def _parse_clips(options: Options, family: Family) -> tuple[tuple[Clip, float], ...]:
    """Return how gradients are clipped; newer optimizers clip in one way only."""
    norm, value = _positive(options, "clipnorm"), _positive(options, "clipvalue")
    every = _positive(options, "global_clipnorm")
    if family == "keras2":
        found: list[tuple[Clip, float]] = [("by all, as Keras 2", norm), ("by value", value)]
    elif family == "legacy":
        found = [("by value", value), ("by variable", norm), ("by all", every)]
    else:
        of_all: Clip = "by all, as Keras 3" if family == "keras3" else "by all"
        found = [("by variable", norm), (of_all, every), ("by value", value)]
    used = tuple((kind, limit) for kind, limit in found if limit)
    return used[:1] if family in ("tf.keras", "keras3") else used
