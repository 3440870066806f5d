"""The model that a user gives to read: a path, or a live model of Keras, told apart once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

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
