"""Where in a file the weights of each layer are: by the names that the file lists, or by v3."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from keras2torch_birnn.errors import WeightMismatchError, invalid, printable
from keras2torch_birnn.limits import MAX_GROUP_DEPTH
from keras2torch_birnn.readers.store import Store
from keras2torch_birnn.readers.weights.slots import KERAS2, Layout, Slot, slots
from keras2torch_birnn.readers.weights.v3 import is_v3, v3_paths
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.row import Pages
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec


def weights_group(store: Store) -> str | None:
    """Return the group with ``layer_names``, or None if the file has no legacy weights."""
    for group in ("/", "/model_weights"):
        if store.kind(group) == "group" and "layer_names" in store.attributes(
            group, ["layer_names"]
        ):
            return group
    return None


def legacy_paths(
    root: LayerSpec,
    store: Store,
    group: str,
    layout: Layout,
    left_out: frozenset[LayerPath] = frozenset(),
) -> dict[LayerPath, dict[str, str]]:
    """Locate the weights of each layer: its path -> name -> path in the file.

    left_out: the paths of layers whose weights are passed over, with the group that holds them.
    """
    listed = {name: entries for name, _, entries in _listed_weights(store, group)}
    layers = root.graph.layers if root.graph else ()
    needed = {layer.name: list(slots(layer, layout=layout)) for layer in layers}
    passed_over = {one.name for one in layers if any(p.path in left_out for p in one.walk())}
    for layer in layers:
        inside = any(custom_layer_of(part) is not None for part in layer.walk())
        if inside and not needed[layer.name] and listed.get(layer.name):
            raise _other_count((), listed[layer.name], f"{group.rstrip('/')}/{layer.name}")
    pairs = _pair_layers(needed, listed, passed_over)
    found: dict[LayerPath, dict[str, str]] = {}
    for layer_name, group_name in pairs.items():
        base = f"{group.rstrip('/')}/{group_name}"
        layer = root.graph.layer(layer_name) if root.graph else root
        if layer_name in passed_over:
            continue
        entries = layer_entries(layer, listed[group_name], base, layout)
        for path, named in entries.items():
            found[path] = {name: f"{base}/{entry}" for name, entry in named.items()}
    return found


def named_paths(store: Store, group: str) -> dict[str, str]:
    """Return the name that Keras gave each weight -> its path, in the order of the file.

    Without ":0"; a name that occurs in several layers has its layer's name in front.
    """
    found = [
        (layer, entry.removesuffix(":0"), f"{base}/{entry}")
        for layer, base, entries in _listed_weights(store, group)
        for entry in entries
    ]
    times = Counter(name for _, name, _ in found)
    return {name if times[name] == 1 else f"{layer}/{name}": path for layer, name, path in found}


def layer_entries(
    layer: LayerSpec, entries: Sequence[str], place: str, layout: Layout
) -> dict[LayerPath, dict[str, str]]:
    """Pair the names in a file with the weights of a layer and of all inside it.

    entries: in the order of Keras' ``Layer.weights``. place: for errors.
    Returns path of the layer -> name of the weight -> entry.
    """
    here = _split_by_plugins(layer, layout)
    wanted = list(slots(layer, layout=layout))
    custom = any(part.class_name not in SCHEMA for part in layer.walk())
    if custom and len(wanted) != len(entries):
        raise _other_count(wanted, entries, place)
    pairs = _assign(wanted, entries, place, here)
    if custom:
        _check_order(pairs, here, place)
    found: dict[LayerPath, dict[str, str]] = {}
    for slot, entry in pairs:
        found.setdefault(slot.path, {})[slot.name] = entry
    return found


def _other_count(wanted: Sequence[Slot], entries: Sequence[str], place: str) -> WeightMismatchError:
    """Return the error of a plugin that names more or fewer weights than the file has."""
    names = ", ".join(printable(slot.name) for slot in wanted) or "none"
    return WeightMismatchError(
        f"{len(entries)} weights where the layer's plugin names {len(wanted)} ({names})",
        "name all that the file has, with weights=: "
        f"{', '.join(map(printable, entries)) or 'none'}",
        place=place,
    )


def _check_order(pairs: Sequence[tuple[Slot, str]], layout: Layout, place: str) -> None:
    """Refuse names of a plugin in another order than Keras', where the file's names show it.

    Keras puts the name of a layer into its weights' names, a plugin the attribute that holds it.
    Where an attribute has the name of a layer, it must be that layer.
    """
    labels = frozenset(slot.label for slot, _ in pairs)
    ways = {entry: layout.split(entry, labels) for _, entry in pairs}
    for slot, entry in pairs:
        inside = slot.name.rpartition("/")[0].removesuffix("/cell").rpartition("/")[2]
        right = [
            e for e, (way, label) in ways.items() if (*way[-1:], label) == (inside, slot.label)
        ]
        if len(right) == 1 and entry not in right:
            raise WeightMismatchError(
                f"the weight {printable(entry)} is where {printable(slot.name)} of its plugin "
                "is expected",
                f"name the weights in the file's order: {', '.join(map(printable, ways))}",
                place=place,
            )


def _split_by_plugins(layer: LayerSpec, layout: Layout) -> Layout:
    """Return the layout for one layer: old custom classes prefix weights with their own name."""
    starts = tuple(f"{part.name}_" for part in layer.walk() if part.class_name not in SCHEMA)
    if not starts:
        return layout

    def split(entry: str, labels: Collection[str]) -> tuple[tuple[str, ...], str]:
        segments, label = layout.split(entry, labels)
        start = next((start for start in starts if label.startswith(start)), "")
        return segments, label.removeprefix(start)

    return replace(layout, split=split)


def _listed_weights(store: Store, group: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return each layer's name, its group and the names of its weights, as the file lists them."""
    layers = _names(store.attributes(group, ["layer_names"])["layer_names"], group)
    bases = [f"{group.rstrip('/')}/{layer}" for layer in layers]
    held = store.attributes_of(bases, ["weight_names"])
    return [
        (layer, base, _names(attributes.get("weight_names", ()), base))
        for layer, base, attributes in zip(layers, bases, held, strict=True)
    ]


