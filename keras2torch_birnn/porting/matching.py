"""Match a port's tensors to those that a right port would have, and say how they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.gates import (
    Order,
    gate_count,
    orders,
    torch_order,
    written,
)
from keras2torch_birnn.porting.layer_call import Weights
from keras2torch_birnn.porting.right_tensors import Leaf
from keras2torch_birnn.rnn.parameters import reorder
from keras2torch_birnn.spec import Array, LayerPath, LayerSpec, ModelSpec

# Values that were rounded on the way, to float32 at most once or twice, are the same.
_SAME = 1e-6
_RECURRENT = {nn.LSTM: "LSTM", nn.GRU: "GRU", nn.RNN: "SimpleRNN"}
_CELLS = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU", nn.RNNCell: "SimpleRNN"}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OWN_LAYOUT = (nn.Linear, nn.Embedding, nn.LayerNorm, *BATCH_NORMS)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_SHOWN = {
    "weight_ih": "kernel",
    "weight_hh": "recurrent kernel",
    "bias_ih": "bias",
    "bias_hh": "recurrent bias",
}
_NORMALIZERS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "the moving mean",
    "running_var": "the moving variance",
}
_REVERSED = {(-1,): "its steps", (-2, -1): "both axes of the image"}
_OF_VALUES = ("rounded", "some values")
_ROLES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True, eq=False)
class Unit:
    """Tensors of a port that belong together: one direction of a layer, or a module's own.

    ``kind``: the Keras class of a recurrent module, "" for others. ``standard``: the layout is
    torch's, so that every deviation is one. ``names``: role -> name in the port.
    """

    module: str
    kind: str
    standard: bool
    names: Mapping[str, str]
    values: Mapping[str, Array] = field(repr=False)


@dataclass(frozen=True)
class Difference:
    """How a tensor differs from the right one: a word for programs, and a sentence's end."""

    kind: str
    words: str
    order: Order | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A unit and the layer that it is a port of; how its tensors differ, by role."""

    unit: Unit
    leaf: Leaf
    differences: Mapping[str, Difference | None]


def find_units(port: nn.Module) -> list[Unit]:
    """Return the units of a port, in the order of its modules."""
    units: list[Unit] = []
    for path, module in port.named_modules():
        start = f"{path}." if path else ""
        own = {
            name: tensor
            for name, tensor in (
                *module.named_parameters(recurse=False),
                *module.named_buffers(recurse=False),
            )
            if tensor.is_floating_point()
        }
        if isinstance(module, nn.RNNBase):
            kind = _kind_of(module, _RECURRENT)
            for suffix in _suffixes(module):
                roles = {r: f"{r}{suffix}" for r in _ROLES if f"{r}{suffix}" in own}
                names = {role: start + name for role, name in roles.items()}
                values = {role: _to_array(own[name]) for role, name in roles.items()}
                units.append(Unit(path, kind, True, names, values))
        elif own:
            kind = _kind_of(module, _CELLS)
            standard = bool(kind) or isinstance(module, (*_OWN_LAYOUT, *_CONVOLUTIONS))
            names = {name: start + name for name in own}
            values = {name: _to_array(tensor) for name, tensor in own.items()}
            units.append(Unit(path, kind, standard, names, values))
    return units


def _kind_of(module: nn.Module, table: Mapping[type, str]) -> str:
    return next((kind for known, kind in table.items() if isinstance(module, known)), "")


def _suffixes(module: nn.RNNBase) -> Iterator[str]:
    for number in range(module.num_layers):
        yield f"_l{number}"
        if module.bidirectional:
            yield f"_l{number}_reverse"


def _to_array(tensor: Tensor) -> Array:
    values: Array = tensor.detach().to_dense().to("cpu", torch.float64).numpy()
    return values


# ---- one tensor ----------------------------------------------------------------------------------


def describe(actual: Array, leaf: Leaf, role: str) -> Difference | None:
    """Say how a port's tensor differs from the right one of the same shape; None: not at all."""
    right = leaf.tensors[role]
    if _same(actual, right):
        return None
    if not actual.any():
        return Difference("missing", "all zeros")
    if actual.ndim == 1 and len(actual) > 1 and (actual == 1).all():
        return Difference("not loaded", "all ones, as before training")
    for factor, words in ((2.0, "doubled"), (0.5, "halved"), (-1.0, "with the wrong sign")):
        if _same(actual, factor * right):
            return Difference(words.split()[0], words)
    count = gate_count(leaf.layer.class_name)
    if count > 1:
        usual = torch_order(leaf.layer)
        for order in orders(count):
            if _same(actual, reorder(right, _by_torch(order, usual), 0)):
                now, then = written(leaf.layer, order), written(leaf.layer, tuple(range(count)))
                return Difference("gate order", f"gates in order {now} instead of {then}", order)
    return _describe_matrix(actual, right, count) or _describe_elements(actual, right)


