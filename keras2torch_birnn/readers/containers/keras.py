"""The containers of Keras: ``.h5``, ``.hdf5``, the ``.keras`` archive, and its unzipped folder."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras2torch_birnn import limits
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    MissingArchitectureError,
    in_place,
    invalid,
)
from keras2torch_birnn.readers.config.generations import version_by_shape
from keras2torch_birnn.readers.containers.container import Architecture, Container, OpenPath
from keras2torch_birnn.readers.containers.zip_archive import (
    Budget,
    ends_as_archive,
    member_pieces,
    open_member,
    open_model_archive,
)
from keras2torch_birnn.readers.hdf5.store import HDF5Store, find_signature
from keras2torch_birnn.readers.input_files import (
    Window,
    decode_text,
    file_window,
    parse_object,
    read_text,
)
from keras2torch_birnn.readers.weights.paths import holds_weights
from keras2torch_birnn.readers.weights.v3 import VOCABULARY

_HEAD = 4096


def open_store(window: Window) -> HDF5Store:
    """Start the parser's process on HDF5 data.

    Raises:
        InvalidModelFileError: they are not HDF5, or a zip archive, too.
    """
    if ends_as_archive(window):
        raise two_in_one()
    if find_signature(window) is None:
        from keras2torch_birnn.readers.containers.mistakes import describe

        if found := describe("head", [window.head(_HEAD)]):
            raise InvalidModelFileError(*found)
    return HDF5Store(window)


def two_in_one() -> InvalidModelFileError:
    """Make the error for a file that one program reads as HDF5, another one as a zip archive."""
    return InvalidModelFileError(
        "an HDF5 file and a zip archive in one; programs differ in which they read",
        "save the model again",
    )


# ---- one HDF5 file -------------------------------------------------------------------------------


# The ``.h5`` and ``.hdf5`` files of Keras: a whole model, or weights alone.


class HDF5File(Container):
    """A single HDF5 file."""

    kind = "hdf5"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source holds HDF5 data, behind a user block or not."""
        return source.window is not None and find_signature(source.window) is not None

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> HDF5File:
        """Start the parser's process on the file."""
        return cls(opening.enter_context(open_store(source.opened)))

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


# ---- archives ------------------------------------------------------------------------------------


# The ``.keras`` archive: a zip with ``config.json``, ``metadata.json`` and ``model.weights.h5``.
#
# Nothing is extracted to a name. Texts are inflated in memory, weights are used where they are in
# the archive, or, if someone compressed them, inflated into a nameless temporary file. Every cap
# holds on the bytes that come out, not on those that the archive's directory announces.


CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


class KerasContainer(Container):
    """Architecture in ``config.json``, version in ``metadata.json``."""

    def __init__(
        self,
        store: HDF5Store,
        config_text: str,
        metadata_text: str,
        vocabularies: Mapping[str, str] = {},
    ) -> None:
        super().__init__(store)
        self.config_text, self.metadata_text = config_text, metadata_text
        self.vocabularies = vocabularies

    def architecture(self, config: Mapping[str, Any] | None) -> Architecture:
        """Find the architecture and its Keras version; ``config``: the JSON of ``--config``."""
        model = parse_object(self.config_text, place="config.json", needed=["class_name"])
        metadata = parse_object(self.metadata_text or "{}", place="metadata.json")
        return Architecture(config or model, str(metadata.get("keras_version") or ""))

    def compiled(self, config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Find what the model was compiled with; ``config``: the JSON of ``--config``."""
        model = parse_object(self.config_text, place="config.json", needed=["class_name"])
        return super().compiled(model) or super().compiled(config)


class KerasArchive(KerasContainer):
    """A ``.keras`` file; ``weights``: its HDF5 member, in the archive or in a temporary file."""

    kind = "keras_zip"
    weights: Window

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source begins like a zip archive, of members or empty."""
        return source.head.startswith((b"PK\x03\x04", b"PK\x05\x06"))

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> KerasArchive:
        """Check the whole archive, read its texts and open its weights."""
        window = source.opened
        with open_model_archive(window) as (archive, listed):
            members = {member.filename: member for member in listed}
            _check_own(archive, members)
            _check_names(members)
            budget = Budget(limits.max_inflated_bytes(window.size))
            texts = {
                name: _text(archive, member, budget)
                for name, member in members.items()
                if name in (CONFIG, METADATA)
                or (name.startswith(VOCABULARY[0]) and name.endswith(VOCABULARY[1]))
            }
            weights = open_member(archive, members[WEIGHTS], budget, window)
        if weights.file is not window.file:  # they were compressed
            opening.enter_context(weights.file)
        start = find_signature(window)
        if start is not None and (weights.file, weights.offset) != (window.file, start):
            raise two_in_one()  # an HDF5 file by more than its own stored weights
        with in_place(WEIGHTS):
            store = opening.enter_context(open_store(weights))
        container = cls(store, texts.pop(CONFIG), texts.pop(METADATA), texts)
        container.weights = weights
        return container


def _check_own(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse what k2t wrote: the first strings in its ``data.pkl`` are the format's."""
    for name, member in members.items():
        if name.endswith("/data.pkl") and member.compress_type == zipfile.ZIP_STORED:
            with archive.open(member) as program:
                if b"keras2torch_birnn/" in program.read(256):
                    from keras2torch_birnn.readers.containers.mistakes import CONVERTED

                    raise InvalidModelFileError(*CONVERTED)


def _check_names(members: Mapping[str, zipfile.ZipInfo]) -> None:
    missing = [name for name in (CONFIG, METADATA, WEIGHTS) if name not in members]
    if len(missing) > 1 or WEIGHTS in missing:
        from keras2torch_birnn.readers.containers.mistakes import describe

        others = [os.fsencode(name) for name in members if name not in (CONFIG, METADATA)]
        if (found := describe("zip", others)) is not None:
            raise InvalidModelFileError(*found)
    if len(missing) > 1:
        raise invalid("a zip archive, but not a Keras model")
    if missing:
        raise invalid("missing in the archive", missing[0])


def _text(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: Budget) -> str:
    text = bytearray()
    for piece in member_pieces(archive, member, budget):
        text += piece
        if len(text) > limits.MAX_JSON_BYTES:
            raise invalid(f"longer than {limits.MAX_JSON_BYTES} bytes", member.filename)
    return decode_text(bytes(text), place=member.filename)


# ---- folders -------------------------------------------------------------------------------------


# An unzipped ``.keras`` file: a folder with the members of the archive.


class KerasFolder(KerasContainer):
    """The members of a ``.keras`` file in a folder."""

    kind = "folder"

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source is a folder of such members, and no SavedModel.

        Models of the Hugging Face Hub have a ``config.json``, too.
        """
        folder = source.path
        return (
            source.window is None
            and (folder / CONFIG).exists()
            and any((folder / name).exists() for name in (METADATA, WEIGHTS))
            and not (folder / "saved_model.pb").exists()
        )

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> KerasFolder:
        """Read both texts and open the weights."""
        config, metadata = (_member_text(opening, source.path, n) for n in (CONFIG, METADATA))
        shards = source.path / "model.weights.json"
        if shards.exists() and not (source.path / WEIGHTS).exists():
            from keras2torch_birnn.readers.containers.mistakes import SHARDS

            raise InvalidModelFileError(*SHARDS)
        with in_place(WEIGHTS):
            window = file_window(opening, source.path / WEIGHTS, member=True)
            return cls(opening.enter_context(open_store(window)), config, metadata)


def _member_text(opening: ExitStack, folder: Path, name: str) -> str:
    with in_place(name):
        return read_text(file_window(opening, folder / name, member=True), name)
