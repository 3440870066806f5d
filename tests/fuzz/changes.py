"""Changes to bytes, to trees of plain data, to the graphs of models, to zip archives.

A tree is of dicts, lists and leaves: a JSON text, the groups and arrays of an HDF5 file, the
content of OUT. A text of JSON inside of such a tree is a ``Json``.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, TypeAlias

import numpy as np

Places: TypeAlias = list[tuple[Any, Any]]

# ---- bytes --------------------------------------------------------------------------------------

_FIELDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)


def damaged(data: bytes, random: Random) -> bytes:
    """Make one to eight edits, a cut, or move a piece."""
    mutant = bytearray(data)
    if not mutant:
        return data
    kind = random.random()
    if kind < 0.05:
        return bytes(mutant[: random.randrange(len(mutant))])
    if kind < 0.10:
        size = random.randint(1, min(512, len(mutant)))
        source, target = (random.randrange(len(mutant) - size + 1) for _ in range(2))
        mutant[target : target + size] = mutant[source : source + size]
        return bytes(mutant)
    if kind < 0.12:
        at, size = random.randrange(len(mutant)), random.randint(1, 64)
        piece = random.randbytes(size)
        return bytes(mutant[:at] + (piece if random.random() < 0.5 else b"") + mutant[at + size :])
    # Structure is dense at the front of these files and behind signatures
    front = random.random() < 0.3
    for _ in range(random.randint(1, 8)):
        at = random.randrange(min(len(mutant), 2048) if front else len(mutant))
        if random.random() < 0.3:
            _overwrite_field(mutant, at, random)
        elif random.random() < 0.3:
            mutant[at] ^= 1 << random.randrange(8)
        else:
            mutant[at] = random.randrange(256)
    return bytes(mutant)


def _overwrite_field(mutant: bytearray, at: int, random: Random) -> None:
    """A length or an address: a special value, something near what stood there, or the size."""
    width = random.choice((2, 4, 8))
    at = min(at & ~(width - 1), len(mutant) - width)
    if at < 0:
        return
    old = int.from_bytes(mutant[at : at + width], "little")
    value = random.choice((*_FIELDS, old + 1, old - 1, old * 2, old ^ 8, len(mutant), at))
    mutant[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


_SIGNATURES = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"BTHD", b"FADB")


def crossed(data: bytes, random: Random) -> bytes:
    """An HDF5 file whose structures point at each other in other ways: cycles, shared parts.

    A pointer is an aligned 8-byte field that holds the place of a structure, counted from the
    signature of the file.
    """
    start = max(0, data.find(b"\x89HDF"))
    targets, at = [], -1
    for signature in _SIGNATURES:
        while (at := data.find(signature, at + 1)) >= 0:
            targets.append(at - start)
    known = set(targets) | {96}
    fields = [
        i
        for i in range(start, len(data) - 8, 8)
        if 0 < (value := int.from_bytes(data[i : i + 8], "little")) < len(data)
        and (value in known or (value % 8 == 0 and value > 90))
    ]
    mutant = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3)) if targets and fields else 0):
        at = random.choice(fields)
        own = max((t for t in targets if t + start <= at), default=targets[0])
        value = random.choice((own, random.choice(targets), random.choice(fields) - start, own + 8))
        mutant[at : at + 8] = value.to_bytes(8, "little")
    return bytes(mutant)


# ---- trees --------------------------------------------------------------------------------------

# Ends of lines, commands to the terminal, and a mark that turns the direction of writing.
EVIL = "\nk2t: error: forged\r\x1b]0;title\x07\x1b[2J\u202egnp\u2028"
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**6, 2**31, 2**63, 10**18),
    *(0.0, 0.5, -1.5, 1e300, float("nan"), float("inf")),
    *("", "relu", "LSTM", "channels_first", "..", "/", "\x00", "a" * 2000, "1.0", "٣", "9" * 5000),
    *(EVIL, b"\xff\xfe", [], {}, [None], [[]], [0, 0, 0]),
    {"class_name": "LSTM", "config": {}},
    {"class_name": "__tuple__", "items": [1, 2]},
    {"class_name": "Functional", "config": {"layers": []}},
)
_DTYPES = ("f2", "f4", "f8", "i1", "i4", "i8", "u1", "?")


class Json(dict[str, Any]):
    """A text of JSON, as its tree under the only key: ``json``."""

    def text(self, random: Random) -> str:
        """Return the text, now and then with a damage that only text can have."""
        return as_text(self.get("json"), random)


def list_places(tree: Any) -> Places:
    """(owner, key) of everything below the root."""
    found: Places = []
    todo = [tree] if isinstance(tree, dict | list) else []
    while todo:
        owner = todo.pop()
        keys = owner.keys() if isinstance(owner, dict) else range(len(owner))
        for key in keys:
            found.append((owner, key))
            if isinstance(owner[key], dict | list):
                todo.append(owner[key])
    return found


def changed_tree(tree: Any, random: Random) -> Any:
    """A copy of a tree with one to four changes."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 4))):
        places = list_places(tree)
        if not places:
            return copy.deepcopy(random.choice(_VALUES))
        owner, key = _choose(places, random)
        _change(owner, key, places, random)
    return tree


