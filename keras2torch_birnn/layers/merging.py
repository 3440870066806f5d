"""Layers that merge a list of tensors: elementwise, by concatenation, by a dot product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.registry import NONE, Converter, Described, MaskFlow, of_options
from keras2torch_birnn.spec import LayerSpec

Tensors: TypeAlias = tuple[Tensor, ...]
# One mask per tensor, (B, T) of a tensor (B, T, F); None where there is none.
Masks: TypeAlias = tuple[Tensor | None, ...]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, tensors)


FUNCTIONS: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "Add": _sum,
    "Subtract": lambda tensors: tensors[0] - tensors[1],
    "Multiply": lambda tensors: reduce(torch.mul, tensors),
    "Average": lambda tensors: _sum(tensors) / len(tensors),
    "Maximum": lambda tensors: reduce(torch.maximum, tensors),
    "Minimum": lambda tensors: reduce(torch.minimum, tensors),
}


def multiply_valid(tensors: Sequence[Tensor], masks: Masks) -> Tensor:
    """Multiply valid values; zero where none is valid if all tensors have masks.

    Keras 3.4 to 3.15 ``merging/multiply.py``.
    """
    counted = [
        x if mask is None else torch.where(mask.unsqueeze(-1), x, 1.0)
        for x, mask in zip(tensors, masks, strict=True)
    ]
    product = FUNCTIONS["Multiply"](counted)
    valid = [mask for mask in masks if mask is not None]
    if len(valid) < len(masks):
        return product
    return torch.where(reduce(torch.logical_or, valid).unsqueeze(-1), product, 0.0)


def choose_valid(
    choose: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Sequence[Tensor], Masks], Tensor]:
    """Make a maximum or minimum of valid values: a masked value is replaced by the other one.

    Keras 3.4 to 3.15 ``merging/base_merge.py`` ``_apply_merge_op_and_or_mask``.
    """

    def merge(tensors: Sequence[Tensor], masks: Masks) -> Tensor:
        out, out_mask = tensors[0], masks[0]
        for x, mask in zip(tensors[1:], masks[1:], strict=True):
            other = x if mask is None else torch.where(mask.unsqueeze(-1), x, out)
            if out_mask is not None:
                out = torch.where(out_mask.unsqueeze(-1), out, other)
            out_mask = None if out_mask is None or mask is None else out_mask | mask
            out = choose(out, other)
        return out

    return merge


MASKED: Mapping[str, Callable[[Sequence[Tensor], Masks], Tensor]] = {
    "Multiply": multiply_valid,
    "Maximum": choose_valid(torch.maximum),
    "Minimum": choose_valid(torch.minimum),
}


class Merge(Described):
    """An elementwise merge; tensors of lower rank get axes of size 1 after the batch."""

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self.class_name = class_name

    def forward(self, tensors: Tensors, mask: Masks | None = None) -> Tensor:
        """Merge a list of tensors (B, ...), with a mask for each."""
        rank = max(x.dim() for x in tensors)
        if mask is None:
            return FUNCTIONS[self.class_name]([_expanded(x, rank) for x in tensors])
        # A tensor that Keras expands has no mask any more.
        kept = tuple(
            m.bool() if m is not None and x.dim() == rank else None
            for x, m in zip(tensors, mask, strict=True)
        )
        return MASKED[self.class_name]([_expanded(x, rank) for x in tensors], kept)


def _expanded(x: Tensor, rank: int) -> Tensor:
    return x.reshape(x.shape[0], *[1] * (rank - x.dim()), *x.shape[1:])


def all_masks(tensors: Tensors, mask: Masks) -> Tensor:
    """Combine masks: a step is valid if it is in every masked tensor."""
    return reduce(torch.logical_and, _distinct(mask))


def any_mask(tensors: Tensors, mask: Masks) -> Tensor:
    """Combine masks: a step is valid if it is in any tensor; all have masks."""
    return reduce(torch.logical_or, _distinct(mask))


def _distinct(masks: Masks) -> list[Tensor]:
    """Return the masks there are, once each: what layers know of one they need not find again."""
    found: list[Tensor] = []
    for mask in masks:
        if mask is not None and not any(mask is one for one in found):
            found.append(mask)
    return found


def _merge_mask(layer: LayerSpec) -> MaskFlow:
    rule = layer.semantics["masking"]
    if rule == "none":
        return NONE
    if rule == "all":
        return MaskFlow(after=all_masks)
    return MaskFlow(takes=layer.class_name in MASKED, after=any_mask, every=True)


# ---- Concatenate, Dot ---------------------------------------------------------------------------


class Concatenate(Described):
    """Concatenation along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, tensors: Tensors) -> Tensor:
        """Concatenate a list of tensors that differ in no other axis."""
        return torch.cat(tensors, dim=self.axis)


