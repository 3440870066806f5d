"""Pack what real Keras wrote into one archive for each writer, and unpack it for who reads it.

    python tools/fixture_archives.py unpack             # into build/fixtures, as the tests do
    python tools/fixture_archives.py unpack keras-2.2.4 # in place, to change what is there
    python tools/fixture_archives.py pack               # plain files of writers into archives

``fixtures/keras-2.2.4.tar.xz`` holds the files of which a part of the path begins with
``keras-2.2.4``, such as ``keras-2.2.4/stacked.h5``, ``plugins/keras-2.2.4/center.h5`` and
``pins/keras-2.2.4.txt``. One that lies plain in ``fixtures/`` replaces its namesake of the archive
when the fixtures are unpacked, and for good when it is packed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import shutil
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

STORE = Path(__file__).parents[1] / "fixtures"
TREE = STORE.parent / "build" / "fixtures"
SUFFIX = ".tar.xz"
# The model of `make demo` and of the documentation is read where nothing was unpacked.
PLAIN = frozenset(f"tf.keras-2.15.0/mask_stack_bi_dense.{suffix}" for suffix in ("h5", "npz"))
# Scripts and their documentation are read in `fixtures/` alone.
_SCRIPTS = frozenset((".cjs", ".md", ".py"))
_WRITER = re.compile(r"[A-Za-z][A-Za-z_.-]*-\d+(\.\d+)+")
_STAMP = ".digest"
# Zip files know no time before 1980.
_TIME = 1_577_836_800


class MissingArchivesError(FileNotFoundError):
    """There are no archives, as in the source archive of a package index."""


# ---- where a file belongs -----------------------------------------------------------------------


def writer_of(name: str) -> str | None:
    """Return the writer whose archive holds a file; None if it stays plain."""
    parts = [] if name in PLAIN else name.split("/")
    found = (_WRITER.match(part) for part in parts)
    return next((match[0] for match in found if match), None)


def _archives(store: Path) -> list[Path]:
    return sorted(store.glob(f"*{SUFFIX}"))


def plain_files(store: Path = STORE) -> Iterator[str]:
    """Yield the names of all plain data files."""
    for path in sorted(store.rglob("*")):
        inside = path.relative_to(store)
        archive = path.parent == store and path.name.endswith(SUFFIX)
        if path.is_file() and path.suffix not in {*_SCRIPTS, ".pyc"} and not archive:
            yield inside.as_posix()


# ---- unpacking ----------------------------------------------------------------------------------


def unpacked(store: Path = STORE, tree: Path = TREE) -> Path:
    """Return the folder with all fixtures, unpacked anew if an archive or a plain file changed.

    Processes may ask at once: each unpacks beside the folder, and the first one puts its own there.

    Raises:
        MissingArchivesError: There are none.
    """
    if not _archives(store):
        raise MissingArchivesError(
            f"{store.name}/ has no archives (*{SUFFIX}): the source archive leaves them out; a "
            "clone of the repository has them"
        )
    digest = _digest(store)
    if _is_current(tree, digest):
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=tree.parent, prefix=f"{tree.name}-", ignore_cleanup_errors=True
    ) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        _unpack(store, new)
        (new / _STAMP).write_text(digest, "utf-8")
        if not _is_current(tree, digest):
            with suppress(FileNotFoundError):
                tree.rename(old)
            try:
                new.rename(tree)
            except OSError:  # another process was faster
                if not _is_current(tree, digest):
                    raise
    return tree


def _digest(store: Path) -> str:
    digest = hashlib.sha256()
    names = (*(archive.name for archive in _archives(store)), *plain_files(store))
    for name in names:
        content = hashlib.sha256((store / name).read_bytes()).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return digest.hexdigest()


def _is_current(tree: Path, digest: str) -> bool:
    stamp = tree / _STAMP
    return stamp.is_file() and stamp.read_text("utf-8") == digest


def _unpack(store: Path, folder: Path) -> None:
    for archive in _archives(store):
        with _opened(archive) as packed:
            packed.extractall(folder, filter="data")
    for name in plain_files(store):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store / name, folder / name)


def _opened(archive: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(archive, "r:xz")
    except tarfile.CompressionError as error:
        raise RuntimeError(
            f"this Python has no lzma, which unpacks {archive.name}: install liblzma with its "
            "headers and build Python again"
        ) from error


# ---- packing ------------------------------------------------------------------------------------


def pack(store: Path = STORE) -> list[Path]:
    """Move the plain files of writers into their archives; return the archives that changed.

    The same files give the same bytes with the same liblzma; an archive whose files are the same is
    left alone.
    """
    plain: dict[str, dict[str, bytes]] = defaultdict(dict)
    for name in plain_files(store):
        if (writer := writer_of(name)) is not None:
            plain[writer][name] = (store / name).read_bytes()
    changed = []
    for writer, files in plain.items():
        archive = store / f"{writer}{SUFFIX}"
        old = _members(archive) if archive.exists() else {}
        if files.items() - old.items():
            _write(archive, {**old, **files})
            changed.append(archive)
        for name in files:
            (store / name).unlink()
            _remove_empty((store / name).parent)
    return changed


def unpack_in_place(writer: str, store: Path = STORE) -> None:
    """Replace an archive by its files; of a file that lies there already, that one is kept."""
    archive = store / f"{writer}{SUFFIX}"
    for name, content in _members(archive).items():
        if not (store / name).exists():
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_bytes(content)
    archive.unlink()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty
        folder.rmdir()
        _remove_empty(folder.parent)


def _members(archive: Path) -> dict[str, bytes]:
    with _opened(archive) as packed:
        opened = ((member.name, packed.extractfile(member)) for member in packed)
        return {name: file.read() for name, file in opened if file is not None}


def _write(archive: Path, members: Mapping[str, bytes]) -> None:
    import lzma  # some Pythons are built without

    # As much memory as it takes; most of the bytes are floats, 4 or 8 bytes wide.
    method = {"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 3, "pb": 3}
    new = io.BytesIO()
    with (
        lzma.open(new, "wb", filters=[method]) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as packed,
    ):
        # Files of one case are side by side: they hold the same weights.
        for name in sorted(members, key=lambda name: (name.rpartition("/")[2], name)):
            facts = tarfile.TarInfo(name)
            facts.size, facts.mode, facts.mtime = len(members[name]), 0o644, _TIME
            packed.addfile(facts, io.BytesIO(members[name]))
    archive.write_bytes(new.getvalue())


def main() -> None:
    """Parse the command line, and do what it asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    unpacking = commands.add_parser("unpack", help="into build/fixtures, or writers in place")
    unpacking.add_argument("writers", nargs="*", metavar="WRITER", help="such as keras-2.2.4")
    commands.add_parser("pack", help="put the plain files of writers into their archives")
    asked = parser.parse_args()
    if asked.command == "pack":
        for archive in pack():
            print(archive.name)
    elif asked.writers:
        for writer in asked.writers:
            unpack_in_place(writer)
    else:
        print(unpacked())


if __name__ == "__main__":
    main()
