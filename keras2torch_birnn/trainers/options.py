"""Options of an optimizer from a file, checked when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_OPTIMIZER_NUMBER

HOW_ELSE = "make the optimizer in torch, with k2t.convert for the model"
PLACE = "optimizer"


@dataclass(frozen=True)
class Options:
    """Options by name, as they are in the file."""

    values: Mapping[str, Any]

    def number(self, *names: str, default: float = 0.0) -> float:
        """Return the first of these options that is there and not null, as a finite number.

        Raises:
            InvalidModelFileError: it is no number.
        """
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            plain = isinstance(value, int | float) and not isinstance(value, bool)
            if not plain or not math.isfinite(value) or abs(value) > MAX_OPTIMIZER_NUMBER:
                raise self._refuse(name, value)
            return float(value)
        return default

    def positive(self, name: str) -> float:
        """Return a number that is not negative."""
        value = self.number(name)
        if value < 0:
            raise self._refuse(name, value)
        return value

    def flag(self, name: str) -> bool:
        """Return a switch; null is False."""
        value = self.values.get(name) or False
        if not isinstance(value, bool):
            raise self._refuse(name, value)
        return value

    def check_names(self, known: frozenset[str]) -> None:
        """Refuse options that nothing here reads.

        Raises:
            UnsupportedOptionError: names them.
        """
        unknown = sorted(name for name, value in self.values.items() if name not in known and value)
        if unknown:
            raise UnsupportedOptionError(
                f"options {', '.join(map(printable, unknown))} of an optimizer are not supported",
                HOW_ELSE,
                place=PLACE,
            )

    def _refuse(self, name: str, value: Any) -> InvalidModelFileError:
        return InvalidModelFileError(
            f"{name}={printable(value)} of an optimizer", "refused", place=PLACE
        )