def concatenated_mask(tensors: Tensors, mask: Masks, axis: int, rule: str) -> Tensor:
    """Expand masks over the features, concatenate them like their tensors, reduce them again.

    A tensor without mask is valid everywhere (``Concatenate.compute_mask``, Keras 2.2.4 to 3.15).
    """
    known, sizes = _distinct(mask), tensors[0].shape[:-1]
    of_steps = axis in (-1, len(sizes)) and all(m.shape == sizes for m in known)
    if of_steps and (rule == "all" or all(m is not None for m in mask)):
        combine = torch.logical_and if rule == "all" else torch.logical_or
        return reduce(combine, known).bool()  # where there is one, layers after it know it
    parts = []
    for x, m in zip(tensors, mask, strict=True):
        if m is None:
            parts.append(torch.ones_like(x, dtype=torch.bool))
        else:
            spread = m.bool().unsqueeze(-1) if m.dim() < x.dim() else m.bool()
            parts.append(spread.expand_as(x))
    joined = torch.cat(parts, dim=axis)
    return joined.all(dim=-1) if rule == "all" else joined.any(dim=-1)


def _concatenate_mask(layer: LayerSpec) -> MaskFlow:
    rule = layer.semantics["masking"]
    if rule == "none":
        return NONE
    return MaskFlow(after=concatenated_mask, constants={"axis": layer.config["axis"], "rule": rule})


class Dot(Described):
    """Dot product over one axis of each of two tensors; of normalized ones the cosine.

    The other axes of the first tensor come before those of the second.
    """

    def __init__(self, axes: tuple[int, int], smallest_norm: float | None) -> None:
        super().__init__()
        self.axes, self.smallest_norm = axes, smallest_norm

    def forward(self, tensors: Tensors) -> Tensor:
        """Multiply two tensors (B, ...)."""
        x, y = (
            t.movedim(axis, -1) if self.smallest_norm is None else self._unit(t.movedim(axis, -1))
            for t, axis in zip(tensors, self.axes, strict=True)
        )
        # (B, m, s) (B, s, n) -> (B, m, n)
        product = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
        other = y.flatten(1, -2) if y.dim() > 2 else y.unsqueeze(1)
        out = product @ other.transpose(1, 2)
        shape = (*x.shape[1:-1], *y.shape[1:-1])
        return out.reshape(x.shape[0], *(shape or (1,)))

    def _unit(self, x: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / norm.clamp(min=self.smallest_norm)


class Cosine(nn.Module):
    """Cosine of two vectors, with two axes of size 1: a Merge of Keras 1 with mode "cos"."""

    def forward(self, tensors: Tensors) -> Tensor:
        """Compute (B, F), (B, F) -> (B, 1, 1)."""
        x, y = tensors
        lengths = ((x * x).sum(dim=1) * (y * y).sum(dim=1)).sqrt()
        return ((x * y).sum(dim=1) / lengths.clamp(min=1e-7))[:, None, None]


def dot(layer: LayerSpec) -> nn.Module:
    """Build a Dot."""
    least = layer.semantics["smallest_norm"] if layer.config["normalize"] else None
    return Dot(layer.config["axes"], least)


CONVERTERS: Mapping[str, Converter] = {
    **dict.fromkeys(FUNCTIONS, Converter(lambda layer: Merge(layer.class_name), _merge_mask)),
    "Concatenate": Converter(of_options(Concatenate, "axis"), _concatenate_mask),
    "Merge": Converter(of_options(Cosine), NONE),
    "Dot": Converter(dot, NONE),
}
