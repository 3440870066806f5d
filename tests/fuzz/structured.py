"""HDF5 files near a real model's layout, well-formed down to the last byte, and odd in content.

A good file is copied object by object through the HDF5 library; now and then an object is written
in a way that no Keras writes it: another kind of link, of number, of storage, of shape, of text.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzz.mutants import damaged

_DTYPES = "<f2 >f4 <f8 <i4 u1 bool S3 O c8 ref compound V2 f16".split()
# Combinations that the HDF5 library itself does not write
NOT_WRITTEN = (OSError, ValueError, TypeError, RuntimeError, KeyError)
_LIBVERS = ("earliest", "earliest", "latest", "v108", "v110")


@dataclass
class Group:
    """A group of a file, in plain data."""

    attrs: dict[str, Any] = field(default_factory=dict)
    members: dict[str, Any] = field(default_factory=dict)

    def walk(self) -> Iterator[Group]:
        """Yield this group and all in it."""
        yield self
        for one in self.members.values():
            if isinstance(one, Group):
                yield from one.walk()

    def copy(self) -> Group:
        """Return other groups with the same arrays."""
        members = self.members.items()
        inside = {name: one.copy() if isinstance(one, Group) else one for name, one in members}
        return Group(dict(self.attrs), inside)


@cache
def tree(data: bytes) -> Group:
    """The content of a good HDF5 file, which nobody may change."""

    def group(found: Any) -> Group:
        items = found.items()
        return Group(
            dict(found.attrs),
            {n: group(m) if isinstance(m, h5py.Group) else np.asarray(m[()]) for n, m in items},
        )

    with h5py.File(io.BytesIO(data)) as file:
        return group(file)


def odd_copy(data: bytes, random: Random, rate: float = 0.04) -> bytes:
    """A copy of an HDF5 file in which about ``rate`` of the objects are written oddly."""
    options: dict[str, Any] = {"libver": random.choice(_LIBVERS)}
    if random.random() < 0.1:
        options["userblock_size"] = random.choice((512, 1024))
    if random.random() < 0.1:
        options["track_order"] = True
    with h5py.File("made", "w", driver="core", backing_store=False, **options) as new:
        _copy(tree(data), new, random, rate)
        new.flush()
        made = new.id.get_file_image()
    return damaged(made, random) if random.random() < 0.15 else made


def _copy(old: Group, new: Any, random: Random, rate: float) -> None:
    for name, value in old.attrs.items():
        with suppress(*NOT_WRITTEN):
            _attribute(new, name, value, random, rate)
    if random.random() < rate / 4:
        new.attrs[random.choice(("weight_names", "layer_names", "extra", "name0"))] = b"x" * 100
    for name, found in old.members.items():
        with suppress(*NOT_WRITTEN):
            if isinstance(found, Group):
                _group(new, name, found, random, rate)
            else:
                _dataset(new, name, found, random, rate)


def _group(new: Any, name: str, found: Group, random: Random, rate: float) -> None:
    if random.random() > rate:
        _copy(found, new.create_group(name), random, rate)
        return
    match random.randrange(7):
        case 0:
            new[name] = h5py.SoftLink(random.choice((f"/{name}", "/", "..", "/nowhere")))
        case 1:
            new[name] = h5py.ExternalLink("/etc/hostname", "/")
        case 2:
            new[name] = np.float32(1)
        case 3:
            new[name] = np.dtype("f4")
        case 4:
            new[name] = new.file["/"]  # a cycle of hard links
        case 5:
            _copy(found, new.create_group(name + "_1"), random, rate)
        case _:
            _copy(found, new.create_group(name, track_order=True), random, 4 * rate)


def _dataset(new: Any, name: str, values: Any, random: Random, rate: float) -> None:
    shape = np.shape(values)
    if random.random() > 2 * rate:
        new.create_dataset(name, data=values, **_storage(shape, random, 0.3))
        return
    match random.randrange(12):
        case 0:
            _of_dtype(new, name, values, random)
        case 1:
            wrong = random.choice(
                (shape[::-1], (*shape, 1), shape[:-1], (0, *shape), (2**40, *shape))
            )
            new.create_dataset(name, wrong, "f4")
        case 2:
            new.create_dataset(name, data=h5py.Empty("f4"))
        case 3:
            new.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, 10**6)])
        case 4:
            source = h5py.VirtualSource(random.choice((".", "/etc/hostname")), "x", shape)
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = source
            new.create_virtual_dataset(name, layout)
        case 5:
            new.create_dataset(name, shape, "f4", fillvalue=random.random())
        case 6:
            new.create_dataset(name, shape, "f4", chunks=tuple(max(1, n) for n in shape) or None)
        case 7:
            limit = tuple(None if random.random() < 0.5 else n for n in shape)
            new.create_dataset(name, data=values, maxshape=limit, chunks=True)
        case 8:
            new[name] = h5py.SoftLink(random.choice((f"/{name}", "/", "/nowhere")))
        case 9:
            made = new.create_dataset(name, data=values, chunks=shape or None)
            made.id.write_direct_chunk((0,) * len(shape), random.randbytes(random.randrange(200)))
        case 10:
            new.create_group(name)
        case _:
            flipped = np.array(values)
            flipped.reshape(-1)[: random.randint(0, 3)] = random.choice(
                (np.nan, np.inf, -0.0, 1e38)
            )
            new.create_dataset(name, data=flipped)


def _storage(shape: tuple[int, ...], random: Random, rate: float) -> dict[str, Any]:
    """Options that change how the bytes lie and not what they say."""
    if not shape or 0 in shape or random.random() > rate:
        return {}
    options: dict[str, Any] = {"chunks": tuple(random.randint(1, n) for n in shape)}
    options["compression"] = random.choice((None, 1, 4, 9, "lzf"))
    options["shuffle"] = random.random() < 0.5
    options["fletcher32"] = random.random() < 0.3
    if random.random() < 0.1:
        options["maxshape"] = (None,) * len(shape)
    return options


def _of_dtype(new: Any, name: str, values: Any, random: Random) -> None:
    kind = random.choice(_DTYPES)
    shape = np.shape(values)
    match kind:
        case "O":
            new.create_dataset(name, shape, h5py.string_dtype())
        case "ref":
            new.create_dataset(name, shape, h5py.ref_dtype)
        case "compound":
            new.create_dataset(name, shape, np.dtype([("a", "f4"), ("b", "i1")]))
        case "f16":
            new.create_dataset(name, data=np.asarray(values).astype("longdouble"))
        case "V2":
            new.create_dataset(name, data=np.asarray(values, "f2").view("V2"))
        case _:
            new.create_dataset(name, data=np.nan_to_num(np.asarray(values)).astype(kind))


def _attribute(new: Any, name: str, value: Any, random: Random, rate: float) -> None:
    if random.random() > rate:
        new.attrs[name] = value
        return
    text = value if isinstance(value, str | bytes) else b""
    names = list(value) if isinstance(value, np.ndarray) else [value]
    match random.randrange(11):
        case 0:
            new.attrs[name] = random.choice((7, 1.5, True, np.arange(3), h5py.Empty("S1")))
        case 1:
            new.attrs.create(name, np.array(names, "S"))
        case 2:
            new.attrs.create(name, [str(n) for n in names], dtype=h5py.string_dtype())
        case 3 if text:
            new.attrs[name] = damaged(text.encode() if isinstance(text, str) else text, random)
        case 3 | 4:
            random.shuffle(names)
            new.attrs[name] = names
        case 5:
            new.attrs[name] = names[: random.randint(0, len(names))]
        case 6:
            new.attrs.create(name, np.array([names, names], "S"))
        case 7:
            half = len(names) // 2
            new.attrs[f"{name}0"], new.attrs[f"{name}1"] = names[:half], names[half:]
        case 8 | 9 if len(names) > 1:  # one name twice, in the place of another
            first, second = random.sample(range(len(names)), 2)
            names[first] = names[second]
            new.attrs[name] = names
        case _:
            pass  # left out
