"""Script that reads one HDF5 file with h5py, in a process that may crash or hang.

Started by ``parser_process.py``, isolated (``-I -S``), with an inherited open file: it imports h5py
and what else it needs, gives up the rights to import, open files, start processes, write files and
take memory, and only then lets the HDF5 library see the file. Requests and replies are JSON, one a
line; the values of an array are sent as they are stored, in blocks of plain bytes, each behind a
line with its length. The parent checks all that it is told.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import sys
import zlib
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

FLETCHER32, SHUFFLE, GZIP = 3, 2, 1

# Codecs used after the rights are given up, when they cannot be imported any more
CODECS = ("ascii", "utf-8")

NOT_THERE = "not in the file"

# Bytes of values that are sent together
_BLOCK = 4 << 20
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class RefusedError(Exception):
    """The requested object does not exist, or is of a type that is not read."""


class InheritedFile(io.RawIOBase):
    """A part of the inherited file, as a read-only file object for h5py."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd, self._offset, self.size, self._at = fd, offset, size, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position, as in any file."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; after the end with zeros, as the HDF5 library's own drivers do.

        That a file became shorter meanwhile is found by the parent, when it closes it.
        """
        view = memoryview(buffer).cast("B")
        wanted, done = view[: max(0, self.size - self._at)], 0
        while done < len(wanted):
            count = self._read_some(wanted[done:], self._offset + self._at + done)
            if not count:
                break
            done += count
        view[done:] = bytes(len(view) - done)
        self._at += done
        return done

    def _read_some(self, view: memoryview, at: int) -> int:
        if sys.platform != "win32" and hasattr(os, "preadv"):
            return os.preadv(self._fd, [view], at)
        os.lseek(self._fd, at, os.SEEK_SET)  # Windows, where this process alone has this open file
        data = os.read(self._fd, len(view))
        view[: len(data)] = data
        return len(data)


def _mapped_bytes() -> int:
    if sys.platform == "win32":
        return 0
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError):  # not Linux, or no /proc there
        return 1 << 30


def _limit(limits: dict[str, int]) -> None:
    """Set the resource limits, as far as the platform has them."""
    if sys.platform == "win32":
        return
    try:
        import resource
    except ImportError:  # a Python that was built without
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


def _one(kind: str) -> str:
    return f"a{'n' * (kind[0] in 'aeiou')} {kind}"


class Index:
    """Answers to questions about an open HDF5 file."""

    def __init__(self, h5py: Any, source: InheritedFile, limits: dict[str, int]) -> None:
        import numpy

        self._h5, self._np, self._source, self._limits = h5py, numpy, source, limits
        self.file = h5py.File(source, "r")
        self._root = h5py.h5g.open(self.file.id, b"/")
        self._chunks_left = limits["chunks"]
        # Where the bytes of arrays start and end, and whose they are; sorted
        self._taken: list[tuple[int, int, str]] = []
        h5t = h5py.h5t
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

    def _find(self, path: str) -> Any:
        """Open the object at ``path``, through hard links only; None if there is none."""
        parts = path.strip("/").split("/") if path.strip("/") else []
        if "//" in path or any(part in ("", ".", "..") for part in parts):
            raise RefusedError("not a plain path")
        if len(parts) > self._limits["depth"]:
            raise RefusedError(f"a path of {len(parts)} groups, more than {self._limits['depth']}")
        if any("\0" in p or len(p.encode()) > self._limits["name"] for p in parts):
            raise RefusedError(f"a name longer than {self._limits['name']} bytes")
        found, above = self._root, "/"
        for part in parts:
            if (kind := self._kind(found)) != "group":
                raise RefusedError(f"'{above}' is {_one(kind)}, expected a group")
            key = part.encode()
            if not found.links.exists(key):
                return None
            self._check_link(found.links.get_info(key).type, part)
            found, above = self._h5.h5o.open(found, key), part
        return found

    def _check_link(self, link: int, name: str) -> None:
        h5l = self._h5.h5l
        if link != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
            raise RefusedError(f"'{name}' is {kinds.get(link, 'a user-defined link')}")

    def _kind(self, handle: Any) -> str:
        h5i = self._h5.h5i
        kinds = {h5i.GROUP: "group", h5i.DATASET: "dataset", h5i.DATATYPE: "named type"}
        return kinds.get(h5i.get_type(handle), "unknown object")

    def _require(self, path: str, *kinds: str) -> Any:
        found = self._find(path)
        if found is None:
            raise RefusedError(NOT_THERE)
        if (kind := self._kind(found)) not in kinds:
            raise RefusedError(f"{_one(kind)}, expected {' or '.join(map(_one, kinds))}")
        return found

    def kind(self, path: str) -> str | None:
        """Return ``group``, ``dataset``, or None if there is no object."""
        if self._find(path) is None:
            return None
        return self._kind(self._require(path, "group", "dataset"))

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
        owner = self._require(path, "group", "dataset")
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
        shape, count, group = space.shape, space.get_simple_extent_npoints(), kind.get_class()
        if len(shape) > 1 or count > self._limits["names"]:
            raise RefusedError(
                f"attribute '{name}' of shape {shape}; at most {self._limits['names']} names"
            )
        if group != h5t.STRING and shape == (0,):  # what h5py writes for an empty list of names
            return {"texts": []}
        numbers = group in (h5t.INTEGER, h5t.FLOAT) and shape == ()
        if group != h5t.STRING and not numbers:
            raise RefusedError(f"attribute '{name}' holds {self._classes.get(group)}")
        long = not kind.is_variable_str() if group == h5t.STRING else False
        if long and kind.get_size() * max(1, count) > self._limits["text"]:
            raise RefusedError(f"attribute '{name}' is longer than {self._limits['text']} bytes")
        values = self._np.zeros(shape, dtype=kind.dtype)
        attribute.read(values, mtype=h5t.py_create(kind.dtype))
        if numbers:
            return {"number": values.item()}
        try:
            texts = [
                v.encode().decode() if isinstance(v, str) else v.decode()
                for v in values.reshape(-1).tolist()
            ]
        except UnicodeError:
            raise RefusedError(f"attribute '{name}' is not UTF-8 text") from None
        self._check_texts(name, texts)
        return {"text": texts[0]} if shape == () else {"texts": texts}

    # Datasets

    def dataset(self, path: str) -> dict[str, Any]:
        """Return shape, dtype, and how many bytes compressed chunks inflate to."""
        found = self._require(path, "dataset")
        shape, dtype = self._shape(found), self._dtype(found)
        return {"shape": shape, "dtype": dtype, "inflated": self._locate(path, found, shape)}

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
            name = kind.dtype.str.replace("|", "<")
            if name[1:] in _NUMBERS and kind.equal(h5t.py_create(kind.dtype)):
                return str(name)
        raise RefusedError(f"it holds {self._classes.get(code, 'values of an unknown kind')}")

    def _locate(self, path: str, dataset: Any, shape: list[int]) -> int:
        """Check that all values are in this file; return what compressed chunks inflate to."""
        h5d, plan = self._h5.h5d, dataset.get_create_plist()
        if plan.get_external_count() > 0:
            raise RefusedError("stored in another file (external storage)")
        layout, item = plan.get_layout(), dataset.get_type().get_size()
        if layout == h5d.VIRTUAL:
            raise RefusedError("put together from other datasets (virtual dataset)")
        size = math.prod(shape) * item
        if not size:
            return 0
        if layout == h5d.CHUNKED:
            filters, chunk = self._filters(plan), plan.get_chunk()
            grid = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
            count = dataset.get_num_chunks()
            if count != grid:
                raise RefusedError(f"{count or 'none'} of its {grid} chunks stored")
            if count > self._chunks_left:
                raise RefusedError(f"{count} more chunks, where {self._chunks_left} are left")
            self._chunks_left -= count
            expected = math.prod(chunk) * item
            for one in self._chunk_infos(dataset, count):
                self._take(path, one.byte_offset, one.byte_offset + one.size)
                applied = _applied(filters, one.filter_mask)
                stored = expected + 4 * (FLETCHER32 in applied)
                if GZIP not in applied and one.size != stored:
                    raise RefusedError(f"a chunk of {one.size} bytes, expected {stored}")
            return grid * expected if GZIP in filters else 0
        inside, start, stored = layout == h5d.COMPACT, dataset.get_offset(), 0
        if inside or start is not None:
            stored = dataset.get_storage_size()
        if stored != size:
            raise RefusedError(f"{stored or 'no'} bytes stored, {size} declared")
        if not inside:
            self._take(path, start, start + size)
        return 0

    def _take(self, path: str, start: int, end: int) -> None:
        """Take bytes of the file for an array, which no other has."""
        if end > self._source.size:
            raise RefusedError(f"its bytes end at {end}, the file at {self._source.size}")
        at = bisect_left(self._taken, (start, end, path))
        for first, last, owner in self._taken[max(0, at - 1) : at + 1]:
            if first < end and start < last:
                raise RefusedError(f"its bytes are also those of {owner}")
        self._taken.insert(at, (start, end, path))

    def _chunk_infos(self, dataset: Any, count: int) -> list[Any]:
        # Before HDF5 1.14.1 the iterator is missing or counts offsets in chunks instead of elements
        if self._h5.version.hdf5_version_tuple[:3] < (1, 14, 1):
            return [dataset.get_chunk_info(i) for i in range(count)]
        infos: list[Any] = []
        dataset.chunk_iter(infos.append)
        return infos

    def _filters(self, plan: Any) -> list[int]:
        codes: list[int] = []
        for number in range(plan.get_nfilters()):
            code, _, _, name = plan.get_filter(number)
            if code not in (GZIP, SHUFFLE, FLETCHER32):
                label = name.decode("utf-8", "replace").strip("\0 ")[:60]
                raise RefusedError(f"filter {code}{f' ({label})' if label else ''}")
            if code in codes:
                raise RefusedError(f"filter {code} twice")
            codes.append(code)
        return codes

    # Values

    def values(self, path: str, out: BinaryIO) -> None:
        """Send the values of an array that ``dataset`` has answered for, as they are stored."""
        dataset = self._require(path, "dataset")
        kind, shape = dataset.get_type(), self._shape(dataset) or [1]
        rows, rest = shape[0], shape[1:]
        row = math.prod(rest) * kind.get_size()
        if not rows * row:
            return
        plan, h5s = dataset.get_create_plist(), self._h5.h5s
        chunk = plan.get_chunk() if plan.get_layout() == self._h5.h5d.CHUNKED else ()
        most = -(-_BLOCK // row)
        step = min(rows, -(-most // chunk[0]) * chunk[0] if chunk else most)
        buffer = self._np.zeros(step * row, "u1")
        for start in range(0, rows, step):
            count = min(step, rows - start)
            if chunk:
                self._check_chunks(dataset, shape, range(start, start + count, chunk[0]))
            file_space, block = dataset.get_space(), buffer[: count * row]
            if file_space.shape:
                file_space.select_hyperslab((start, *([0] * len(rest))), (count, *rest))
            # As they are stored: the library converts nothing
            dataset.read(h5s.create_simple((count, *rest)), file_space, block, mtype=kind)
            out.write(b"%d\n" % len(block))
            out.write(block.data)

    def _check_chunks(self, dataset: Any, shape: list[int], rows: range) -> None:
        """Refuse chunks that are missing, or do not inflate to as many bytes as they should.

        The library gives zeros for the former, and what lies behind the latter in memory.
        """
        plan = dataset.get_create_plist()
        filters, chunk = self._filters(plan), plan.get_chunk()
        expected = math.prod(chunk) * dataset.get_type().get_size()
        others = [range(0, size, step) for size, step in zip(shape[1:], chunk[1:], strict=True)]
        for start in product(rows, *others):
            skipped, raw = dataset.read_direct_chunk(start)
            applied = _applied(filters, skipped)
            if GZIP in applied:
                _check_inflation(raw, applied, expected)


def _applied(filters: list[int], skipped: int) -> list[int]:
    """Return the filters that were applied to a chunk; bit ``i`` says that filter ``i`` was not."""
    return [code for number, code in enumerate(filters) if not skipped >> number & 1]


def _check_inflation(raw: bytes, filters: list[int], expected: int) -> None:
    """Refuse a compressed chunk that does not become exactly as many bytes as are expected."""
    at = filters.index(GZIP)
    expected += 4 * (FLETCHER32 in filters[:at])
    raw = raw[:-4] if FLETCHER32 in filters[at:] else raw
    engine = zlib.decompressobj()
    try:
        # One byte more than expected: enough to see that there is more, or that it ended
        found = len(engine.decompress(raw, expected + 1))
    except zlib.error as error:
        raise RefusedError(f"damaged gzip data ({error})") from None
    if found != expected or not engine.eof or engine.unused_data:
        what = f"more than {expected}" if found > expected else f"{found}"
        raise RefusedError(f"a chunk inflates to {what} bytes, expected exactly {expected}")


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


def say(reply: Any, limits: dict[str, int], out: BinaryIO) -> None:
    """Send one line; a reply that is too long becomes a refusal."""
    line = json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace")
    if len(line) >= limits["reply"]:
        line = json.dumps([{"refused": "too much to tell about it"}] * len(reply)).encode()
    out.write(line + b"\n")
    out.flush()


def respond(index: Index, line: bytes, limits: dict[str, int], out: BinaryIO) -> None:
    """Answer a request: for each path ``{"is": ...}`` or ``{"refused": why}``."""
    request = json.loads(line)
    questions: dict[str, Callable[..., Any]] = {
        "kind": index.kind,
        "members": index.members,
        "attributes": index.attributes,
        "dataset": index.dataset,
        "values": partial(index.values, out=out),
    }
    replies = []
    for path in request["paths"]:
        try:
            replies.append({"is": questions[request["ask"]](path, *request["more"])})
        except Exception as error:  # h5py raises nine kinds on damaged files
            replies.append({"refused": explain(error, limits)})
    say(replies, limits, out)


def serve(job: dict[str, Any], out: BinaryIO) -> None:
    """Open the file, then answer requests until they end."""
    sys.path += job["import_from"]
    limits, fd = job["limits"], job["fd"]
    try:
        import h5py
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"}, limits, out)
        return
    if fd is None:
        fd = os.open(job["path"], os.O_RDONLY | getattr(os, "O_BINARY", 0))
    give_up_rights(limits)
    try:
        index = Index(h5py, InheritedFile(fd, job["offset"], job["size"]), limits)
    except Exception as error:
        say({"refused": explain(error, limits)}, limits, out)
        return
    for line in sys.stdin.buffer:
        respond(index, line, limits, out)


if __name__ == "__main__":
    try:
        serve(json.loads(sys.argv[1]), sys.stdout.buffer)
    finally:
        # Not sys.exit: the HDF5 library must not close its files through a dying interpreter, which
        # crashes even on good files.
        os._exit(0)
