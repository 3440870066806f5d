"""Source text of layers that merge a list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce

from keras2torch_birnn.exporting.source.code import Expression, call, code, join, member
from keras2torch_birnn.exporting.source.emission import (
    MASK_REACHES,
    Emission,
    Emit,
    Site,
    copied,
    refuse,
)
from keras2torch_birnn.spec import LayerSpec

_MERGES: Mapping[str, Callable[[Sequence[Expression]], Expression]] = {
    "Add": lambda parts: join(" + ", parts),
    "Subtract": lambda parts: join(" - ", parts),
    "Multiply": lambda parts: join(" * ", parts),
    "Average": lambda parts: code("({}) / {}", join(" + ", parts), len(parts)),
    "Maximum": lambda parts: reduce(lambda a, b: code("torch.maximum({}, {})", a, b), parts),
    "Minimum": lambda parts: reduce(lambda a, b: code("torch.minimum({}, {})", a, b), parts),
}


def _rank(shape: object) -> int:
    return len(shape) if isinstance(shape, tuple) else 0


_USE_MASKS = frozenset({"Multiply", "Maximum", "Minimum"})


def _merge(layer: LayerSpec, name: str) -> Emission:
    if layer.class_name in _USE_MASKS and layer.semantics.get(MASK_REACHES):
        return _masked(layer, name)
    shapes = layer.input_shape if isinstance(layer.input_shape, tuple) else ()
    ranks = [_rank(shape) for shape in shapes]
    most = max(ranks, default=0)

    def merge(site: Site) -> Expression:
        tensors = site.tensors
        if len(ranks) != len(tensors) or not all(ranks):
            raise refuse(layer, "inputs of unknown rank")
        parts = [_with_axes(x, most - rank) for x, rank in zip(tensors, ranks, strict=True)]
        return _MERGES[layer.class_name](parts)

    return Emission(merge)


def _with_axes(x: Expression, count: int) -> Expression:
    """Write new axes behind the batch."""
    return code("{}[{}]", x, join(", ", (code(":"), *[None] * count))) if count else x


def _masked(layer: LayerSpec, name: str) -> Emission:
    """Write a merge that counts only values that the masks mark as valid."""

    def merge(site: Site) -> Expression:
        return call(member(name), site.tensors, *[site.mask] * (site.mask is not None))

    return replace(copied(layer, name, "Merge", layer.class_name), call=merge)


def _concatenate(layer: LayerSpec, name: str) -> Emission:
    axis = layer.config["axis"]
    return Emission(lambda site: code("torch.cat({}, dim={})", site.tensors, axis))


def _of_list(layer: LayerSpec, name: str, kind: str, *options: object) -> Emission:
    made = copied(layer, name, kind, *options)
    return replace(made, call=lambda site: call(member(name), site.tensors))


def _dot(layer: LayerSpec, name: str) -> Emission:
    least = layer.semantics["smallest_norm"] if layer.config["normalize"] else None
    axes = tuple(map(int, layer.config["axes"]))
    return _of_list(layer, name, "Dot", axes, least)


def _cosine(layer: LayerSpec, name: str) -> Emission:
    return _of_list(layer, name, "Cosine")


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys(_MERGES, _merge),
    "Concatenate": _concatenate,
    "Dot": _dot,
    "Merge": _cosine,
}
