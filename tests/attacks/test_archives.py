"""``.keras`` archives that lie: bombs, overlaps, duplicates, odd members, and tricks of the format.

The reader's own tests (``tests/readers/test_archive.py``) go through every refusal one by one.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import by_commands, zip_link
from commands import STACK_KERAS
from harness import Runner, refused

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
DIRECTORY, END, LOCAL = b"PK\1\2", b"PK\5\6", b"PK\3\4"


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(STACK_KERAS) as file:
        return {entry.filename: file.read(entry) for entry in file.infolist()}


def zipped(
    content: dict[str, Any], method: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    """``content``: name, or ZipInfo, -> bytes."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as file:
        for name, data in content.items():
            file.writestr(name, data)
        file.comment = comment
    return memory.getvalue()


def patched(data: bytes, name: str, offset: int, form: str, value: int) -> bytes:
    """A field of the member's entry in the directory replaced."""
    found = bytearray(data)
    at = found.rindex(name.encode()) - 46
    assert found[at : at + 4] == DIRECTORY
    struct.pack_into(form, found, at + offset, value)
    return bytes(found)


def with_end(form: str, offset: int, value: int) -> Callable[[], bytes]:
    """A field of the record at the archive's end replaced."""

    def build() -> bytes:
        data = bytearray(zipped(members()))
        struct.pack_into(form, data, data.rindex(END) + offset, value)
        return bytes(data)

    return build


def duplicate() -> bytes:
    data = zipped(members() | {"config.jsox": b"{}"})
    return data.replace(b"config.jsox", b"config.json")


def elsewhere(name: str) -> bytes:
    """A member under a name that leaves the folder, if somebody extracts it."""
    return zipped(members() | {name: b"surprise"})


def renamed_in_the_directory() -> bytes:
    """The directory calls a member otherwise than the member itself does."""
    data = zipped({("readme.text" if n == CONFIG else n): v for n, v in members().items()})
    at = data.rindex(b"readme.text")
    return data[:at] + CONFIG.encode() + data[at + len(CONFIG) :]


def overlapping() -> bytes:
    """Three names for the bytes of one member, each of which inflates to a lot."""
    names = ["metadata.json", "aetadata.json", "betadata.json"]
    rest = {k: v for k, v in members().items() if k != METADATA}
    data = bytearray(zipped(rest | dict.fromkeys(names, members()[METADATA])))
    first = data.rindex(names[0].encode()) - 46
    for name in names[1:]:
        at = data.rindex(name.encode()) - 46
        data[at + 42 : at + 46] = data[first + 42 : first + 46]
    return bytes(data)


def zip64_lie(size: int) -> bytes:
    """An extra field that gives config.json a size of many gigabytes."""
    entry = zipfile.ZipInfo(CONFIG)
    entry.extra = struct.pack("<HHQQ", 1, 16, size, size)
    data = zipped({k: v for k, v in members().items() if k != CONFIG} | {entry: b"{}"})
    data = patched(data, CONFIG, 24, "<I", 0xFFFFFFFF)
    return patched(data, CONFIG, 20, "<I", 0xFFFFFFFF)


