"""Source text of layers that merge a list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

from keras2torch_birnn.exporting.source.code import Expression, code, join
from keras2torch_birnn.exporting.source.emission import MASK_REACHES, Emission, Emit, Site, refuse
from keras2torch_birnn.layers.merging import MASKED
from keras2torch_birnn.spec import LayerSpec

_MERGES: Mapping[str, Callable[[Sequence[Expression]], Expression]] = {
    "Add": lambda parts: join(" + ", parts),
    "Subtract": lambda parts: join(" - ", parts),
    "Multiply": lambda parts: join(" * ", parts),
    "Average": lambda parts: code("({}) / {}", join(" + ", parts), len(parts)),
    "Maximum": lambda parts: reduce(lambda a, b: code("torch.maximum({}, {})", a, b), parts),
    "Minimum": lambda parts: reduce(lambda a, b: code("torch.minimum({}, {})", a, b), parts),
}


def _merge(layer: LayerSpec, name: str, built: Any) -> Emission | None:
    if layer.class_name in MASKED and layer.semantics.get(MASK_REACHES):
        return None
    shapes = layer.input_shape if isinstance(layer.input_shape, tuple) else ()
    ranks = [len(shape) if isinstance(shape, tuple) else 0 for shape in shapes]
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


def _concatenate(layer: LayerSpec, name: str, built: Any) -> Emission:
    axis = layer.config["axis"]
    return Emission(lambda site: code("torch.cat({}, dim={})", site.tensors, axis))


EMITTERS: Mapping[str, Emit] = {**dict.fromkeys(_MERGES, _merge), "Concatenate": _concatenate}
