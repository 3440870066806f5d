"""Weights of the v3 store (``.keras``, ``.weights.h5``): paths made of class names and counters.

Three numbering rules exist (Keras ``saving/saving_lib.py`` at 2.12/2.13, 2.14/2.15 and 3.x).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from keras2torch_birnn.errors import WeightMismatchError, printable
from keras2torch_birnn.limits import MAX_MODEL_DEPTH
from keras2torch_birnn.readers.store import Store
from keras2torch_birnn.readers.weights.slots import slots
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS, OPS, SCHEMA
from keras2torch_birnn.schema.custom_layers import named_weights, python_name
from keras2torch_birnn.schema.recurrent import STACK
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec

# Ends of the name of a vocabulary in a .keras archive; the path of its layer is between them.
VOCABULARY = ("assets/", "/vocabulary.txt")
# Name of the group of a model's layers: Keras 2.12 to 2.14 / everything since.
ROOTS = ("layers", "_layer_checkpoint_dependencies")
# Layers whose weights are their cell's.
OWN_CELL = (*CELL_GATES, *CONV_LSTMS)


def snake_case(class_name: str) -> str:
    """Convert by Keras' rule: "PReLU" -> "p_re_lu", "ConvLSTM2D" -> "conv_lstm2d"."""
    plain = re.sub(r"\W+", "", python_name(class_name))
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", plain)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def v3_paths(
    root: LayerSpec,
    store: Store,
    generation: Generation,
    left_out: frozenset[LayerPath] = frozenset(),
) -> dict[LayerPath, dict[str, str]]:
    """Locate the weights of each layer: its path -> name -> path in the file.

    left_out: the paths of layers whose weights are passed over.
    """
    layers = _find_root(store)
    found: dict[LayerPath, dict[str, str]] = {}
    for base, layer in v3_places(root, store, generation, layers):
        if layer.path in left_out:
            paths = {}
        elif layer.class_name in SCHEMA:
            cell = "/cell" if layer.class_name in OWN_CELL else ""
            paths = _locate_numbered_weights(layer, f"{base}{cell}", store)
        else:
            paths = _locate_custom_weights(layer, base, store)
        if paths:
            found[layer.path] = paths
    return found


def _find_root(store: Store) -> str:
    top = store.members("/")
    layers = next((name for name in ROOTS if top.get(name) == "group"), None)
    if layers is None:
        raise WeightMismatchError("no weights of layers", "the file is incomplete", place="/")
    return layers


def v3_groups(
    root: LayerSpec, store: Store, generation: Generation, paths: frozenset[LayerPath]
) -> Iterator[str]:
    """Yield the groups of the layers at these paths, each with a slash at its end."""
    for base, layer in v3_places(root, store, generation, _find_root(store)) if paths else ():
        if layer.path in paths:
            yield f"{base}/"


def v3_places(
    root: LayerSpec, store: Store, generation: Generation, group: str
) -> Iterator[tuple[str, LayerSpec]]:
    """Yield every layer with its group in the store."""
    return _resolve_shared(_leaves(root, _Walk(store, group, generation)), store)


def _locate_custom_weights(layer: LayerSpec, base: str, store: Store) -> dict[str, str]:
    """Locate the weights of a plugin's layer, by the names that it declares or by number.

    A name is the path of attributes in the Keras class: "mix/kernel", or, of a layer with a cell,
    "read/forward_layer/kernel". The store has groups of these names, and numbers in them.
    """
    names, held = named_weights(layer) or (), _numbers_below(store, base)
    counts, paths = Counter[str](), {}
    for name in names:
        part = name.rpartition("/")[0]
        group = part if part in held else _joined(part, "cell")
        if counts[group] >= len(held.get(group, ())):
            raise WeightMismatchError(
                f"no weight {printable(name)}, which its plugin names",
                f"the file numbers the weights of this layer: {_listing(held)}",
                place=base,
            )
        paths[name] = f"{_joined(base, group)}/vars/{held[group][counts[group]]}"
        counts[group] += 1
    more = {part: numbers[counts[part] :] for part, numbers in held.items()}
    if any(more.values()):
        raise WeightMismatchError(
            f"weights that its plugin does not name: {_listing(more)}",
            "name all of them in weights=; else the plugin is for another version of the layer",
            place=base,
        )
    return paths


