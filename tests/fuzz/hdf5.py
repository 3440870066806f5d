"""HDF5 files near a real model's layout, well-formed down to the last byte, and odd in content.

A good file is read into a tree of plain data. The tree is changed (lists of names that fit nothing,
arrays of other shapes under other names, JSON with other values), and written by the HDF5 library.
Now and then an object is written in a way that no Keras writes it: another kind of link, of number,
of storage, of text.
"""

from __future__ import annotations

import io
import json
from contextlib import suppress
from functools import cache
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzz.changes import EVIL, Json, changed_tree, damaged, list_places, marked, rewired

_DTYPES = "<f2 >f4 <f8 <i4 u1 bool S3 O c8 ref compound V2 f16".split()
# Combinations that the HDF5 library itself does not write
_NOT_WRITTEN = (OSError, ValueError, TypeError, RuntimeError, KeyError, OverflowError)
_LIBVERS = ("earliest", "earliest", "latest", "v108", "v110")


@cache
def _tree(data: bytes) -> dict[str, Any]:
    """The content of a good HDF5 file, which nobody may change."""

    def attribute(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [one.decode() if isinstance(one, bytes) else one for one in value.tolist()]
        text = value.decode() if isinstance(value, bytes) else value
        return Json(json=json.loads(text)) if str(text).startswith("{") else text

    def group(found: Any) -> dict[str, Any]:
        members = found.items()
        return {
            "attrs": {name: attribute(value) for name, value in found.attrs.items()},
            "members": {
                name: group(one) if isinstance(one, h5py.Group) else np.asarray(one[()])
                for name, one in members
            },
        }

    with h5py.File(io.BytesIO(data)) as file:
        return group(file)


def odd_copy(data: bytes, random: Random, *, rate: float = 0.04, mark: str = EVIL) -> bytes:
    """A copy of an HDF5 file with changes, about ``rate`` of whose objects are written oddly.

    With a rate of 0 no object is odd that the HDF5 library could stumble over.
    """
    tree = _tree(data)
    if rate == 0 or random.random() < 0.5:
        tree = _changed(tree, mark, random)
    options: dict[str, Any] = {}
    if rate:
        options["libver"] = random.choice(_LIBVERS)
        options |= {"userblock_size": random.choice((512, 1024))} if random.random() < 0.1 else {}
        options |= {"track_order": True} if random.random() < 0.1 else {}
    with h5py.File("made", "w", driver="core", backing_store=False, **options) as new:
        _write(tree, new, random, rate)
        new.flush()
        made = new.id.get_file_image()
    return damaged(made, random) if rate and random.random() < 0.15 else made


def _changed(tree: Any, mark: str, random: Random) -> Any:
    """Change the tree, or one of its texts of JSON, or put marks into texts."""
    kind = random.random()
    if kind < 0.15:
        return marked(tree, mark, random)
    tree = changed_tree(tree, random)
    texts = [owner[key] for owner, key in list_places(tree) if isinstance(owner[key], Json)]
    if texts and kind < 0.3:
        text = random.choice(texts)
        with suppress(*_NOT_WRITTEN, AttributeError):  # an earlier change took what is rewired
            text["json"] = rewired(text.get("json"), random)
    return tree


def _write(tree: Any, new: Any, random: Random, rate: float) -> None:
    if not isinstance(tree, dict):
        return
    attributes, members = tree.get("attrs"), tree.get("members")
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        with suppress(*_NOT_WRITTEN):
            _write_attribute(new, name, value, random, rate)
    for name, one in members.items() if isinstance(members, dict) else ():
        with suppress(*_NOT_WRITTEN):
            if isinstance(one, dict):
                _write_group(new, name, one, random, rate)
            else:
                _write_array(new, name, one, random, rate)


def _write_attribute(new: Any, name: str, value: Any, random: Random, rate: float) -> None:
    if isinstance(value, dict):
        value = value.text(random) if isinstance(value, Json) else json.dumps(value, default=str)
    if isinstance(value, list):
        value = np.array([str(one) for one in value], h5py.string_dtype())
    if random.random() >= (rate or 0.004):
        new.attrs[name] = value
        return
    names = [str(one) for one in value] if isinstance(value, np.ndarray) else [str(value)[:999]]
    match random.randrange(8):
        case 0:
            new.attrs[name] = h5py.Empty(random.choice(("S1", "f4", "i8")))
        case 1:
            new.attrs[name] = np.zeros((0,), random.choice(("S1", "f4")))
        case 2:
            new.attrs[name] = np.array([names, names], h5py.string_dtype())
        case 3:
            new.attrs[name] = np.array([one.encode() for one in names] or [b""])
        case 4:
            new.attrs[name] = np.array([b"\xff\xfe\x00"] * max(1, len(names)))
        case 5:
            new.attrs[name] = damaged(names[0].encode() if names else b"x", random)
        case 6:  # split, as Keras splits what is too long
            half = len(names) // 2
            new.attrs[f"{name}0"], new.attrs[f"{name}1"] = names[:half], names[half:]
        case _:
            new.attrs[random.choice(("weight_names", "layer_names", "name0"))] = b"x" * 100


def _write_group(new: Any, name: str, found: Any, random: Random, rate: float) -> None:
    if random.random() >= rate:
        _write(found, new.create_group(name), random, rate)
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
            _write(found, new.create_group(name + "_1"), random, rate)
        case _:
            _write(found, new.create_group(name, track_order=True), random, 4 * rate)


def _write_array(new: Any, name: str, values: Any, random: Random, rate: float) -> None:
    shape = np.shape(values)
    if random.random() >= 2 * rate:
        new.create_dataset(name, data=values, **_storage(shape, random, 0.3 if rate else 0))
        return
    match random.randrange(11):
        case 0:
            _write_as(random.choice(_DTYPES), new, name, values)
        case 1:
            wrong = (shape[::-1], (*shape, 1), shape[:-1], (0, *shape), (2**40, *shape))
            new.create_dataset(name, random.choice(wrong), "f4")
        case 2:
            new.create_dataset(name, data=h5py.Empty("f4"))
        case 3:
            new.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, 10**6)])
        case 4:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(random.choice((".", "/etc/hostname")), "x", shape)
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
        case _:
            new.create_group(name)


def _storage(shape: tuple[int, ...], random: Random, rate: float) -> dict[str, Any]:
    """Options that change how the bytes lie and not what they say."""
    if not shape or 0 in shape or random.random() >= rate:
        return {}
    options: dict[str, Any] = {"chunks": tuple(random.randint(1, n) for n in shape)}
    options["compression"] = random.choice((None, 1, 4, 9, "lzf"))
    options["shuffle"] = random.random() < 0.5
    options["fletcher32"] = random.random() < 0.3
    if random.random() < 0.1:
        options["maxshape"] = (None,) * len(shape)
    return options


def _write_as(kind: str, new: Any, name: str, values: Any) -> None:
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