def _choose(places: Places, random: Random) -> tuple[Any, Any]:
    """Pick a place: its key or its type first, or else what is common hides the rest."""
    traits: tuple[Callable[[tuple[Any, Any]], str], ...] = (
        lambda place: str(place[1]),
        lambda place: type(place[0][place[1]]).__name__,
    )
    if random.random() < 0.5:
        trait = random.choice(traits)
        chosen = random.choice(sorted({trait(place) for place in places}))
        places = [place for place in places if trait(place) == chosen]
    return random.choice(places)


def _change(owner: Any, key: Any, places: Places, random: Random) -> None:
    value = owner[key]
    match random.randrange(10):
        case 0 | 1:
            owner[key] = copy.deepcopy(random.choice(_VALUES))
        case 2:
            del owner[key]
        case 3:
            other, name = _choose(places, random)
            owner[key] = copy.deepcopy(other[name])
        case 4 if isinstance(owner, list):
            owner.insert(random.randint(0, len(owner)), copy.deepcopy(value))
        case 4:
            owner[str(random.choice((key, "x", "name", "units", "layers")))] = value
        case 5:
            owner[key] = random.choice(([value], {"config": value}, [value, value], str(value)))
        case 6 if isinstance(value, list):
            random.shuffle(value)
        case 6 if isinstance(value, dict) and value:
            value.pop(random.choice(list(value)))
        case 7 if isinstance(owner, dict):  # another name; now and then at the end
            names = (f"{key}_1", str(key).rpartition("/")[2], "", ".", "vars", "7", EVIL)
            owner[random.choice(names)] = owner.pop(key)
        case 7:
            at = random.randrange(len(owner))
            owner[key], owner[at] = owner[at], owner[key]
        case _:
            owner[key] = _tweaked(value, random)


def _tweaked(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return random.choice((value + 1, value - 1, -value, value * 2, value / 3, str(value)))
    if isinstance(value, str):
        return random.choice((value + "_1", value[:-1], value.upper(), value[::-1], value * 2))
    if isinstance(value, list) and value:  # a part of it, or a part of each name
        names = [str(one).rpartition("/")[2] for one in value]
        return random.choice((value[: random.randrange(len(value))], names))
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return _other_array(value, random)
    return copy.deepcopy(random.choice(_VALUES))


def _other_array(old: Any, random: Random) -> Any:
    """Return an array of another rank, shape, dtype or content."""
    match random.randrange(10):
        case 0:
            return old.T.copy()
        case 1:
            return old.reshape(-1)
        case 2:
            return old[None]
        case 3 if old.ndim:
            return old[: random.randrange(len(old) + 1)]
        case 4 if old.ndim:
            return np.concatenate([old, old], random.randrange(old.ndim))
        case 5 | 6:
            return np.nan_to_num(old).astype(random.choice(_DTYPES))
        case 7 if old.dtype.kind == "f":
            return np.full_like(old, random.choice((np.nan, np.inf, 1e38, 0.0, -0.0)))
        case 7 | 8 if old.dtype.kind == "i":
            return np.full_like(old, random.choice((-1, 10**6, 0, 127)) % 128)
        case _:
            return np.zeros(random.choice(((), (0,), (3, 0), (2, 3), (1,) * 9)), "f4")


def marked(tree: Any, mark: str, random: Random) -> Any:
    """Return a copy with ``mark`` behind one text, wherever that text is, or behind several."""
    texts = sorted(set(_texts(tree)))
    chosen = set(random.sample(texts, min(len(texts), random.choice((1, 1, 1, 2, 9)))))

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return type(value)((copied(key), copied(one)) for key, one in value.items())
        if isinstance(value, list):
            return [copied(one) for one in value]
        return value + mark if isinstance(value, str) and value in chosen else value

    return copied(tree)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, list | dict):
        yield from tree if type(tree) is dict else ()
        for one in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(one)


