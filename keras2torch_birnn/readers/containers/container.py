"""Base class of the containers of a model, and where a model comes from."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.store import Store
from keras2torch_birnn.readers.weights.paths import WeightPaths, locate_weights, name_weights
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec

# Keras 3, and tf.keras since 2.6; tf_keras; tf.keras before 2.6.
PACKAGES = ("keras", "tf_keras", "tensorflow.python.keras")


class LiveModel(Protocol):
    """A model of keras, tf.keras or tf_keras in this process."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def to_json(self) -> str:
        """Return the architecture as JSON."""
        ...

    @property
    def weights(self) -> Sequence[object]:
        """All variables, trainable ones and others."""
        ...


ModelSource: TypeAlias = str | os.PathLike[str] | LiveModel
"""A path, or a model of keras, tf.keras or tf_keras in this process."""


@dataclass(frozen=True)
class Source:
    """A model to read. path: of its file or folder, None for a live model. name: for messages."""

    model: ModelSource
    path: Path | None
    name: str


def source_of(model: ModelSource | Source) -> Source:
    """Tell a path from a live model; the text of an architecture is no path, either."""
    if isinstance(model, Source):
        return model
    is_json = isinstance(model, str) and model.startswith("{") and '"class_name"' in model
    if isinstance(model, str | os.PathLike) and not is_json:
        return Source(model, Path(model), os.fspath(model))
    name = getattr(model, "name", None)
    named = isinstance(name, str) and package_of(model, "Model")
    return Source(model, None, f'model "{name}"' if named else "")


# ---- objects of Keras, which is never imported here ----------------------------------------------


def list_bases(thing: object) -> Iterator[tuple[str, str]]:
    """Yield module and name of an object's class and of all its base classes."""
    for base in type(thing).__mro__:
        yield base.__module__, base.__name__


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    """Tell whether a module is one of these packages, or in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def package_of(thing: object, name: str) -> str | None:
    """Return the package of Keras whose class of this name the object is of, or None."""
    return next(
        (
            package
            for module, found in list_bases(thing)
            for package in PACKAGES
            if found == name and is_inside(module, (package,))
        ),
        None,
    )


# ---- containers ----------------------------------------------------------------------------------


# An open model file, its architecture, and where its weights are.


_HEAD = 4096


@dataclass(frozen=True)
class Architecture:
    """The parsed JSON of a model, and the Keras version and backend that wrote it.

    ``writer``: the program that wrote it, if that was not Keras; it computes as ``version`` does.
    """

    model: Mapping[str, Any]
    version: str
    backend: str = ""
    writer: str = ""


@dataclass(frozen=True)
class OpenPath:
    """A path on disk; ``window`` is None for a folder, else the open file."""

    path: Path
    window: Window | None

    @cached_property
    def head(self) -> bytes:
        """First bytes of a file; empty for a folder."""
        return b"" if self.window is None else self.window.head(_HEAD)

    @property
    def opened(self) -> Window:
        """The open file."""
        if self.window is None:
            raise InvalidModelFileError("a folder", "the input must be a file")
        return self.window


NOWHERE = Source("", None, "")


class Container(ABC):
    """An open model. Arrays can be read until it is closed.

    A subclass that is a format of files has ``recognises`` and ``open``, too.
    ``store``: the groups and arrays of its weights. ``vocabularies``: texts of lookup layers by
    member name, where the format has them. A container closes what ``closing`` holds.
    ``source``: what was opened.
    """

    kind: ClassVar[str]
    vocabularies: Mapping[str, str] = {}

    def __init__(self, store: Store) -> None:
        self.store = store
        self.closing = ExitStack()
        self.source = NOWHERE

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.__exit__(*error)

    def close(self) -> None:
        """Close the files; raise if one has changed since it was opened."""
        self.closing.close()

    @abstractmethod
    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        for key in ("compile_config", "training_config"):
            if isinstance(found := (config or {}).get(key), Mapping):
                return found
        return None

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[LayerPath] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight in ``store``: layer -> name of the weight -> path.

        left_out: the paths of layers that are not read, and whose weights have no known names.
        """
        return locate_weights(root, self.store, generation, left_out)

    def weight_names(self) -> Mapping[str, str]:
        """Return a name for every weight -> its path in ``store``; no architecture is needed."""
        return name_weights(self.store)

    def written_names(self, paths: WeightPaths) -> WeightPaths:
        """Return the names that Keras gave the weights at ``paths``, where they differ from these.

        They tell TensorFlow 2.1 and 2.2 apart, see ``resolve_masked_steps``.
        """
        return paths
