"""Script that answers questions about one HDF5 file, in a process that may crash or hang.

Started by ``parser_process.py``, isolated (``-I -S``), with an inherited open file: it
imports h5py and what else it needs, gives up the rights to import, open files, start processes and
take memory, and only then lets the HDF5 library see the file. Requests and replies are JSON, one a
line. It locates arrays and never decodes their bytes. The parent checks all of its answers.
"""

from __future__ import annotations

import base64
import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FLETCHER32, SHUFFLE, GZIP = 3, 2, 1

# Codecs used after the rights are given up, when they cannot be imported any more
CODECS = ("ascii", "utf-8")

NOT_THERE = "not in the file"


class RefusedError(Exception):
    """The requested object does not exist, or is of a type that is not read."""


class InheritedFile(io.RawIOBase):
    """A part of the inherited file, as a read-only file object for h5py."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd, self._offset, self._size, self._at = fd, offset, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; after the end with zeros, as the HDF5 library's own drivers do."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._at))
        data = self._read_some(count)
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        self._at += len(data)
        return len(data)

    def _read_some(self, count: int) -> bytes:
        at, pieces = self._offset + self._at, []
        while count > 0:
            if hasattr(os, "pread"):
                piece = os.pread(self._fd, count, at)
            else:  # Windows, where this process alone has this open file
                os.lseek(self._fd, at, os.SEEK_SET)
                piece = os.read(self._fd, count)
            if not piece:
                break
            pieces.append(piece)
            at, count = at + len(piece), count - len(piece)
        return b"".join(pieces)


def _mapped_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError):  # not Linux, or no /proc there
        return 1 << 30


def _limit(limits: dict[str, int]) -> None:
    """Set the resource limits, as far as the platform has them."""
    try:
        import resource
    except ImportError:  # Windows
        return
    memory = _mapped_bytes() + limits["memory"]
    wanted = (
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_FSIZE", limits.get("file", 0), limits.get("file", 0)),
        ("RLIMIT_NPROC", 0, 0),
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_CPU", limits["cpu"], limits["cpu"] + 1),
        ("RLIMIT_NOFILE", 0, 0),
    )
    for name, soft, hard in wanted:
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, OSError, ValueError):
            continue


def give_up_rights(limits: dict[str, int]) -> None:
    """Set the resource limits and forbid imports, for the rest of the process.

    Where no files can be opened imports fail anyway; this makes them fail on every system.
    """
    for name in CODECS:
        codecs.lookup(name)
    _limit(limits)
    sys.meta_path.clear()


class Index:
    """Answers to questions about an open HDF5 file."""

    def __init__(self, h5py: Any, file: Any, limits: dict[str, int]) -> None:
        self._h5, self._limits = h5py, limits
        self._root = h5py.h5g.open(file.id, b"/")
        self._groups: dict[tuple[str, ...], Any] = {}
        self._chunks_left = limits["chunks"]
        h5t = h5py.h5t
        self._numbers = {
            f"{order}{letter}{bits // 8}": getattr(h5t, f"{family}{bits}{end}")
            for order, end in (("<", "LE"), (">", "BE"))
            for letter, family, widths in (
                ("f", "IEEE_F", (16, 32, 64)),
                ("i", "STD_I", (8, 16, 32, 64)),
                ("u", "STD_U", (8, 16, 32, 64)),
            )
            for bits in widths
        }
        self._classes = {
            h5t.STRING: "text",
            h5t.BITFIELD: "bit fields",
            h5t.OPAQUE: "opaque bytes",
            h5t.COMPOUND: "compound values",
            h5t.REFERENCE: "references",
            h5t.ENUM: "enumerated values",
            h5t.VLEN: "sequences of varying length",
            h5t.ARRAY: "nested arrays",
            h5t.TIME: "times",
            h5t.INTEGER: "integers of an unusual kind",
            h5t.FLOAT: "floats of an unusual kind",
        }

    # Objects by path

    def _parts(self, path: str) -> tuple[str, ...]:
        parts = tuple(path.strip("/").split("/")) if path.strip("/") else ()
        if "//" in path or any(part in ("", ".", "..") for part in parts):
            raise RefusedError("not a plain path")
        if len(parts) > self._limits["depth"]:
            raise RefusedError(f"a path of {len(parts)} groups, more than {self._limits['depth']}")
        if any("\0" in p or len(p.encode()) > self._limits["name"] for p in parts):
            raise RefusedError(f"a name longer than {self._limits['name']} bytes")
        return parts

    def _group(self, parts: tuple[str, ...]) -> Any:
        """Open the group at ``parts``, through hard links only; None if there is none."""
        if not parts:
            return self._root
        if parts not in self._groups:
            parent = self._group(parts[:-1])
            found = None if parent is None else self._open_member(parent, parts[-1])
            if found is not None and not isinstance(found, self._h5.h5g.GroupID):
                raise RefusedError(f"'{parts[-1]}' is {self._kind_name(found)}, expected a group")
            if len(self._groups) >= self._limits["open_groups"]:
                self._groups.clear()
            self._groups[parts] = found
        return self._groups[parts]

    def _open_member(self, group: Any, name: str) -> Any:
        key = name.encode()
        if not group.links.exists(key):
            return None
        self._check_link(group.links.get_info(key).type, name)
        return self._h5.h5o.open(group, key)

    def _check_link(self, link: int, name: str) -> None:
        h5l = self._h5.h5l
        if link != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
            raise RefusedError(f"'{name}' is {kinds.get(link, 'a user-defined link')}")

    def _object(self, path: str) -> Any:
        parts = self._parts(path)
        if not parts:
            return self._root
        parent = self._group(parts[:-1])
        return None if parent is None else self._open_member(parent, parts[-1])

    def _kind(self, handle: Any) -> str:
        h5 = self._h5
        kinds = ((h5.h5g.GroupID, "group"), (h5.h5d.DatasetID, "dataset"), (h5.h5t.TypeID, "type"))
        return next((name for kind, name in kinds if isinstance(handle, kind)), "unknown object")

    def _kind_name(self, handle: Any) -> str:
        kind = self._kind(handle)
        return "a named type" if kind == "type" else f"a{'n' * (kind[0] in 'aeiou')} {kind}"

    def _require(self, path: str, kind: str = "") -> Any:
        found = self._object(path)
        if found is None:
            raise RefusedError(NOT_THERE)
        if kind and self._kind(found) != kind:
            raise RefusedError(f"{self._kind_name(found)}, expected a {kind}")
        return found

    def kind(self, path: str) -> str | None:
        """Return ``group``, ``dataset``, or None if there is no object."""
        found = self._object(path)
        if found is None:
            return None
        if self._kind(found) not in ("group", "dataset"):
            raise RefusedError(f"{self._kind_name(found)}, expected a group or a dataset")
        return self._kind(found)

    def members(self, path: str) -> dict[str, str]:
        """Return the names and types of a group's members."""
        group = self._require(path, "group")
        if group.get_num_objs() > self._limits["members"]:
            raise RefusedError(f"a group with more than {self._limits['members']} members")
        h5o = self._h5.h5o
        kinds = {h5o.TYPE_GROUP: "group", h5o.TYPE_DATASET: "dataset"}
        found: dict[str, str] = {}
        length = 0

        def note(raw: bytes, info: Any) -> None:
            nonlocal length
            length += len(raw)  # in a damaged file many links may share one long name
            if length > self._limits["text"]:
                raise RefusedError(f"names of members longer than {self._limits['text']} bytes")
            name = raw.decode()
            self._check_link(info.type, name)
            kind = kinds.get(h5o.get_info(group, raw).type)
            if kind is None:
                raise RefusedError(f"'{name}' is neither a group nor a dataset")
            found[name] = kind

        group.links.iterate(note, info=True)
        return found

    # Attributes

    def attributes(self, path: str, names: list[str]) -> dict[str, Any]:
        """Return the requested attributes that exist; long lists of names joined from pieces."""
        owner = self._require(path)
        found = {}
        for name in names:
            value = self._attribute(owner, name)
            if value is None:
                value = self._pieces(owner, name)
            if value is not None:
                found[name] = value
        return found

    def _pieces(self, owner: Any, name: str) -> Any:
        texts: list[str] = []
        number = 0
        while (piece := self._attribute(owner, f"{name}{number}")) is not None:
            if not isinstance(piece, dict) or "texts" not in piece:
                raise RefusedError(f"attribute '{name}{number}' is no list of names")
            texts += piece["texts"]
            number += 1
            self._check_texts(name, texts)
        return {"texts": texts} if number else None

    def _check_texts(self, name: str, texts: list[str]) -> None:
        if len(texts) > self._limits["names"]:
            raise RefusedError(f"attribute '{name}' holds more than {self._limits['names']} names")
        if sum(map(len, texts)) > self._limits["text"]:
            raise RefusedError(f"attribute '{name}' is longer than {self._limits['text']} bytes")

    def _attribute(self, owner: Any, name: str) -> Any:
        h5a, h5t, h5s = self._h5.h5a, self._h5.h5t, self._h5.h5s
        if not h5a.exists(owner, name.encode()):
            return None
        attribute = h5a.open(owner, name.encode())
        space, kind = attribute.get_space(), attribute.get_type()
        if space.get_simple_extent_type() == h5s.NULL:
            raise RefusedError(f"attribute '{name}' is empty")
        shape, count = space.shape, space.get_simple_extent_npoints()
        if len(shape) > 1 or count > self._limits["names"]:
            raise RefusedError(
                f"attribute '{name}' of shape {shape}; at most {self._limits['names']} names"
            )
        if kind.get_class() == h5t.STRING:
            return self._texts(name, attribute, kind, shape)
        if shape == (0,):  # what h5py writes for an empty list of names
            return {"texts": []}
        if kind.get_class() in (h5t.INTEGER, h5t.FLOAT) and shape == ():
            return {"number": self._values(attribute, kind, shape).item()}
        raise RefusedError(f"attribute '{name}' holds {self._classes.get(kind.get_class())}")

    def _values(self, attribute: Any, kind: Any, shape: tuple[int, ...]) -> Any:
        import numpy as np

        values = np.zeros(shape, dtype=kind.dtype)
        attribute.read(values, mtype=self._h5.h5t.py_create(kind.dtype))
        return values

    def _texts(self, name: str, attribute: Any, kind: Any, shape: tuple[int, ...]) -> Any:
        if (
            not kind.is_variable_str()
            and kind.get_size() * max(1, *shape, 1) > self._limits["text"]
        ):
            raise RefusedError(f"attribute '{name}' is longer than {self._limits['text']} bytes")
        values = self._values(attribute, kind, shape).reshape(-1).tolist()
        try:
            texts = [v.encode().decode() if isinstance(v, str) else v.decode() for v in values]
        except UnicodeError:
            raise RefusedError(f"attribute '{name}' is not UTF-8 text") from None
        self._check_texts(name, texts)
        return {"text": texts[0]} if shape == () else {"texts": texts}

    # Datasets

    def dataset(self, path: str) -> dict[str, Any]:
        """Return shape, dtype and the positions of the bytes."""
        found = self._require(path, "dataset")
        shape = self._shape(found)
        return {"shape": shape, "dtype": self._dtype(found), **self._layout(found, shape)}

    def _shape(self, dataset: Any) -> list[int]:
        space = dataset.get_space()
        if space.get_simple_extent_type() == self._h5.h5s.NULL:
            raise RefusedError("an empty dataspace (no values, not even a shape)")
        return list(space.shape)

    def _dtype(self, dataset: Any) -> str:
        h5t, kind = self._h5.h5t, dataset.get_type()
        if kind.committed():
            raise RefusedError("its values are of a named type")
        code = kind.get_class()
        if code == h5t.OPAQUE and kind.get_size() == 2:
            # NumPy writes bfloat16 so; Keras' v3 store says it in an attribute, its .h5 does not
            if self._attribute(dataset, "dtype") in (None, {"text": "bfloat16"}):
                return "bfloat16"
        elif code == h5t.ENUM and kind.dtype == "bool":
            if kind.get_super().equal(h5t.STD_I8LE):
                return "bool"
        elif code in (h5t.INTEGER, h5t.FLOAT):
            name = next((n for n, number in self._numbers.items() if kind.equal(number)), None)
            if name is not None:
                return name
        raise RefusedError(f"it holds {self._classes.get(code, 'values of an unknown kind')}")

    def _layout(self, dataset: Any, shape: list[int]) -> dict[str, Any]:
        h5d, plan = self._h5.h5d, dataset.get_create_plist()
        if plan.get_external_count() > 0:
            raise RefusedError("stored in another file (external storage)")
        layout = plan.get_layout()
        if layout == h5d.VIRTUAL:
            raise RefusedError("put together from other datasets (virtual dataset)")
        if 0 in shape:
            return {"layout": "empty"}
        if layout == h5d.COMPACT:
            return {"layout": "inline", "bytes": self._inline(dataset, shape)}
        if layout == h5d.CHUNKED:
            return {"layout": "chunked", **self._chunks(dataset, plan)}
        return {
            "layout": "contiguous",
            "offset": dataset.get_offset(),
            "stored": dataset.get_storage_size(),
        }

    def _inline(self, dataset: Any, shape: list[int]) -> str:
        import numpy as np

        kind = dataset.get_type()
        count = kind.get_size()
        for length in shape:
            count *= length
        if count > self._limits["inline"]:
            raise RefusedError(f"{count} bytes stored inline")
        values = np.zeros(shape, dtype=kind.dtype)
        everything = self._h5.h5s.ALL
        dataset.read(everything, everything, values, mtype=kind)
        return base64.b64encode(values.tobytes()).decode("ascii")

    def _chunks(self, dataset: Any, plan: Any) -> dict[str, Any]:
        filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
        for code, _, _, name in filters:
            if code not in (GZIP, SHUFFLE, FLETCHER32):
                label = name.decode("utf-8", "replace").strip("\0 ")[:60]
                raise RefusedError(f"filter {code}{f' ({label})' if label else ''}")
        count = dataset.get_num_chunks()
        if count > self._chunks_left:
            raise RefusedError(f"{count} more chunks, where {self._chunks_left} are left")
        self._chunks_left -= count
        return {
            "chunk": list(plan.get_chunk()),
            "filters": [[code, list(values)] for code, _, values, _ in filters],
            "chunks": [
                [*c.chunk_offset, c.filter_mask, c.byte_offset, c.size]
                for c in self._chunk_infos(dataset, count)
            ],
        }

    def _chunk_infos(self, dataset: Any, count: int) -> list[Any]:
        # Before HDF5 1.14.1 the iterator is missing or counts offsets in chunks instead of elements
        if self._h5.version.hdf5_version_tuple[:3] < (1, 14, 1):
            return [dataset.get_chunk_info(i) for i in range(count)]
        infos: list[Any] = []
        dataset.chunk_iter(infos.append)
        return infos