def _by_torch(order: Order, usual: Order) -> Order:
    """Turn an order by Keras' numbers into one of torch's blocks."""
    place = {gate: at for at, gate in enumerate(usual)}
    return tuple(place[order[gate]] for gate in usual)


def _describe_matrix(actual: Array, right: Array, count: int) -> Difference | None:
    if right.ndim < 2:
        return None
    turned = right.transpose(*range(right.ndim)[::-1])
    if turned.shape == actual.shape and _same(actual, turned):
        return Difference("not transposed", "not transposed (it is square)")
    if _same(actual, turned.reshape(actual.shape)):
        return Difference("reshaped", "reshaped where it has to be transposed")
    if count > 1 and len(right) % count == 0:
        blocks = np.split(right, count)
        if blocks[0].shape[0] == blocks[0].shape[1] and _same(
            actual, np.concatenate([block.T for block in blocks])
        ):
            return Difference("not transposed", "each gate's matrix is not transposed")
    for axes, along in _REVERSED.items():
        if right.ndim - len(axes) > 1 and _same(actual, np.flip(right, axes)):
            return Difference("reversed", f"reversed along {along}")
    for axes in permutations(range(right.ndim)) if right.ndim > 2 else ():
        if _same(actual, right.transpose(axes)):
            moved = ", ".join(str(axis) for axis in axes)
            return Difference("axes", f"its axes are in another order ({moved} of the right ones)")
    return None


def _describe_elements(actual: Array, right: Array) -> Difference:
    apart = ~np.isclose(actual, right, rtol=_SAME, atol=_SAME)
    largest = float(np.abs(right).max(initial=0.0))
    if apart.mean() > 0.5:
        if (off := float(np.abs(actual - right).max())) <= 1e-2 * largest:
            return Difference("rounded", f"rounded: up to {off:.0e} off")
        return Difference("other values", "other values than the file's (not loaded?)")
    first = [int(i) for i in np.argwhere(apart)[0]]
    return Difference(
        "some values", f"{int(apart.sum())} of {apart.size} values differ, first {first}"
    )


def _same(first: Array, second: Array) -> bool:
    return first.shape == second.shape and bool(np.allclose(first, second, rtol=_SAME, atol=_SAME))


# ---- units and layers ----------------------------------------------------------------------------


def match_units(
    units: Sequence[Unit], leaves: Sequence[Leaf], pairs: Sequence[tuple[Unit, Leaf]] = ()
) -> tuple[Match, ...]:
    """Give each layer the unit that holds its values, then the others by shapes and order.

    pairs: those that are known.
    """
    found = [_match(unit, leaf, leaves) for unit, leaf in pairs]
    free = [unit for unit in units if unit not in [one for one, _ in pairs]]
    open_leaves = [leaf for leaf in leaves if leaf not in [one for _, one in pairs]]
    for least in (1.0, 0.0):
        scored = [
            (score, -free.index(unit), -open_leaves.index(leaf), unit, leaf)
            for unit in free
            for leaf in open_leaves
            if (score := _score(unit, leaf)) is not None and score >= least
        ]
        for *_, unit, leaf in sorted(scored, key=lambda one: one[:3], reverse=True):
            if unit in free and leaf in open_leaves:
                free.remove(unit)
                open_leaves.remove(leaf)
                found.append(_match(unit, leaf, leaves))
    return tuple(found)


