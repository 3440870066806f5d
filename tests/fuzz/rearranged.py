"""HDF5 files, well written, whose lists, names, arrays and JSON no longer fit each other.

The content of a good file is changed as a whole, and written anew: lists of weights that are too
short, too long or in another order, groups and arrays under other names, other ranks, attributes of
another type, JSON with another value at one place. Archives and JSON files are changed likewise.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import h5py
import numpy as np

from fuzz import structured
from fuzz.mutants import changed_by_key, changed_tree, damaged, rewired
from fuzz.structured import Group

# Ends of lines, commands to the terminal, and a mark that turns the direction of writing.
EVIL = "\nk2t: error: forged\r\x1b]0;title\x07\x1b[2J\u202egnp\u2028"
_NAMES = ("", "0", "1", "2", "7", "-1", "1.0", "٣", "9" * 5000, ".", "vars", "a" * 300, EVIL)
_JSON = ("model_config", "training_config")


def rearranged(data: bytes, random: Random) -> bytes:
    """Return a file after one to three changes, whatever kind of file it is."""
    if data.startswith(b"PK"):
        return _archive(data, random)
    if data[:2] in (b'{"', b"{\n"):
        return _text(data.decode(), random).encode("utf-8", "surrogatepass")
    if b"\x89HDF" not in data[:1032]:  # of TensorFlow
        return damaged(data, random)
    root = structured.tree(data).copy()
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(_CHANGES)(root, random)
    return _written(root)


def _archive(data: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    victims = [name for name in members if name.endswith((".h5", ".json"))]
    for name in random.sample(victims, random.choice((1, 1, 1, 2))):
        members[name] = rearranged(members[name], random)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def _text(text: str, random: Random) -> str:
    change = random.choice((changed_tree, changed_by_key, changed_by_key, rewired, marked))
    return json.dumps(change(json.loads(text), random))


def marked(tree: Any, random: Random) -> Any:
    """Return a copy of a JSON tree with controls in one text, wherever it is, or in many."""
    texts = sorted(set(_texts(tree)))
    chosen = set(random.sample(texts, min(len(texts), random.choice((1, 1, 1, 2, 9)))))

    def mark(value: Any) -> Any:
        if isinstance(value, dict):
            return {mark(key): mark(one) for key, one in value.items()}
        if isinstance(value, list):
            return [mark(one) for one in value]
        return value + EVIL if isinstance(value, str) and value in chosen else value

    return mark(tree)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        yield from tree if isinstance(tree, dict) else ()
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(one)


# ---- changes to a file ---------------------------------------------------------------------------


def _change_json(root: Group, random: Random) -> None:
    held = [(group, key) for group in root.walk() for key in _JSON if key in group.attrs]
    if held:
        group, key = random.choice(held)
        text = group.attrs[key]
        text = text.decode() if isinstance(text, bytes) else str(text)
        with suppress(ValueError):  # an earlier change took its text
            group.attrs[key] = _text(text, random)


def _lists(root: Group) -> list[tuple[Group, str]]:
    """Return every list of names, as the group and the attribute that hold it."""
    return [
        (group, key)
        for group in root.walk()
        for key, value in group.attrs.items()
        if isinstance(value, np.ndarray) and value.ndim == 1
    ]


def _change_list(root: Group, random: Random) -> None:
    """Change a list of names, and now and then what it lists."""
    lists = _lists(root)
    if not lists:
        _rename(root, random)
        return
    group, key = random.choice(lists)
    names = list(group.attrs[key])
    other, other_key = random.choice(lists)
    at = random.randrange(len(names)) if names else 0
    match random.randrange(10):
        case 0 if names:
            del names[at]
        case 1 if names:  # its array goes, too
            _drop(group, str(_plain(names.pop(at))))
        case 2:
            names.insert(at, random.choice([*names, *other.attrs[other_key], *_NAMES]))
        case 3 if names:  # an array more, listed
            old = _find(group, _plain(names[at]))
            _put(group, _plain(names[at]) + "_x", copy.deepcopy(old))
            names.insert(at, _plain(names[at]) + "_x")
        case 4:
            random.shuffle(names)
        case 5 if names:
            names[at] = random.choice([*other.attrs[other_key], *_NAMES])
        case 6:
            names, other.attrs[other_key] = list(other.attrs[other_key]), group.attrs[key]
        case 7 if len(names) > 1:
            one, two = random.sample(range(len(names)), 2)
            names[one], names[two] = names[two], names[one]
        case 8 if names:  # a part of each name gone
            names = [str(_plain(n)).rpartition("/")[2] for n in names]
        case _:
            names = names[: random.randint(0, len(names))]
    group.attrs[key] = names


def _plain(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _find(group: Group, path: str) -> Any:
    found: Any = group
    for part in path.split("/"):
        found = found.members.get(part) if isinstance(found, Group) else None
    return found


def _put(group: Group, path: str, value: Any) -> None:
    *way, last = path.split("/")
    for part in way:
        inner = group.members.setdefault(part, Group())
        if not isinstance(inner, Group):
            return
        group = inner
    if value is not None:
        group.members[last] = value


def _drop(group: Group, path: str) -> None:
    way, _, last = path.rpartition("/")
    holder = _find(group, way) if way else group
    if isinstance(holder, Group):
        holder.members.pop(last, None)


def _change_attribute(root: Group, random: Random) -> None:
    """Give an attribute another type, or take it away."""
    held = [(group, key) for group in root.walk() for key in group.attrs]
    if not held:
        return
    group, key = random.choice(held)
    value = group.attrs[key]
    names = [_plain(n) for n in value] if isinstance(value, np.ndarray) else [str(value)[:9]]
    match random.randrange(12):
        case 0:
            del group.attrs[key]
        case 1:
            group.attrs[key] = random.choice((0, 7, -1, 1.5, float("nan"), True))
        case 2:
            group.attrs[key] = random.choice(("", b"", "x", b"\xff\xfe", EVIL))
        case 3:
            group.attrs[key] = np.array([n.encode() for n in names] or [b""])
        case 4:
            group.attrs[key] = np.array(names, dtype=h5py.string_dtype())
        case 5:
            group.attrs[key] = h5py.Empty(random.choice(("S1", "f4", "i8")))
        case 6:
            group.attrs[key] = np.zeros((0,), random.choice(("S1", "f4")))
        case 7:
            group.attrs[key] = np.arange(len(names))
        case 8:
            group.attrs[key] = np.array([names, names], dtype=h5py.string_dtype())
        case 9:
            group.attrs[key] = names[0] if names else ""
        case 10:
            other, other_key = random.choice(held)
            other.attrs[other_key], group.attrs[key] = value, other.attrs[other_key]
        case _:
            group.attrs[key] = np.array([b"\xff\xfe\x00"] * max(1, len(names)))


def _members(root: Group, kind: type) -> list[tuple[Group, str]]:
    return [(g, name) for g in root.walk() for name, one in g.members.items() if type(one) is kind]


def _rename(root: Group, random: Random) -> None:
    """Rename, drop, copy, move or exchange groups or arrays."""
    places = _members(root, random.choice((Group, np.ndarray)))
    if len(places) < 2:
        return
    (group, name), (other, its) = random.sample(places, 2)
    if group is other and name not in group.members:
        return
    match random.randrange(7):
        case 0:
            group.members[random.choice(_NAMES)] = group.members.pop(name)
        case 1:
            del group.members[name]
        case 2:
            group.members[random.choice(_NAMES)] = copy.deepcopy(group.members[name])
        case 3 | 4:
            one, two = group.members[name], other.members[its]
            if not _within(one, other) and not _within(two, group):
                group.members[name], other.members[its] = two, one
        case 5:
            group.members[name] = copy.deepcopy(other.members[its])
        case _:
            group.members = {n: group.members[n] for n in sorted(group.members, reverse=True)}
            group.members[f"{name}_1"] = group.members.pop(name)


def _within(one: Any, group: Group) -> bool:
    return isinstance(one, Group) and any(inner is group for inner in one.walk())


def _reshape(root: Group, random: Random) -> None:
    """Give an array another rank, shape or kind of numbers."""
    arrays = _members(root, np.ndarray)
    if not arrays:
        return
    group, name = random.choice(arrays)
    old = group.members[name]
    match random.randrange(9):
        case 0:
            new = old.T
        case 1:
            new = old.reshape(-1)
        case 2:
            new = old[None]
        case 3 if old.ndim:
            new = old[0]
        case 4 if old.ndim:
            new = old[:-1]
        case 5:
            new = np.zeros((0, *old.shape[1:]), old.dtype)
        case 6 if old.ndim:
            new = np.concatenate([old, old], random.randrange(old.ndim))
        case 7:
            new = np.nan_to_num(old.astype("f8")).astype(random.choice(("i4", "i8", "u1", "f2")))
        case _:
            new = np.float32(0.5)
    group.members[name] = np.asarray(new)


_CHANGES: tuple[Callable[[Group, Random], None], ...] = (
    *(_change_json, _change_json),
    *(_change_list, _change_list, _change_list),
    *(_change_attribute, _rename, _reshape),
)


def _written(root: Group) -> bytes:
    with h5py.File("made", "w", driver="core", backing_store=False) as file:
        _write(root, file)
        file.flush()
        return bytes(file.id.get_file_image())


def _write(group: Group, new: Any) -> None:
    for name, value in group.attrs.items():
        with suppress(*structured.NOT_WRITTEN):
            if isinstance(value, list):
                texts = [_plain(one) for one in value]
                new.attrs.create(name, texts, (len(texts),), h5py.string_dtype())
            else:
                new.attrs[name] = value
    for name, one in group.members.items():
        with suppress(*structured.NOT_WRITTEN):
            if isinstance(one, Group):
                _write(one, new.create_group(name))
            else:
                new.create_dataset(name, data=one)
