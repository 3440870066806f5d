"""HDF5 files near a real model's layout, well-formed down to the last byte, and odd in content.

A good file is read into a tree of plain data. The tree is changed (lists of names that fit nothing,
arrays of other shapes under other names, JSON with other values), and written by the HDF5 library.
Links, numbers and storage that no Keras writes are in ``attacks/test_hdf5_files.py``, one by one.
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


def odd_copy(data: bytes, random: Random, *, well_formed: bool, mark: str = EVIL) -> bytes:
    """A copy of an HDF5 file with changes, written as Keras writes it if it is ``well_formed``."""
    tree = _tree(data)
    if well_formed or random.random() < 0.5:
        tree = _changed(tree, mark, random)
    options: dict[str, Any] = {}
    if not well_formed:
        options["libver"] = random.choice(_LIBVERS)
        options |= {"userblock_size": random.choice((512, 1024))} if random.random() < 0.1 else {}
        options |= {"track_order": True} if random.random() < 0.1 else {}
    with h5py.File("made", "w", driver="core", backing_store=False, **options) as new:
        _write(tree, new, random, 0 if well_formed else 0.3)
        new.flush()
        made = new.id.get_file_image()
    return made if well_formed or random.random() < 0.85 else damaged(made, random)


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
    """Write a group; ``rate`` of its arrays are stored otherwise than Keras stores them."""
    if not isinstance(tree, dict):
        return
    attributes, members = tree.get("attrs"), tree.get("members")
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        with suppress(*_NOT_WRITTEN):
            new.attrs[name] = _attribute(value, random)
    for name, one in members.items() if isinstance(members, dict) else ():
        with suppress(*_NOT_WRITTEN):
            if isinstance(one, dict):
                _write(one, new.create_group(name), random, rate)
            else:
                new.create_dataset(name, data=one, **_storage(np.shape(one), random, rate))


def _attribute(value: Any, random: Random) -> Any:
    if isinstance(value, dict):
        return value.text(random) if isinstance(value, Json) else json.dumps(value, default=str)
    if isinstance(value, list):
        return np.array([str(one) for one in value], h5py.string_dtype())
    return value


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
