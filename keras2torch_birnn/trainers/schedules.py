"""Learning rates by iteration: Keras' schedules and the ``decay`` of its older optimizers.

TensorFlow computes a schedule in float32, whatever the weights are; Keras on other backends in the
dtype of the weights. Source: Keras 3.15 ``optimizers/schedules/learning_rate_schedule.py``;
tf.keras 2.4 to 2.15 has the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.trainers.options import Options

# The rate of an iteration, computed in float32 or float64.
Schedule: TypeAlias = Callable[[int, Any], float]
_Rate: TypeAlias = Callable[[int], float]
_PLACE = "optimizer/learning_rate"


def parse_schedule(config: Mapping[str, Any]) -> Schedule:
    """Parse a schedule as Keras writes it: ``class_name`` and ``config``.

    Raises:
        UnsupportedOptionError: a class that Keras does not have; InvalidModelFileError: broken.
    """
    name, found = config.get("class_name"), config.get("config")
    if not isinstance(name, str) or not isinstance(found, Mapping):
        raise InvalidModelFileError(
            "a learning rate without class_name, config", "refused", place=_PLACE
        )
    make = _SCHEDULES.get(name)
    if make is None:
        raise UnsupportedOptionError(
            f"the schedule {printable(name)}, which its own Python code defines",
            "compile with one of Keras' schedules, or use one of torch.optim.lr_scheduler",
            place=_PLACE,
        )
    options = Options(found, _PLACE)

    @cache
    def computed_in(kind: Any) -> _Rate:
        return make(options, kind)

    computed_in(np.float32)  # refuses broken options now
    return lambda iteration, kind: computed_in(kind)(iteration)


def find_nominal_rate(schedule: Schedule, config: Mapping[str, Any]) -> float:
    """Return the rate of a schedule from which changes of it are measured.

    That at its start; where that is 0 the first other one that it names, or 1 if it has none.
    """
    options = Options(config["config"], _PLACE)
    values = options.numbers("values") if "values" in options.values else []
    named = [options.number(name) for name in ("warmup_target", "end_learning_rate")]
    return next((rate for rate in (schedule(0, np.float32), *values, *named) if rate), 1.0)


def _start(options: Options, kind: Any) -> Any:
    return kind(options.number("initial_learning_rate"))


def _steps(options: Options, kind: Any, name: str = "decay_steps") -> Any:
    steps = options.number(name)
    if steps <= 0:
        raise InvalidModelFileError(f"{name}={steps} of a schedule", "refused", place=_PLACE)
    return kind(steps)


def _falling(options: Options, kind: Any, *, inverse: bool) -> _Rate:
    start, steps = _start(options, kind), _steps(options, kind)
    rate, stairs = kind(options.number("decay_rate")), options.flag("staircase")

    def at(iteration: int) -> float:
        p = kind(iteration) / steps
        p = np.floor(p) if stairs else p
        return float(start / (kind(1) + rate * p) if inverse else start * rate**p)

    return at


def _piecewise(options: Options, kind: Any) -> _Rate:
    boundaries, values = options.numbers("boundaries"), options.numbers("values")
    if len(boundaries) != len(values) - 1:
        raise InvalidModelFileError(
            f"a schedule of {len(boundaries)} boundaries and {len(values)} values",
            "refused",
            place=_PLACE,
        )
    # Keras casts them to the dtype of the iteration, which is a whole number.
    whole = [int(one) for one in boundaries]

    def at(iteration: int) -> float:
        return float(kind(values[sum(iteration > one for one in whole)]))

    return at


def _polynomial(options: Options, kind: Any) -> _Rate:
    start, steps = _start(options, kind), _steps(options, kind)
    end = kind(options.number("end_learning_rate", default=0.0001))
    power, cycle = kind(options.number("power", default=1.0)), options.flag("cycle")

    def at(iteration: int) -> float:
        step = kind(iteration)
        if cycle:
            length = steps * (kind(1) if iteration == 0 else np.ceil(step / steps))
        else:
            length, step = steps, min(step, steps)
        return float((start - end) * (kind(1) - step / length) ** power + end)

    return at


def _cosine(options: Options, kind: Any) -> _Rate:
    start, steps, alpha = _start(options, kind), _steps(options, kind), options.number("alpha")
    target, warmup = options.optional("warmup_target"), kind(options.number("warmup_steps"))

    def decayed(step: Any, top: Any) -> float:
        wave = kind(0.5) * (kind(1) + kind(math.cos(kind(math.pi) * (step / steps))))
        return float(top * (kind(1 - alpha) * wave + kind(alpha)))

    def at(iteration: int) -> float:
        step = kind(iteration)
        if target is None:
            return decayed(min(step, steps), start)
        step, top = min(step, steps + warmup), kind(target)
        if step < warmup:
            return float((top - start) * (step / warmup) + start)
        return decayed(step - warmup, top)

    return at


def _cosine_restarts(options: Options, kind: Any) -> _Rate:
    start, first = _start(options, kind), _steps(options, kind, "first_decay_steps")
    longer = kind(options.number("t_mul", default=2.0))
    lower = kind(options.number("m_mul", default=1.0))
    alpha = kind(options.number("alpha"))
    if longer < 1:
        raise InvalidModelFileError(f"t_mul={longer} of a schedule", "refused", place=_PLACE)

    def at(iteration: int) -> float:
        done = kind(iteration) / first
        if longer == 1:
            restarts = np.floor(done)
            done -= restarts
        else:
            restarts = np.floor(np.log(kind(1) - done * (kind(1) - longer)) / np.log(longer))
            passed = (kind(1) - longer**restarts) / (kind(1) - longer)
            done = (done - passed) / longer**restarts
        wave = kind(0.5) * lower**restarts * (kind(1) + kind(math.cos(kind(math.pi) * done)))
        return float(start * ((kind(1) - alpha) * wave + alpha))

    return at


_SCHEDULES: Mapping[str, Callable[[Options, Any], _Rate]] = {
    "ExponentialDecay": partial(_falling, inverse=False),
    "InverseTimeDecay": partial(_falling, inverse=True),
    "PiecewiseConstantDecay": _piecewise,
    "PolynomialDecay": _polynomial,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _cosine_restarts,
}
