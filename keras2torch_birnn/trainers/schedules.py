"""Learning rates by iteration: Keras' schedules and the ``decay`` of its older optimizers.

A schedule is computed in float32, whatever the weights are, as TensorFlow does it. Source: Keras
3.15 ``optimizers/schedules/learning_rate_schedule.py``; tf.keras 2.4 to 2.15 has the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.trainers.options import Options

Schedule: TypeAlias = Callable[[int], float]
_PLACE = "optimizer/learning_rate"
_F = np.float32


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
    return make(Options(found, _PLACE))


def find_nominal_rate(schedule: Schedule, config: Mapping[str, Any]) -> float:
    """Return the rate of a schedule from which changes of it are measured.

    That at its start; where that is 0 the first other one that it names, or 1 if it has none.
    """
    options = Options(config["config"], _PLACE)
    values = options.numbers("values") if "values" in options.values else []
    named = [options.number(name) for name in ("warmup_target", "end_learning_rate")]
    return next((rate for rate in (schedule(0), *values, *named) if rate), 1.0)


def _cos(x: np.float32) -> np.float32:
    return _F(math.cos(x))


def _start(options: Options) -> np.float32:
    return _F(options.number("initial_learning_rate"))


def _steps(options: Options, name: str = "decay_steps") -> np.float32:
    steps = options.number(name)
    if steps <= 0:
        raise InvalidModelFileError(f"{name}={steps} of a schedule", "refused", place=_PLACE)
    return _F(steps)


def _exponential(options: Options) -> Schedule:
    start, steps, rate = _start(options), _steps(options), _F(options.number("decay_rate"))
    stairs = options.flag("staircase")

    def at(iteration: int) -> float:
        p = _F(iteration) / steps
        return float(start * rate ** (np.floor(p) if stairs else p))

    return at


def _inverse_time(options: Options) -> Schedule:
    start, steps, rate = _start(options), _steps(options), _F(options.number("decay_rate"))
    stairs = options.flag("staircase")

    def at(iteration: int) -> float:
        p = _F(iteration) / steps
        return float(start / (_F(1) + rate * (np.floor(p) if stairs else p)))

    return at


def _piecewise(options: Options) -> Schedule:
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
        return float(_F(values[sum(iteration > one for one in whole)]))

    return at


def _polynomial(options: Options) -> Schedule:
    start, steps = _start(options), _steps(options)
    end = _F(options.number("end_learning_rate", default=0.0001))
    power, cycle = _F(options.number("power", default=1.0)), options.flag("cycle")

    def at(iteration: int) -> float:
        step = _F(iteration)
        if cycle:
            length = steps * (_F(1) if iteration == 0 else np.ceil(step / steps))
        else:
            length, step = steps, min(step, steps)
        return float((start - end) * (_F(1) - step / length) ** power + end)

    return at


def _cosine(options: Options) -> Schedule:
    start, steps, alpha = _start(options), _steps(options), options.number("alpha")
    target, warmup = options.optional("warmup_target"), _F(options.number("warmup_steps"))

    def decayed(step: np.float32, top: np.float32) -> float:
        wave = _F(0.5) * (_F(1) + _cos(_F(math.pi) * (step / steps)))
        return float(top * (_F(1 - alpha) * wave + _F(alpha)))

    def at(iteration: int) -> float:
        step = _F(iteration)
        if target is None:
            return decayed(min(step, steps), start)
        step, top = min(step, steps + warmup), _F(target)
        if step < warmup:
            return float((top - start) * (step / warmup) + start)
        return decayed(step - warmup, top)

    return at


def _cosine_restarts(options: Options) -> Schedule:
    start, first = _start(options), _steps(options, "first_decay_steps")
    longer = _F(options.number("t_mul", default=2.0))
    lower = _F(options.number("m_mul", default=1.0))
    alpha = _F(options.number("alpha"))
    if longer < 1:
        raise InvalidModelFileError(f"t_mul={longer} of a schedule", "refused", place=_PLACE)

    def at(iteration: int) -> float:
        done = _F(iteration) / first
        if longer == 1:
            restarts = np.floor(done)
            done -= restarts
        else:
            restarts = np.floor(np.log(_F(1) - done * (_F(1) - longer)) / np.log(longer))
            passed = (_F(1) - longer**restarts) / (_F(1) - longer)
            done = (done - passed) / longer**restarts
        wave = _F(0.5) * lower**restarts * (_F(1) + _cos(_F(math.pi) * done))
        return float(start * ((_F(1) - alpha) * wave + alpha))

    return at


_SCHEDULES: Mapping[str, Callable[[Options], Schedule]] = {
    "ExponentialDecay": _exponential,
    "InverseTimeDecay": _inverse_time,
    "PiecewiseConstantDecay": _piecewise,
    "PolynomialDecay": _polynomial,
    "CosineDecay": _cosine,
    "CosineDecayRestarts": _cosine_restarts,
}
