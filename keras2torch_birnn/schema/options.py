"""Kinds of options: how a config value is read, checked and made explicit; the activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.limits import MAX_SIZE


class BadOptionError(ValueError):
    """An option's value is not one the layer can have; the text says what is allowed.

    advice: a remedy, where it is not that of every option.
    """

    def __init__(self, finding: str, advice: str = "") -> None:
        super().__init__(finding)
        self.advice = advice


@dataclass(frozen=True)
class Option:
    """One config key: the value it has when absent, and how a value is read and checked.

    ``parse`` returns the explicit value or raises BadOptionError.
    """

    default: Any
    parse: Callable[[Any], Any]


REQUIRED = object()


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def size(default: Any = REQUIRED, least: int = 1) -> Option:
    """Make an option that is an integer, ``least`` to 2^31 - 1; old files hold it as 5.0, too."""

    def parse(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not _is_int(value) or not least <= value <= MAX_SIZE:
            raise BadOptionError(f"a whole number from {least} to {MAX_SIZE} is expected")
        return int(value)

    return Option(default, parse)


def number(default: Any = REQUIRED, least: float = -math.inf, most: float = math.inf) -> Option:
    """Make an option that is a finite number."""

    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadOptionError("a number is expected")
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result) or not least <= result <= most:
            raise BadOptionError(f"a finite number from {least} to {most} is expected")
        return result

    return Option(default, parse)


def optional(option: Option) -> Option:
    """Make an option that may also be None."""
    return Option(
        None if option.default is REQUIRED else option.default,
        lambda value: None if value is None else option.parse(value),
    )


def flag(default: Any = REQUIRED) -> Option:
    """Make an option that is True or False."""

    def parse(value: Any) -> bool:
        if value not in (True, False):
            raise BadOptionError("true or false is expected")
        return bool(value)

    return Option(default, parse)


def choice(default: Any, *allowed: Any) -> Option:
    """Make an option that is one of a few values."""

    def parse(value: Any) -> Any:
        # bool is an int in Python: 1 must not pass for True
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise BadOptionError(f"one of {', '.join(map(repr, allowed))} is expected")
        return value

    return Option(default, parse)


DATA_FORMAT = choice("channels_last", "channels_last", "channels_first")


def sizes(default: Any = REQUIRED, least: int = 1) -> Option:
    """Make an option that is a tuple of integers."""

    def parse(value: Any) -> tuple[int, ...]:
        if not isinstance(value, list | tuple):
            raise BadOptionError("a list of whole numbers is expected")
        return tuple(size(least=least).parse(v) for v in value)

    return Option(default, parse)


def window(default: Any = REQUIRED, rank: int = 1, least: int = 1) -> Option:
    """Make an option that is a size per axis; files hold one for all, or a list of ``rank``."""

    def parse(value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list | tuple) else [value] * rank
        if len(values) != rank:
            raise BadOptionError(f"a whole number or a list of {rank} is expected")
        return tuple(size(least=least).parse(v) for v in values)

    return Option((default,) * rank if _is_int(default) else default, parse)


def margins(default: int, rank: int) -> Option:
    """Allow sizes (before, after) per axis.

    Files hold a number; for one axis [before, after]; for two [rows, columns], each a number or
    [before, after].
    """
    pair = window(rank=2, least=0)

    def parse(value: Any) -> tuple[tuple[int, ...], ...]:
        values = value if isinstance(value, list | tuple) else [value] * rank
        if rank == 1 and len(values) == 2:
            values = [values]
        if len(values) != rank:
            raise BadOptionError(f"a whole number or a list of {rank} pairs is expected")
        return tuple(pair.parse(v) for v in values)

    return Option(((default, default),) * rank, parse)


def axes(default: Any) -> Option:
    """Make an option that is a tuple of axes; negative ones count from the end."""

    def parse(value: Any) -> tuple[int, ...]:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(size(least=-32).parse(v) for v in values)

    return Option((default,) if _is_int(default) else default, parse)


# name in the file -> explicit name. ``hard_sigmoid`` is not here: its meaning is the generation's.
ACTIVATIONS: Mapping[str, str] = {
    **{
        name: name
        for name in (
            "linear relu sigmoid tanh softmax elu selu softplus softsign exponential gelu relu6 "
            "leaky_relu log_softmax mish log_sigmoid hard_sigmoid_0.2 hard_sigmoid_1/6"
        ).split()
    },
    "swish": "silu",
    "silu": "silu",
    "hard_swish": "hard_silu",
    "hard_silu": "hard_silu",
}

# Of Keras 3, in no published recurrent model.
_RARE_ACTIVATIONS = frozenset(
    "celu glu hard_shrink hard_tanh soft_shrink sparse_plus sparse_sigmoid sparsemax squareplus "
    "tanh_shrink".split()
)

# Numbers that belong to an activation, with the value Keras' *function* has by default.
ACTIVATION_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "relu": {
        "negative_slope": number(0.0),
        "max_value": optional(number(None, least=0.0)),
        "threshold": number(0.0),
    },
    "leaky_relu": {"negative_slope": number(0.2)},
    "elu": {"alpha": number(1.0)},
    "gelu": {"approximate": flag(False)},
    "softmax": {"axis": size(-1, least=-32)},
    "log_softmax": {"axis": size(-1, least=-32)},
}


def parse_activation(value: Any) -> Any:
    """Read an explicit activation: a name, or ``{"name": ..., option: value}``. None is linear."""
    if value is None:
        return "linear"
    given = {"name": value} if isinstance(value, str) else value
    name = given.get("name") if isinstance(given, Mapping) else None
    if isinstance(name, str) and name in _RARE_ACTIVATIONS:
        raise BadOptionError(
            f"k2t does not have {name} of Keras 3",
            "apply it in a layer of your own, given with --plugin",
        )
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise BadOptionError(f"one of {', '.join(sorted(ACTIVATIONS))} is expected")
    name = ACTIVATIONS[name]
    options = ACTIVATION_OPTIONS.get(name, {})
    given = {key: value for key, value in given.items() if key != "name"}
    for key in given:
        if key not in options:
            raise BadOptionError(f"activation {name} has no option {key!r}")
    parsed = {key: options[key].parse(value) for key, value in given.items()}
    return {"name": name, **parsed} if parsed else name


def activation(default: Any = "linear") -> Option:
    """Make an option that is an activation, see ``parse_activation``."""
    return Option(default, parse_activation)
