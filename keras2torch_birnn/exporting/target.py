"""The interface of an export target. Without torch: a file is run without it where possible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.spec import Array, ModelSpec

if TYPE_CHECKING:
    from torch import fx

# Inputs in Keras' order -> outputs, flat, in Keras' order. Floats are cast to what the file takes.
Session: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]

# Name of this package in the files that it wrote, by which they are recognised.
MARK = "keras2torch_birnn"
EXPORT = "name a file that k2t export wrote"  # what to do with another


class Target(ABC):
    """One form of an exported model: the ``TARGET`` of a module in ``TARGETS``.

    kind: the name of such files, their suffix, and how those that k2t wrote are recognised, which
    are the only ones to be replaced. companions: the same of the files beside it, one of each kind.
    alone: whether such files are Python modules, run where this package cannot be imported.
    """

    kind: FileKind
    companions: tuple[FileKind, ...] = ()
    alone: bool = False

    def files(self, path: Path) -> dict[Path, FileKind]:
        """Return the files of an export and their kinds, the named file last."""
        beside = {path.with_suffix(kind.suffixes[0]): kind for kind in self.companions}
        return {**beside, path: self.kind}

    @property
    @abstractmethod
    def runtime(self) -> str:
        """Name of what ``open`` runs such a file in."""

    def why_cannot_write(self) -> str:
        """Return which package is missing to write such a file; empty if none."""
        return ""

    def why_cannot_run(self) -> str:
        """Return which package is missing to run such a file; empty if none."""
        return ""

    def describe_other(self, path: Path) -> tuple[str, str] | None:
        """Describe a file of this suffix that is no export, with advice; None if it may be one."""
        return None

    @abstractmethod
    def write(self, model: fx.GraphModule, spec: ModelSpec, path: Path) -> tuple[str, ...]:
        """Write a model to ``path``, and its companions beside it; return notes for the user.

        model: in eval mode on the CPU, a copy whose modules may be changed, but not its tensors,
        which are the caller's. spec: what it was built from, without weights. The folder is empty.

        Raises:
            UnsupportedLayerError, UnsupportedOptionError: lists everything without such a form.
        """

    @abstractmethod
    def open(self, path: Path) -> Session:
        """Open a file and return a function that runs it.

        Called in a process of its own (``child_process``), because a file may be anybody's.
        """
