"""Write a converted model in a form that runs without this package. Without torch here.

A target is one row of ``TARGETS``, chosen by the suffix of the file, and one module of this
package, whose ``TARGET`` writes such a file and runs it (``target.Target``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from keras2torch_birnn.errors import OutputError, printable

if TYPE_CHECKING:
    from keras2torch_birnn.exporting.target import Target


@dataclass(frozen=True)
class TargetRow:
    """Facts about one target.

    module: of this package, with its ``TARGET``. name: of the file, in words.
    """

    suffix: str
    module: str
    name: str

    def load(self) -> Target:
        """Import the module and return its target."""
        target: Target = import_module(f"{__name__}.{self.module}").TARGET
        return target


TARGETS: tuple[TargetRow, ...] = (
    TargetRow(".onnx", "onnx_file", "an ONNX model"),
    TargetRow(".pt2", "torch_export", "a torch.export archive"),
    TargetRow(".py", "source.write_source", "plain PyTorch source"),
)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the suffix of a target."""
    return _suffix(path) in _by_suffix()


def find_target(path: str | os.PathLike[str]) -> TargetRow:
    """Return the target of a file's suffix.

    Raises:
        OutputError: no target has it.
    """
    row = _by_suffix().get(_suffix(path))
    if row is None:
        suffix = Path(path).suffix
        found = f"ends in {printable(suffix)}" if suffix else "has no suffix"
        raise OutputError(
            found, f"an export ends in {join_words(_by_suffix())}", file=os.fspath(path)
        )
    return row


def join_words(words: Iterable[str]) -> str:
    """Join words with commas and "or"."""
    *first, last = words
    return " or ".join(filter(None, (", ".join(first), last)))


def _by_suffix() -> dict[str, TargetRow]:
    return {row.suffix: row for row in TARGETS}


def _suffix(path: str | os.PathLike[str]) -> str:
    return Path(path).suffix.lower()