def _numbers_below(store: Store, base: str) -> dict[str, list[str]]:
    """Return the numbers of all weights of a layer and of those inside it, by group."""
    found: dict[str, list[str]] = {}
    waiting = [""]
    for part in waiting:
        group = _joined(base, part)
        if store.kind(group) != "group" or part.count("/") > MAX_MODEL_DEPTH:
            continue
        for name, kind in store.members(group).items():
            if name == "vars" and kind == "group":
                numbers = sorted(store.members(f"{group}/vars"), key=_number)
                found |= {part: numbers} if numbers else {}
            elif kind == "group" and not name.startswith("seed_generator"):
                waiting.append(_joined(part, name))
    return found


def _joined(group: str, name: str) -> str:
    return f"{group}/{name}" if group and name else group or name


def _listing(held: Mapping[str, Iterable[str]]) -> str:
    names = [_joined(part, number) for part, numbers in held.items() for number in numbers]
    return ", ".join(map(printable, names)) or "none"


def _locate_numbered_weights(layer: LayerSpec, base: str, store: Store) -> dict[str, str]:
    """Locate weights by number, those of inner layers ("query/kernel") in groups of their own."""
    groups, counts = SCHEMA[layer.class_name].groups, Counter[str]()
    paths: dict[str, str] = {}
    counts[base] = 0
    for name in expected_weights(layer):
        inside = name.rpartition("/")[0]
        group = f"{base}/{_find_group(groups[inside], base, store)}" if inside else base
        paths[name] = f"{group}/vars/{counts[group]}"
        counts[group] += 1
    if SCHEMA[layer.class_name].may_have_weights:
        for group, count in counts.items():
            _check_no_more(f"{group}/vars", count, store)
    return paths


def _check_no_more(group: str, count: int, store: Store) -> None:
    """Refuse a group with more numbered weights than the layer has, as Keras does."""
    held = store.members(group) if store.kind(group) == "group" else {}
    there = sum(map(str.isdecimal, held))
    if there > count:
        raise WeightMismatchError(
            f"{there} weights where the configuration implies {count}",
            "the file belongs to another model",
            place=group,
        )


def _find_group(names: tuple[str, ...], base: str, store: Store) -> str:
    """Return the first of these groups that the file has, else the first."""
    return next((name for name in names if store.kind(f"{base}/{name}") == "group"), names[0])


# A layer's group, if it has one of its own; the layer; as a cell, the keys from its RNN to it.
Leaf = tuple[str | None, LayerSpec, tuple[str, ...]]


def _resolve_shared(leaves: Iterable[Leaf], store: Store) -> Iterator[tuple[str, LayerSpec]]:
    """Yield every layer with the group that holds its weights.

    Keras writes a layer that is reached in two ways (in a TimeDistributed and on its own) at the
    first place only; at the other there is nothing. A file does not say that two layers are one,
    but then they have the same name and class.
    """
    every = list(leaves)
    twins: dict[tuple[str, ...], list[str]] = {}
    for base, layer, within in every:
        twins.setdefault(_identity(layer, within), []).extend([base] if base else [])
    for base, layer, within in every:
        bases = twins[_identity(layer, within)]
        cell = "/cell" if layer.class_name in OWN_CELL else ""
        if base is None or (len(bases) > 1 and not _holds(store, f"{base}{cell}/vars")):
            base = next((b for b in bases if _holds(store, f"{b}{cell}/vars")), base or "")
        yield base, layer


def _identity(layer: LayerSpec, within: tuple[str, ...]) -> tuple[str, ...]:
    place = layer.path[-max(len(within), 1)] if layer.path else ""  # of it, or of the cell's RNN
    half = place if place in ("forward_layer", "backward_layer") else ""
    return (layer.class_name, layer.name, half, *within)


def _holds(store: Store, group: str) -> bool:
    return store.kind(group) == "group" and bool(store.members(group))


