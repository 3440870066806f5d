"""Passes over the entry of a layer, ``entry -> entry``, to the words of today, by generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras2torch_birnn.schema.pages import Pages

Pass = Callable[[Any], Any]

# The pages of generations that need passes; their ``PASSES`` name those of each generation.
PASSES: Mapping[str, tuple[Pass, ...]] = Pages(
    "keras2torch_birnn.readers.config", "PASSES", {"keras1": "keras1", "keras2": "keras1_merge"}
)
_REFUSED = "refused options"


class _Refused(tuple[str, ...]):
    """Findings of a pass; no file can hold an object of this class."""


def with_refused(entry: Mapping[str, Any], refused: Sequence[str]) -> Mapping[str, Any]:
    """Return an entry with options that a pass found to be unsupported, in words."""
    return {**entry, _REFUSED: _Refused(refused)} if refused else entry


def list_refused(entry: Mapping[str, Any]) -> Sequence[str]:
    """List the options that passes found to be unsupported."""
    found = entry.get(_REFUSED)
    return found if isinstance(found, _Refused) else ()
