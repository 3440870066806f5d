"""Options of an optimizer or schedule from a file: checked numbers, in Keras' own precision.

Keras turns many numbers into float32 before it uses them, for weights of float64 too: TensorFlow's
``cast`` of a Python number goes through float32, and OptimizerV2 keeps its options as float32
variables. ``single`` rounds so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import (
    MAX_OPTIMIZER_NUMBER,
    MAX_PATTERN_CHARACTERS,
    MAX_PATTERN_REPEATS,
)


def single(value: float) -> float:
    """Round to float32."""
    return float(np.float32(value))


@dataclass(frozen=True)
class Options:
    """Options by name; each is checked when it is asked for.

    ``place``: of their owner. ``version``, ``on_tensorflow``: the Keras that wrote them, where that
    matters.
    """

    values: Mapping[str, Any]
    place: str
    version: str = ""
    on_tensorflow: bool = True

    def number(self, *names: str, default: float = 0.0) -> float:
        """Return the first of these options that is there, as a finite number.

        Raises:
            InvalidModelFileError: it is no number.
        """
        for name in names:
            value = self.values.get(name)
            if value is not None:
                return self._finite(name, value)
        return default

    def optional(self, name: str, *, default: float | None = None) -> float | None:
        """Return a number, or None where the option is null; ``default``: where it is absent."""
        value = self.values.get(name, default)
        return None if value is None else self._finite(name, value)

    def whole(self, name: str, *, default: int = 0) -> int:
        """Return a whole number."""
        value = self.number(name, default=float(default))
        if not value.is_integer():
            raise self._refuse(name, value)
        return int(value)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a switch; null is False, ``default`` where it is absent."""
        value = self.values.get(name, default) or False
        if not isinstance(value, bool):
            raise self._refuse(name, value)
        return value

    def numbers(self, name: str) -> list[float]:
        """Return a list of numbers."""
        value = self.values.get(name)
        if not isinstance(value, list) or not value:
            raise self._refuse(name, value)
        return [self._finite(name, one) for one in value]

    def patterns(self, name: str) -> tuple[re.Pattern[str], ...]:
        """Return a list of regular expressions; none that could take long to search for.

        Raises:
            InvalidModelFileError: it is no such list; UnsupportedOptionError: it could take long.
        """
        values = self.values.get(name) or []
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise self._refuse(name, values)
        for one in values:
            repeats = sum(map(one.count, "*+?{"))
            # With so few repeats, and none of a group, a search is quick whatever the names are.
            most = 0 if "(" in one else MAX_PATTERN_REPEATS
            if len(one) > MAX_PATTERN_CHARACTERS or repeats > most:
                raise UnsupportedOptionError(
                    f"{name}={printable(one)} of an optimizer is too complex a pattern",
                    "name the layers",
                    place=self.place,
                )
        try:
            return tuple(map(re.compile, values))
        except (re.error, OverflowError, RecursionError) as error:
            raise self._refuse(name, values) from error

    def check_names(self, known: frozenset[str]) -> None:
        """Refuse options that no rule knows.

        Raises:
            UnsupportedOptionError: names them.
        """
        unknown = sorted(name for name, value in self.values.items() if name not in known and value)
        if unknown:
            raise UnsupportedOptionError(
                f"options {', '.join(map(printable, unknown))} of an optimizer are not supported",
                "make the optimizer in torch, with k2t.convert for the model",
                place=self.place,
            )

    def _finite(self, name: str, value: Any) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or abs(value) > MAX_OPTIMIZER_NUMBER:
            raise self._refuse(name, value)
        return float(value)

    def _refuse(self, name: str, value: Any) -> InvalidModelFileError:
        return InvalidModelFileError(
            f"{name}={printable(value)} of an optimizer", "refused", place=self.place
        )