def as_text(tree: Any, random: Random) -> str:
    """JSON text, now and then with a damage that only text can have."""
    text = json.dumps(tree, default=str)
    kind = random.random()
    if kind > 0.06 or not text:
        return text
    at = random.randrange(len(text))
    if kind < 0.02:
        return text[:at]
    if kind < 0.04:
        end = min(len(text), at + random.randint(1, 200))
        return text[:end] + text[at:]
    bits = ("[", "]", "{", "}", ",", ":", '"', "\\", "\\ud800", "1e999", "-", "0" * 30, "NaN", " ")
    return text[:at] + random.choice(bits) + text[at + random.randint(0, 2) :]


# ---- graphs -------------------------------------------------------------------------------------


def rewired(model: Any, random: Random) -> Any:
    """A copy of a functional model with one to three changes to who feeds whom."""
    model = copy.deepcopy(model)
    owners = [o for o, k in list_places(model) if k == "layers" and isinstance(o[k], list) and o[k]]
    if not owners:
        return changed_tree(model, random)
    for _ in range(random.randint(1, 3)):
        owner = random.choice(owners)
        if owner["layers"]:
            _rewire(owner, owner["layers"], random)
    return model


def _rewire(owner: Any, layers: list[Any], random: Random) -> None:
    one, two = random.choice(layers), random.choice(layers)
    configs = [entry.get("config") for entry in layers]  # (lists in some models of Keras 1)
    names = [
        entry.get("name") or (config.get("name") if isinstance(config, dict) else None)
        for entry, config in zip(layers, configs, strict=True)
    ]
    # Every list that starts with a layer's name: the ends of the graph's edges.
    lists = [o[k] for o, k in list_places(owner) if isinstance(o[k], list)]
    references = [r for r in lists if len(r) >= 2 and isinstance(r[0], str) and r[0] in names]
    match random.randrange(9):
        case 0 if "inbound_nodes" in one and "inbound_nodes" in two:
            one["inbound_nodes"], two["inbound_nodes"] = two["inbound_nodes"], one["inbound_nodes"]
        case 1 | 2 if references:
            random.choice(references)[0] = random.choice(names)
        case 3 if references:
            reference = random.choice(references)
            reference[random.randint(1, 2) % len(reference)] = random.choice((-1, 0, 1, 2, 10**9))
        case 4:
            layers.remove(one)
        case 5:
            layers.insert(random.randint(0, len(layers)), copy.deepcopy(one))
        case 6 if one.get("inbound_nodes"):
            nodes = one["inbound_nodes"]
            nodes.append(copy.deepcopy(random.choice(nodes + (two.get("inbound_nodes") or []))))
        case 7:
            random.shuffle(layers)
        case _:
            one["name"] = random.choice(names)
            if random.random() < 0.5 and isinstance(one.get("config"), dict):
                one["config"]["name"] = one["name"]


# ---- zip archives -------------------------------------------------------------------------------


def rezipped(data: bytes, random: Random, change: Callable[[bytes, Random], bytes]) -> bytes:
    """A well-formed archive (right checksums), a member of which is changed by ``change``.

    Odd members and headers are in ``attacks/test_archives.py``, one by one.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    if members:
        at = random.randrange(len(members))
        name, content = members[at]
        members[at] = (name, change(content, random))
    sink = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
    method = random.choices(methods, (6, 3, 0.3))[0]
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method if random.random() < 0.9 else random.choice(methods)
            info.extra = random.randbytes(random.choice((0, 0, 0, 4, 40)))
            archive.writestr(info, content)
        archive.comment = random.randbytes(random.choice((0, 0, 0, 3, 300)))
    return sink.getvalue()