def unmatched(units: Sequence[Unit], matches: Sequence[Match]) -> list[Unit]:
    """Return the units that are matched to no layer."""
    matched = [match.unit for match in matches]
    return [unit for unit in units if unit not in matched]


def _score(unit: Unit, leaf: Leaf) -> float | None:
    """Rate how well a unit's values fit a layer's; None if it cannot be its port."""
    shared = _shared(unit, leaf)
    if not shared or (unit.kind and unit.kind != leaf.layer.class_name):
        return None
    if unit.kind == "" and any(role.startswith("weight_ih") for role in leaf.tensors):
        return None
    score = 0.0
    for role in shared:
        difference = describe(unit.values[role], leaf, role)
        if difference is None:
            score += 4 if leaf.tensors[role].any() else 0.5
        elif difference.kind not in ("other values", "missing"):
            score += 2
    return score


def _shared(unit: Unit, leaf: Leaf) -> list[str]:
    """Return the roles that both have; none if a matrix has another shape."""
    roles = [role for role in leaf.tensors if role in unit.values]
    fits = all(unit.values[role].shape == leaf.tensors[role].shape for role in roles)
    return roles if fits and any(leaf.tensors[role].any() for role in roles) else []


def _match(unit: Unit, leaf: Leaf, leaves: Sequence[Leaf]) -> Match:
    values = _effective(unit, leaf)
    differences = {
        role: describe(values[role], leaf, role) for role in _shared(unit, leaf) if role in values
    }
    for role, one in differences.items():
        if one is not None and one.kind == "other values":
            differences[role] = _find_elsewhere(values[role], leaf, leaves) or one
    differences |= _find_exchanged(differences, values, leaf)
    return Match(unit, leaf, {**differences, **_describe_biases(unit, leaf)})


def _find_elsewhere(actual: Array, own: Leaf, leaves: Sequence[Leaf]) -> Difference | None:
    """Say which other tensor of the model these values are, the layer's own ones first."""
    for leaf in (own, *leaves):
        for role, right in leaf.tensors.items():
            if right.any() and _same(actual, right):
                where = "" if leaf is own else f" of {printable(leaf.name)}"
                return Difference("exchanged", f"the values of {role}{where}")
    return None


def _find_exchanged(
    differences: Mapping[str, Difference | None], values: Mapping[str, Array], leaf: Leaf
) -> dict[str, Difference]:
    """Say which two tensors of a layer are in each other's place, by Keras' names for them."""
    wrong = [role for role, one in differences.items() if one and one.kind == "exchanged"]
    for one, other in permutations(wrong, 2):
        right = leaf.tensors
        if _same(values[one], right[other]) and _same(values[other], right[one]):
            names = (_NORMALIZERS.get(role, _SHOWN.get(role, role)) for role in (one, other))
            words = f"{' and '.join(names)} are exchanged"
            return dict.fromkeys((one, other), Difference("exchanged", words))
    return {}


def _describe_biases(unit: Unit, leaf: Leaf) -> dict[str, Difference]:
    """Describe mistakes with a GRU's two biases, of which the second is inside the reset gate."""
    if "bias_hh" not in leaf.tensors or leaf.layer.class_name != "GRU":
        return {}
    first, second = unit.values.get("bias_ih"), unit.values.get("bias_hh")
    if first is None or second is None:
        return {}
    right = leaf.tensors["bias_ih"], leaf.tensors["bias_hh"]
    if _same(first, right[0]) and _same(second, right[1]):
        return {}
    if _same(first, right[1]) and _same(second, right[0]):
        words = "the input and the recurrent bias are exchanged"
        return dict.fromkeys(("bias_ih", "bias_hh"), Difference("exchanged", words))
    if _same(first, right[0] + right[1]) and not second.any():
        words = "both biases in one: the recurrent bias of n belongs inside the reset gate"
        return dict.fromkeys(("bias_ih", "bias_hh"), Difference("biases joined", words))
    for role, other, name in (("bias_hh", 0, "recurrent"), ("bias_ih", 1, "input")):
        present = (first, second)[other]
        if _same(present, right[other]) and not unit.values[role].any():
            words = f"the {name} bias is missing: Keras' bias has a row for each"
            return dict.fromkeys(("bias_ih", "bias_hh"), Difference("missing", words))
    raw = {role: describe(unit.values[role], leaf, role) for role in ("bias_ih", "bias_hh")}
    told = {role: one for role, one in raw.items() if one is not None}
    return told if {one.kind for one in told.values()} == {"gate order"} else {}


