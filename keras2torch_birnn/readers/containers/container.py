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

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    MissingArchitectureError,
    invalid,
)
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.readers.store import Store
from keras2torch_birnn.readers.strict_json import parse_object
from keras2torch_birnn.readers.weights.paths import (
    WeightPaths,
    holds_weights,
    locate_weights,
    name_weights,
)
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


# Interface of a container: an open model file, its architecture, and where its weights are.


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
    def is_zip(self) -> bool:
        """Tell whether it begins as a zip archive, of members or empty."""
        return self.head.startswith((b"PK\x03\x04", b"PK\x05\x06"))

    @property
    def opened(self) -> Window:
        """The open file.

        Raises:
            InvalidModelFileError: the source is a folder.
        """
        if self.window is None:
            raise InvalidModelFileError("a folder", "the input must be a file")
        return self.window


NOWHERE = Source("", None, "")


class Container(ABC):
    """An open model. Arrays can be read until it is closed.

    ``store``: the groups and arrays of its weights. ``vocabularies``: texts of lookup layers by
    member name, where the format has them. A container closes what ``closing`` holds.
    ``source``: what was opened.
    """

    kind: ClassVar[str]
    # Texts of config.json and metadata.json, in formats that have them.
    config_text: str | None = None
    metadata_text: str | None = None
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
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``.

        Raises:
            InvalidModelFileError, MissingArchitectureError: there is none, or it is broken.
        """

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``.

        Raises:
            InvalidModelFileError: it is broken.
        """
        for key in ("compile_config", "training_config"):
            if isinstance(found := (config or {}).get(key), Mapping):
                return found
        return None

    def locate_weights(
        self, root: LayerSpec, generation: Generation, left_out: frozenset[LayerPath] = frozenset()
    ) -> WeightPaths:
        """Find the path of every weight in ``store``: layer -> name of the weight -> path.

        left_out: the paths of layers that are not read, and whose weights have no known names.

        Raises:
            WeightMismatchError: the weights and the configuration do not fit each other.
        """
        return locate_weights(root, self.store, generation, left_out)

    def weight_names(self) -> Mapping[str, str]:
        """Return a name for every weight -> its path in ``store``; no architecture is needed.

        Raises:
            InvalidModelFileError: the lists of names are broken.
        """
        return name_weights(self.store)

    def written_names(self, paths: WeightPaths) -> WeightPaths:
        """Return the names that Keras gave the weights at ``paths``, where they differ from these.

        They tell TensorFlow 2.1 and 2.2 apart, see ``weights/masked_steps.py``.
        """
        return paths


class Format(Protocol):
    """One row of the table of formats: how to recognise a format and how to open it."""

    def recognises(self, source: OpenPath) -> bool:
        """Tell from its content whether the source is of this format."""
        ...

    def open(self, source: OpenPath, opening: ExitStack) -> Container:
        """Open the source; files stay open until ``opening`` ends.

        Raises:
            InvalidModelFileError: damaged, hostile, or incomplete.
        """
        ...


class HDF5Container(Container):
    """Architecture and version in the attributes of the root group, or given by the user."""

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        root = self.store.attributes("/", ["model_config", "keras_version", "backend"])
        backend = str(root.get("backend") or (config or {}).get("backend") or "")
        version = str(root.get("keras_version") or "")
        text = root.get("model_config")
        if config is not None:
            version = version or str(config.get("keras_version") or "") or version_by_shape(config)
            return Architecture(config, version or "1.0", backend)
        if isinstance(text, str):
            model = parse_object(text, place="model_config", needed=["class_name", "config"])
            return Architecture(model, version or version_by_shape(model) or "1.0", backend)
        if text is not None:
            raise invalid("model_config is no text")
        raise self._without_architecture()

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        text = self.store.attributes("/", ["training_config"]).get("training_config")
        if isinstance(text, str):
            return parse_object(text, place="training_config")
        return super().compiled(config)

    def _without_architecture(self) -> K2TError:
        if holds_weights(self.store):
            return MissingArchitectureError(
                "holds weights but no architecture",
                "give the text of model.to_json() with --config ARCH.json",
            )
        return InvalidModelFileError(
            "an HDF5 file without model_config: not a Keras model",
            "a Keras model or weights file is expected",
        )


class KerasContainer(Container):
    """Architecture in ``config.json``, version in ``metadata.json``, as in a ``.keras`` file."""

    def __init__(
        self,
        store: Store,
        config_text: str,
        metadata_text: str | None,
        vocabularies: Mapping[str, str] = {},
    ) -> None:
        super().__init__(store)
        self.config_text, self.metadata_text = config_text, metadata_text
        self.vocabularies = vocabularies

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        model = parse_object(self.config_text or "", place="config.json", needed=["class_name"])
        metadata = parse_object(self.metadata_text or "{}", place="metadata.json")
        return Architecture(config or model, str(metadata.get("keras_version") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        model = parse_object(self.config_text or "", place="config.json", needed=["class_name"])
        return super().compiled(model) or super().compiled(config)