def _names(value: object, place: str) -> tuple[str, ...]:
    """Return a list of names, none of which leaves its group."""
    if not isinstance(value, tuple):
        raise invalid("a list of names is expected", place)
    for name in value:
        if not {"", ".", ".."}.isdisjoint(name.split("/")):
            raise invalid(f"the name {printable(name)!r} leaves its group", place)
    return value


def _pair_layers(
    needed: Mapping[str, Sequence[Slot]],
    listed: Mapping[str, Sequence[str]],
    passed_over: set[str],
) -> dict[str, str]:
    """Pair layers of the configuration with layers of the file, for all that have weights.

    By name; where names differ (a configuration of another session numbers its layers
    differently) by order, as Keras' ``load_weights`` does, if the counts agree.
    """
    config = [name for name, wanted in needed.items() if wanted or name in passed_over]
    stored = [name for name, entries in listed.items() if entries]
    own, there = frozenset(config), frozenset(stored)
    by_name = there <= own or own <= listed.keys()
    if not by_name and len(config) == len(stored):
        return dict(zip(config, stored, strict=True))
    missing = [n for n in config if n not in there and not (by_name and n in passed_over)]
    extra = [n for n in stored if n not in own]
    if by_name and not missing and not extra:
        return {n: n for n in config if n in listed}
    if missing:
        raise WeightMismatchError(
            f"no weights for layer {', '.join(map(printable, missing[:5]))}",
            "the file is incomplete or belongs to another model",
            place=printable(missing[0]),
        )
    raise WeightMismatchError(
        f"weights for layer {', '.join(map(printable, extra[:5]))}, which needs none",
        "the file belongs to another model",
        place=printable(extra[0]),
    )


# What a layout splits each entry into.
Parts = Mapping[str, tuple[tuple[str, ...], str]]


def _match_names(wanted: Sequence[Slot], parts: Parts) -> list[list[str]]:
    """Find the entries that match each slot by name, two at most: one is unambiguous.

    Looked up by label and by the innermost model's layer, as a group can hold a model of thousands
    of layers.
    """
    under: dict[tuple[str, str], list[str]] = {}
    for entry, (way, label) in parts.items():
        for segment in ("", *dict.fromkeys(way)):
            under.setdefault((label, segment), []).append(entry)
    fitting = (
        (e for e in under.get((slot.label, slot.within), ()) if slot.fits(parts[e][0]))
        for slot in wanted
    )
    return [list(islice(entries, 2)) for entries in fitting]


def _assign(
    wanted: Sequence[Slot], entries: Sequence[str], place: str, layout: Layout
) -> list[tuple[Slot, str]]:
    """Pair every slot with one entry: by name if the names say enough, else by position.

    If names identify only the half of a Bidirectional, positions count within each half: a half
    that was frozen later is listed after the other, and no config says so.
    """
    if len(wanted) != len(entries):
        raise WeightMismatchError(
            f"{len(entries)} weights where the configuration implies {len(wanted)}",
            "the file is incomplete or belongs to another model",
            place=place,
        )
    labels = frozenset(slot.label for slot in wanted)
    parts = {entry: layout.split(entry, labels) for entry in entries}
    if len(parts) != len(entries):
        (twice, _), *_ = Counter(entries).most_common(1)
        raise WeightMismatchError(
            f"the weight {printable(twice)} is listed twice", "the file is damaged", place=place
        )
    named = _match_names(wanted, parts)
    if all(len(found) == 1 for found in named) and len({f[0] for f in named}) == len(wanted):
        return [(slot, found[0]) for slot, found in zip(wanted, named, strict=True)]
    return [
        pair
        for some, theirs in _group_by_half(wanted, parts)
        for pair in _pair_by_number(some, theirs)
        or _pair_by_position(some, list(theirs), parts, place)
    ]