def _effective(unit: Unit, leaf: Leaf) -> dict[str, Array]:
    """Return a unit's tensors with both biases of a gate as one, where only their sum counts."""
    values = dict(unit.values)
    if not unit.kind or "bias_ih" not in leaf.tensors:
        return values
    first, second = values.get("bias_ih"), values.get("bias_hh")
    if first is None or second is None:
        return values
    if leaf.layer.class_name != "GRU" or not leaf.layer.config["reset_after"]:
        values["bias_ih"] = first + second
        values.pop("bias_hh")
        return values
    summed = 2 * len(first) // 3  # those of r and z: which of both biases holds them is the same
    right = leaf.tensors["bias_hh"][:summed]
    values["bias_ih"] = np.concatenate([first[:summed] + second[:summed] - right, first[summed:]])
    values["bias_hh"] = np.concatenate([right, second[summed:]])
    return values


# ---- what follows from the values ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WrongWeights:
    """Weights of a layer that the port has otherwise than the file, of both directions if alike.

    ``weights``: Keras' own, made from the port's tensors, by the path of the layer; ``tensors``:
    the port's tensors in words.
    """

    path: str
    kind: str
    words: str
    weights: Mapping[LayerPath, Weights]
    tensors: tuple[str, ...]


def wrong_weights(matches: Sequence[Match]) -> list[WrongWeights]:
    """Return what is wrong with the tensors of each layer; the same in both directions is one."""
    found: dict[tuple[str, str], WrongWeights] = {}
    for match in matches:
        wrong = {role: one for role, one in match.differences.items() if one is not None}
        if not match.unit.standard:  # another layout is no mistake, a few other values are
            wrong = {role: one for role, one in wrong.items() if one.kind in _OF_VALUES}
        if not wrong:
            continue
        values = _effective(match.unit, match.leaf)
        own = match.leaf.with_tensors({role: values[role] for role in wrong})
        weights: dict[LayerPath, Weights] = {match.leaf.layer.path: own}
        named = tuple(
            f"{printable(_named(match.unit, role))}: {one.words}" for role, one in wrong.items()
        )
        kind = Counter(one.kind for one in wrong.values()).most_common(1)[0][0]
        key = match.leaf.path, _tell(wrong, match)
        if other := found.get(key):
            weights, named = weights | dict(other.weights), (*other.tensors, *named)
        found[key] = WrongWeights(*key[:1], f"weights: {kind}", key[1], weights, named)
    return list(found.values())


def with_weights(spec: ModelSpec, wrong: Sequence[WrongWeights]) -> ModelSpec:
    """Return a model with the port's own weights."""
    own = {path: weights for one in wrong for path, weights in one.weights.items()}

    def change(_: str, layer: LayerSpec) -> LayerSpec:
        weights = {**layer.weights, **own.get(layer.path, {})}
        return replace(layer.map_inner(change), weights=weights)

    return replace(spec, root=change("", spec.root))


def _tell(wrong: Mapping[str, Difference], match: Match) -> str:
    """Say what is wrong, and in which tensors if others of the layer are right."""
    by_words: dict[str, list[str]] = {}
    for role, one in wrong.items():
        by_words.setdefault(one.words, []).append(_SHOWN.get(role, role))
    alone = len(by_words) == 1 and all(role in wrong for role in match.differences)
    return "; ".join(
        words
        if alone or "bias" in words or "exchanged" in words
        else f"{words} ({', '.join(dict.fromkeys(roles))})"
        for words, roles in by_words.items()
    )


def _named(unit: Unit, role: str) -> str:
    if role == "bias_ih" and unit.kind and "bias_hh" in unit.names:
        return f"{unit.names['bias_ih']} + {unit.names['bias_hh'].rpartition('.')[2]}"
    return unit.names.get(role, role)
