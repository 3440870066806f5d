"""The ``.keras`` archive: a zip with ``config.json``, ``metadata.json`` and ``model.weights.h5``.

Nothing is extracted to a name. Texts are inflated in memory, weights are used where they are in
the archive, or, if someone compressed them, inflated into a nameless temporary file. Every cap
holds on the bytes that come out, not on those that the archive's directory announces.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError, in_place, invalid
from keras2torch_birnn.readers.advice import CONVERTED
from keras2torch_birnn.readers.containers.container import KerasContainer, OpenPath
from keras2torch_birnn.readers.containers.hdf5_store import open_store, two_in_one
from keras2torch_birnn.readers.containers.zip_archive import (
    Budget,
    member_pieces,
    open_member,
    open_model_archive,
)
from keras2torch_birnn.readers.files.strict_json import decode_text
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.store import find_signature
from keras2torch_birnn.readers.weights.v3 import VOCABULARY

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@dataclass(frozen=True)
class Archive:
    """Contents of a ``.keras`` file. ``weights`` may be in a temporary file.

    ``vocabularies``: the texts of the members that are called so, by name.
    """

    config_text: str
    metadata_text: str
    weights: Window
    vocabularies: Mapping[str, str]


class KerasArchive(KerasContainer):
    """A ``.keras`` file; ``weights``: its HDF5 member, in the archive or in a temporary file."""

    kind = "keras_zip"
    weights: Window

    @staticmethod
    def recognises(source: OpenPath) -> bool:
        """Tell whether the source begins like a zip archive."""
        return source.is_zip

    @classmethod
    def open(cls, source: OpenPath, opening: ExitStack) -> KerasArchive:
        """Check the archive, read its texts and open its weights."""
        archive = read_archive(source.opened)
        _check_one_reading(source.opened, archive.weights)
        if archive.weights.file is not source.opened.file:  # they were compressed
            opening.enter_context(archive.weights.file)
        with in_place(WEIGHTS):
            store = opening.enter_context(open_store(archive.weights))
        container = cls(store, archive.config_text, archive.metadata_text, archive.vocabularies)
        container.weights = archive.weights
        return container


def _check_one_reading(window: Window, weights: Window) -> None:
    """Refuse an archive that is also an HDF5 file, other than by its own stored weights."""
    start = find_signature(window)
    if start is not None and (weights.file, weights.offset) != (window.file, start):
        raise two_in_one()


def read_archive(window: Window) -> Archive:
    """Check the whole archive, then read its three members and the vocabularies."""
    with open_model_archive(window) as (archive, members):
        found = {member.filename: member for member in members}
        _check_own(archive, found)
        _check_names(found)
        budget = Budget(limits.max_inflated_bytes(window.size))
        return Archive(
            config_text=_text(archive, found[CONFIG], budget),
            metadata_text=_text(archive, found[METADATA], budget),
            weights=open_member(archive, found[WEIGHTS], budget, window),
            vocabularies={
                name: _text(archive, member, budget)
                for name, member in found.items()
                if name.startswith(VOCABULARY[0]) and name.endswith(VOCABULARY[1])
            },
        )


def _check_own(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Refuse what k2t wrote: the first strings in its ``data.pkl`` are the format's."""
    for name, member in members.items():
        if name.endswith("/data.pkl") and member.compress_type == zipfile.ZIP_STORED:
            with archive.open(member) as program:
                if b"keras2torch_birnn/" in program.read(256):
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