ATTACKS: dict[str, tuple[Callable[[], bytes], str]] = {
    "config.json of 64 MiB": (
        lambda: zipped(members() | {CONFIG: bytes(64 << 20)}, zipfile.ZIP_DEFLATED),
        "config.json: longer than 33554432 bytes",
    ),
    "weights of 100 MiB in few bytes": (
        lambda: zipped(members() | {WEIGHTS: bytes(100 << 20)}, zipfile.ZIP_DEFLATED),
        "model.weights.h5: it inflates to more than ",
    ),
    "4 GiB declared": (
        lambda: patched(zipped(members()), WEIGHTS, 24, "<I", 0xFFFFFFF0),
        "model.weights.h5: stored as it is, but of ",
    ),
    "zip64 sizes of terabytes": (lambda: zip64_lie(1 << 44), "overlaps with what follows"),
    "zip64 sizes beyond 63 bits": (lambda: zip64_lie((1 << 64) - 1), "overlaps with what follows"),
    "config.json twice": (duplicate, "config.json: it is 2 times in the archive"),
    "members that overlap": (overlapping, "it overlaps with what follows in the archive"),
    "member that is elsewhere": (
        lambda: patched(zipped(members()), CONFIG, 42, "<I", 1 << 31),
        "are needed, but there are",
    ),
    "other name in the directory": (renamed_in_the_directory, "a damaged zip archive"),
    "encrypted": (
        lambda: patched(zipped(members()), CONFIG, 8, "<H", 1),
        "config.json: encrypted",
    ),
    "unknown compression": (
        lambda: patched(zipped(members()), CONFIG, 10, "<H", 99),
        "config.json: compressed by method 99",
    ),
    "bzip2": (
        lambda: zipped(members(), zipfile.ZIP_BZIP2),
        "compressed by method 12; only stored and deflated",
    ),
    "lzma": (
        lambda: zipped(members(), zipfile.ZIP_LZMA),
        "compressed by method 14; only stored and deflated",
    ),
    "wrong checksum of the weights": (
        lambda: patched(zipped(members()), WEIGHTS, 16, "<I", 7),
        "Bad CRC-32 for file 'model.weights.h5'",
    ),
    "wrong checksum of compressed weights": (
        lambda: patched(zipped(members(), zipfile.ZIP_DEFLATED), WEIGHTS, 16, "<I", 7),
        "Bad CRC-32 for file 'model.weights.h5'",
    ),
    "11,000 members": (
        lambda: zipped(members() | {f"a/{i}": b"" for i in range(11_000)}),
        "an archive of 11003 members, more than 10000",
    ),
    "a directory of 5 MB": (
        lambda: zipped(members() | {f"{i:0>900}": b"" for i in range(5_600)}),
        "a block of ",
    ),
    "a directory that is not there": (with_end("<I", 16, 0xFFFFFFF0), "truncated file?"),
    "a directory too long": (with_end("<I", 12, 0x7FFFFFFF), "a damaged zip archive"),
    "another end in the comment": (
        lambda: zipped(members(), comment=END + bytes(18) + b"not the end"),
        "a zip archive, but not a Keras model",
    ),
    "something before it": (
        lambda: b"#!/bin/sh\nrm -rf ~\n" + zipped(members()),
        "not an HDF5 or Keras file",
    ),
    "weights without data": (
        lambda: zipped({k: v for k, v in members().items() if k != WEIGHTS}),
        "model.weights.h5: missing in the archive",
    ),
    "config.json in other letters": (
        lambda: zipped({k.upper() if k == CONFIG else k: v for k, v in members().items()}),
        "config.json: missing in the archive",
    ),
    "config.json that is not UTF-8": (
        lambda: zipped(members() | {CONFIG: b"\xff\xfe{}"}),
        "config.json: not UTF-8 text (byte 0)",
    ),
    "metadata.json that is a list": (
        lambda: zipped(members() | {METADATA: b"[]"}),
        "metadata.json: a JSON list where an object is expected",
    ),
    "version that is an object": (
        lambda: zipped(members() | {METADATA: b'{"keras_version": {"a": 1}}'}),
        "is not a version of Keras",
    ),
    "no version": (lambda: zipped(members() | {METADATA: b"{}"}), "is not a version of Keras"),
}
# These convert: what is odd about them reaches nobody.
HARMLESS: dict[str, Callable[[], bytes]] = {
    "a comment": lambda: zipped(members(), comment=b"hello" * 99),
    "a bomb that nobody asked for": lambda: zipped(
        members() | {"x" * 9: bytes(64 << 20)}, zipfile.ZIP_DEFLATED
    ),
    "something after it": lambda: zipped(members()) + b"<html>" * 99,
    "absolute name": lambda: elsewhere("/tmp/k2t-surprise"),
    "name that climbs": lambda: elsewhere("../../k2t-surprise"),
    "name with a drive": lambda: elsewhere("C:\\k2t-surprise"),
    "name with escapes": lambda: elsewhere("\x1b[2J\n\u202e.h5"),
    "device name": lambda: elsewhere("CON"),
    "a link nobody asked for": lambda: zipped(members() | {zip_link("assets/x"): b"/etc/passwd"}),
}


@pytest.mark.parametrize(("name", "command"), by_commands(ATTACKS))
def test_a_hostile_archive_is_refused(
    name: str, command: str, runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    make, words = ATTACKS[name]
    file = tmp_path / "model.keras"
    file.write_bytes(make())
    refused(runners[command], command, file, words, tmp_path)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", HARMLESS)
def test_odd_members_reach_nobody(name: str, converting: Runner, tmp_path: Path) -> None:
    file, out = tmp_path / "model.keras", tmp_path / "out.pt"
    file.write_bytes(HARMLESS[name]())
    report = converting.k2t(
        "convert", file, out, reads=(file,), writes=(tmp_path,), folder=tmp_path
    )
    assert (report.code, report.crimes) == (0, []), report.err
    assert {path.name for path in tmp_path.iterdir()} == {"model.keras", "out.pt"}
    assert not Path("/tmp/k2t-surprise").exists()