_NUMBER = re.compile("[0-9]{1,9}")


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if _NUMBER.fullmatch(name) else (10**9, name)


@dataclass
class _Walk:
    """One pass over all layers in Keras' order. ``seen``: the layers visited so far."""

    store: Store
    group: str
    generation: Generation
    seen: set[tuple[str, str]] = field(default_factory=set)

    @property
    def counts_twice(self) -> bool:
        """Keras 2.12 and 2.13 visit a layer with weights twice, and count both times."""
        return self.generation.version.startswith(("2.12", "2.13"))

    def visit(self, layer: LayerSpec) -> bool:
        """Mark the layer as visited; return whether it was before."""
        mark = (layer.class_name, layer.name)
        before = mark in self.seen
        self.seen.update((inner.class_name, inner.name) for inner in layer.walk())
        return before


def _leaves(
    layer: LayerSpec, walk: _Walk, base: str | None = "", within: tuple[str, ...] = ()
) -> Iterator[Leaf]:
    """Yield every layer and cell that may have weights. ``within``: RNN and path of a cell."""
    groups: Mapping[str, str] = {key: key for key in layer.parts}
    if layer.class_name == STACK:
        names = _count_classes(layer.parts, skips=False)  # in every version
        groups = {key: f"cells/{name}" for key, name in names.items()}
    for key, part in layer.parts.items():
        place = None if base is None else f"{base}/{groups[key]}"
        if layer.class_name == "RNN":
            within = (layer.name,)
        yield from _leaves(part, walk, place, (*within, key) if within else ())
    if layer.graph is not None:
        group = None if base is None else f"{base}/{walk.group}"
        for inner, name in _number_layers(layer, walk, group).items():
            place = None if name is None else f"{group}/{name}"
            yield from _leaves(layer.graph.layer(inner), walk, place)
    elif not layer.parts:
        yield base, layer, within


def _number_layers(model: LayerSpec, walk: _Walk, group: str | None) -> Mapping[str, str | None]:
    """Return the groups of a model's layers; None for those stored elsewhere, without a number.

    Since 2.14, tf.keras gives no number to a layer that was stored before; Keras 3 does.
    """
    layers = model.graph.layers if model.graph else ()
    if group is None:
        return {layer.name: None for layer in layers}
    names = number_groups(model, skips=walk.counts_twice)
    if walk.generation.name != "tf.keras" or walk.counts_twice or walk.store.kind(group) != "group":
        return names
    held = walk.store.members(group)
    # An operation has no weights, and tf.keras names its group by another class.
    operations = {layer.name for layer in layers if layer.class_name in OPS}
    if all(names[name] in held for name in names.keys() - operations):
        return names
    shared = frozenset(layer.name for layer in layers if walk.visit(layer))
    return {**dict.fromkeys(names), **number_groups(model, skips=False, without=shared)}


def number_groups(
    model: LayerSpec, *, skips: bool, without: frozenset[str] = frozenset()
) -> Mapping[str, str]:
    """Map layer names to group names: the class in snake case, counted per class.

    ``skips``: a layer with weights counts twice. ``without``: layers that do not count.
    """
    # The list of a Sequential has no InputLayer.
    passed_over = "" if model.class_name == "Functional" else "InputLayer"
    counting = {
        layer.name: layer
        for layer in (model.graph.layers if model.graph else ())
        if layer.class_name != passed_over and layer.name not in without
    }
    return _count_classes(counting, skips=skips)


def _count_classes(layers: Mapping[str, LayerSpec], *, skips: bool) -> dict[str, str]:
    counts: Counter[str] = Counter()
    out: dict[str, str] = {}
    for key, layer in layers.items():
        name = snake_case(layer.class_name)
        out[key] = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 2 if skips and _has_weights(layer) else 1
    return out


def _has_weights(layer: LayerSpec) -> bool:
    """Tell whether tf.keras stores weights for the layer."""
    return any(True for _ in slots(layer))


def is_v3(members: Mapping[str, str]) -> bool:
    """Tell whether these are the groups of a v3 store."""
    return any(name in members for name in ROOTS)