def explain(error: BaseException, limits: dict[str, int]) -> str:
    """Describe in one line why the HDF5 library did not answer."""
    if isinstance(error, RefusedError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"the HDF5 parser needs more than {limits['memory'] >> 20} MiB for it"
    if isinstance(error, SystemError) and error.__cause__ is not None:
        return explain(error.__cause__, limits)  # Cython's wrapping of an error in a destructor
    text = " ".join(str(error.args[0] if error.args else "").split())[:300]
    return f"damaged HDF5 structure ({text or type(error).__name__})"


def answer(index: Index, request: dict[str, Any], limits: dict[str, int]) -> list[Any]:
    """Make one reply for each requested path: ``{"is": ...}`` or ``{"refused": why}``."""
    questions: dict[str, Callable[..., Any]] = {
        "kind": index.kind,
        "members": index.members,
        "attributes": index.attributes,
        "dataset": index.dataset,
    }
    ask = questions[request["ask"]]
    more = request.get("more", [])
    replies = []
    for path in request["paths"]:
        try:
            replies.append({"is": ask(path, *more)})
        except Exception as error:  # h5py raises nine kinds on damaged files
            replies.append({"refused": explain(error, limits)})
    return replies


def say(reply: Any, limits: dict[str, int]) -> None:
    """Send one line; a reply that is too long becomes a refusal."""
    line = json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace")
    if len(line) >= limits["reply"]:
        line = json.dumps([{"refused": "too much to tell about it"}] * len(reply)).encode()
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def serve(job: dict[str, Any]) -> None:
    """Open the file, then answer requests until they end."""
    sys.path += job["import_from"]
    limits = job["limits"]
    try:
        import h5py
    except Exception as error:
        say([{"failed": f"{type(error).__name__}: {error}"}], limits)
        return
    fd = (
        job["fd"]
        if job["fd"] is not None
        else os.open(job["path"], os.O_RDONLY | getattr(os, "O_BINARY", 0))
    )
    give_up_rights(limits)
    try:
        file = h5py.File(InheritedFile(fd, job["offset"], job["size"]), "r")
        index = Index(h5py, file, limits)
    except Exception as error:
        say([{"refused": explain(error, limits)}], limits)
        return
    say([{"is": "open"}], limits)
    for line in sys.stdin.buffer:
        say(answer(index, json.loads(line), limits), limits)


if __name__ == "__main__":
    try:
        serve(json.loads(sys.argv[1]))
    finally:
        # Not sys.exit: the HDF5 library must not close its files through a dying interpreter, which
        # crashes even on good files.
        os._exit(0)