def _group_by_half(wanted: Sequence[Slot], parts: Parts) -> list[tuple[list[Slot], Parts]]:
    """Group slots and entries by half, then the rest; one group if halves are ambiguous."""
    halves = {slot.half.path: slot.half for slot in wanted if slot.half is not None}
    groups: list[tuple[list[Slot], Parts]] = []
    for path, half in halves.items():
        own = [slot for slot in wanted if slot.half is not None and slot.half.path == path]
        groups.append((own, {e: part for e, part in parts.items() if half.fits(part[0])}))
    claimed = Counter(entry for _, theirs in groups for entry in theirs)
    rest = [slot for slot in wanted if slot.half is None]
    groups.append((rest, {entry: part for entry, part in parts.items() if entry not in claimed}))
    once = max(claimed.values(), default=1) == 1
    if once and all(len(some) == len(theirs) for some, theirs in groups):
        return groups
    return [(list(wanted), parts)]


_NUMBER = re.compile(r"(?:_(\d{1,9}))?(?::\d+)?$")


def _pair_by_number(wanted: Sequence[Slot], parts: Parts) -> list[tuple[Slot, str]] | None:
    """Pair cells of a stack by the numbers that TensorFlow 1 appends to repeated names, if any.

    ``kernel``, ``kernel_1``, ...: in the order in which the cells were made, whatever is frozen.
    """
    if not all(slot.stacked for slot in wanted) or len({way for way, _ in parts.values()}) != 1:
        return None
    entries: dict[str, dict[int, str]] = {}
    for entry, (_, label) in parts.items():
        number = _NUMBER.search(entry.rpartition("/")[2])
        entries.setdefault(label, {})[int(number[1] or 0) if number else 0] = entry
    pairs: list[tuple[Slot, str]] = []
    for label in {slot.label: None for slot in wanted}:
        some = [slot for slot in wanted if slot.label == label]
        found = [entry for _, entry in sorted(entries.get(label, {}).items())]
        if len(found) != len(some):
            return None
        pairs += zip(some, found, strict=True)
    return pairs


# Keras 3 calls the kernel of a depthwise convolution just that.
_ALSO = {"depthwise_kernel": "kernel"}


def _pair_by_position(
    wanted: Sequence[Slot], entries: Sequence[str], parts: Parts, place: str
) -> list[tuple[Slot, str]]:
    by_position = sorted(wanted, key=lambda slot: not slot.trainable)
    labels = {slot.label for slot in wanted}
    for slot, entry in zip(by_position, entries, strict=True):
        named = parts[entry][1]
        if named in labels and named not in (slot.label, _ALSO.get(slot.label)):
            raise WeightMismatchError(
                f"the weight {printable(entry)} is where {slot.label} of "
                f"{printable('/'.join(slot.path))} is expected",
                "refused",
                place=place,
            )
    return list(zip(by_position, entries, strict=True))


# ---- any layout ----------------------------------------------------------------------------------


# Locate every weight of a model in an HDF5 store, whichever of Keras' two layouts it has.


WeightPaths = Mapping[LayerPath, Mapping[str, str]]


_LAYOUTS: Mapping[str, Layout] = Pages(
    "keras2torch_birnn.readers.config", "LAYOUTS", {"keras1": "keras1"}
)


def layout_of(generation: Generation) -> Layout:
    """Return the names and layouts that weights have in files of this Keras."""
    return _LAYOUTS.get(generation.name, KERAS2)


def holds_weights(store: Store) -> bool:
    """Tell whether a store holds weights of Keras in any layout."""
    members = store.members("/")
    return weights_group(store) is not None or is_v3(members) or "model_weights" in members


def name_weights(store: Store) -> Mapping[str, str]:
    """Return a name for every weight -> its path: that of Keras, or the path in a v3 store."""
    group = weights_group(store)
    if group is not None:
        return named_paths(store, group)
    found: dict[str, str] = {}
    waiting = [name for name, kind in store.members("/").items() if kind == "group"]
    for path in waiting:
        if path == "optimizer":
            continue
        if path.count("/") > MAX_GROUP_DEPTH:
            raise invalid("groups nested too deep")
        for name, kind in store.members(path).items():
            if kind == "group":
                waiting.append(f"{path}/{name}")
            else:
                found[f"{path}/{name}"] = f"{path}/{name}"
    return found


def locate_weights(
    root: LayerSpec,
    store: Store,
    generation: Generation,
    left_out: frozenset[LayerPath] = frozenset(),
) -> WeightPaths:
    """Find the path of every weight in the store: layer -> name of the weight -> path.

    left_out: the paths of layers whose weights are passed over.
    """
    group = weights_group(store)
    if group is not None:
        return legacy_paths(root, store, group, layout_of(generation), left_out)
    if is_v3(store.members("/")):
        return v3_paths(root, store, generation, left_out)
    if any(True for _ in slots(root)):
        raise WeightMismatchError("no weights in the file", "save the whole model again")
    return {}
