"""Classes of a file that no converter is known for, for ``k2t plugin new``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class UnknownClass:
    """A layer or cell of a class without a converter: its place, and its config as the file has it.

    ``kind``: "cell" for the cell of an RNN, "Lambda" for code in the file, else "layer".
    """

    class_name: str
    kind: Literal["layer", "cell", "Lambda"]
    place: str
    config: Mapping[str, Any]
