"""Source text of layers that merge a list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

from keras2torch_birnn.exporting.source.activation import TORCH
from keras2torch_birnn.exporting.source.emission import (
    MASK_REACHES,
    Emission,
    Emit,
    Helper,
    Site,
    arguments,
    literal,
    refuse,
)
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.merging"


def _nested(function: str) -> Callable[[Sequence[str]], str]:
    return lambda parts: reduce(lambda a, b: f"{function}({a}, {b})", parts)


_MERGES: Mapping[str, Callable[[Sequence[str]], str]] = {
    "Add": " + ".join,
    "Subtract": " - ".join,
    "Multiply": " * ".join,
    "Average": lambda parts: f"({' + '.join(parts)}) / {len(parts)}",
    "Maximum": _nested("torch.maximum"),
    "Minimum": _nested("torch.minimum"),
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

    def call(site: Site) -> str:
        tensors = list(site.x)
        if len(ranks) != len(tensors) or not all(ranks):
            raise refuse(layer, "inputs of unknown rank")
        axes = [", None" * (most - rank) for rank in ranks]
        parts = [f"{x}[:{new}]" if new else x for x, new in zip(tensors, axes, strict=True)]
        return _MERGES[layer.class_name](parts)

    needs_torch = layer.class_name in ("Maximum", "Minimum")
    return Emission(call, helpers=(TORCH,) if needs_torch else ())


def _masked(layer: LayerSpec, name: str) -> Emission:
    """Write a merge of which the masks decide what counts."""

    def call(site: Site) -> str:
        mask = "" if site.mask is None else f", ({', '.join(map(str, site.mask))})"
        return f"self.{name}(({', '.join(site.x)}){mask})"

    return Emission(
        call,
        {name: f"Merge({literal(layer.class_name)})"},
        helpers=(Helper(_LAYERS, "Merge"),),
    )


def _concatenate(layer: LayerSpec, name: str) -> Emission:
    axis = literal(layer.config["axis"])
    return Emission(lambda site: f"torch.cat(({', '.join(site.x)}), dim={axis})", helpers=(TORCH,))


def _dot(layer: LayerSpec, name: str) -> Emission:
    least = layer.semantics["smallest_norm"] if layer.config["normalize"] else None
    options = arguments(tuple(map(int, layer.config["axes"])), least)
    return Emission(
        lambda site: f"self.{name}(({', '.join(site.x)}))",
        {name: f"Dot({options})"},
        helpers=(Helper(_LAYERS, "Dot"),),
    )


def _cosine(layer: LayerSpec, name: str) -> Emission:
    return Emission(
        lambda site: f"self.{name}(({', '.join(site.x)}))",
        {name: "Cosine()"},
        helpers=(Helper(_LAYERS, "Cosine"),),
    )


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys(_MERGES, _merge),
    "Concatenate": _concatenate,
    "Dot": _dot,
    "Merge": _cosine,
}
