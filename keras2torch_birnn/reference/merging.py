"""Layers that merge a list of tensors, with their masks.

Every mask rule is written from its own Keras: ``keras/layers/merge.py`` (2.2.4, 2.3.1),
``keras/src/layers/merging/`` (tf.keras 2.15, Keras 3.0 to 3.15). Masks are (B, T) of (B, T, F).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.reference.context import Context, Equation, Result, mask_of_lists
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Binary = Callable[[Array, Array], Array]


def _masks(tensors: tuple[Array, ...], mask: Structure) -> list[Array | None]:
    """Return one mask, or None, for each tensor."""
    if mask is None:
        return [None] * len(tensors)
    return [None if m is None else np.asarray(m).astype(bool) for m in mask]


def _same_rank(tensors: tuple[Array, ...], context: Context) -> list[Array]:
    """Compute ``_Merge.call``: axes of size 1 go in at place 1 until the ranks agree."""
    highest = max(np.ndim(x) for x in tensors)
    out = []
    for x in tensors:
        y = context.number(x)
        while y.ndim < highest:
            y = np.expand_dims(y, 1)
        out.append(y)
    return out


def _merge_mask(masks: list[Array | None], context: Context) -> Array | None:
    """Compute ``_Merge.compute_mask`` of this generation."""
    rule = mask_of_lists(context.generation)
    present = [m for m in masks if m is not None]
    if rule == "none" or not present or (rule == "any" and len(present) < len(masks)):
        return None
    out = present[0]
    for m in present[1:]:
        out = out & m if rule == "all" else out | m
    return out


def folded(function: Binary, finish: Callable[[Array, int], Array] = lambda y, n: y) -> Equation:
    """Make Add, Subtract or Average: fold the tensors; ``finish`` gets their number."""

    def equation(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
        first, *others = _same_rank(inputs, context)
        y = first
        for x in others:
            y = function(y, x)
        return finish(y, len(inputs)), _merge_mask(_masks(inputs, mask), context)

    return equation


def _value_masks(
    tensors: tuple[Array, ...], masks: list[Array | None], context: Context
) -> list[Array | None]:
    """Return the masks (B, T, 1) that values use: since Keras 3.4, of unexpanded tensors."""
    if mask_of_lists(context.generation) != "any":
        return [None] * len(tensors)
    highest = max(np.ndim(x) for x in tensors)
    return [
        None if m is None or np.ndim(x) < highest else m[..., np.newaxis]
        for x, m in zip(tensors, masks, strict=True)
    ]


def multiply(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Multiply._merge_function``; since Keras 3.4 a masked value counts as 1.

    Where all inputs have masks and none counts, the product is 0.
    """
    masks = _masks(inputs, mask)
    tensors, used_masks = _same_rank(inputs, context), _value_masks(inputs, masks, context)
    y: Array = np.ones((), context.dtype)
    for x, m in zip(tensors, used_masks, strict=True):
        y = y * (x if m is None else np.where(m, x, 1))
    present = [m for m in used_masks if m is not None]
    if len(present) == len(used_masks):
        counts: Array = np.zeros((), bool)
        for m in present:
            counts = counts | m
        y = np.where(counts, y, 0)
    return y, _merge_mask(masks, context)


def extreme(function: Binary) -> Equation:
    """Compute Maximum, Minimum. ``_apply_merge_op_and_or_mask`` since Keras 3.4.

    Each tensor meets what came of those before; a masked side takes the other side's value.
    """

    def equation(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
        masks = _masks(inputs, mask)
        tensors, used_masks = _same_rank(inputs, context), _value_masks(inputs, masks, context)
        y, y_mask = tensors[0], used_masks[0]
        for x, m in zip(tensors[1:], used_masks[1:], strict=True):
            if m is not None:
                x = np.where(m, x, y)
            if y_mask is not None:
                y = np.where(y_mask, y, x)
            y_mask = None if m is None or y_mask is None else y_mask | m
            y = function(y, x)
        return y, _merge_mask(masks, context)

    return equation


def concatenate(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Concatenate.call`` and ``.compute_mask``.

    Each mask is spread over its tensor's features, all true where there is none; they are
    concatenated as the tensors are, then reduced over the last axis.

    Raises:
        UnsupportedOptionError: a mask with fewer axes than its tensor has before the features. Each
            Keras spreads it in another way, and most fail.
    """
    axis, masks = layer.config["axis"], _masks(inputs, mask)
    y = np.concatenate([context.number(x) for x in inputs], axis=axis)
    rule = mask_of_lists(context.generation)
    if rule == "none" or all(m is None for m in masks):
        return y, None
    spread = []
    for x, m in zip(inputs, masks, strict=True):
        if m is not None and m.ndim < x.ndim - 1:
            raise UnsupportedOptionError(
                f"a mask of {m.ndim} axes on a tensor of {x.ndim} is not supported",
                "flatten the features before (TimeDistributed(Flatten())), and save again",
                place=context.place,
            )
        if m is None:
            spread.append(np.ones(x.shape, bool))
        elif m.ndim < x.ndim:
            spread.append(np.broadcast_to(m[..., np.newaxis], x.shape))
        else:
            spread.append(m)
    reduce = np.all if rule == "all" else np.any
    return y, reduce(np.concatenate(spread, axis=axis), axis=-1)


def cosine(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Merge.call`` (Keras 1.2.2), mode "cos" of vectors.

    <x, y> / max(sqrt(<x, x> <y, y>), 1e-7).

    ``batch_dot`` makes (B, 1) of a number per sample, ``expand_dims`` (B, 1, 1). No mask.
    """
    x, y = (context.number(tensor) for tensor in inputs)
    samples = [
        np.dot(a, b) / max(np.sqrt(np.dot(a, a) * np.dot(b, b)), 1e-7)
        for a, b in zip(x, y, strict=True)
    ]
    return np.array(samples, context.dtype).reshape(-1, 1, 1), None


def dot(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
    """Compute ``Dot._merge_function``.

    ``batch_dot`` sample by sample, of unit vectors with normalize.

    A single number that is left of a sample becomes a vector of one. No mask.
    """
    tensors = [context.number(x) for x in inputs]
    axes = [axis % x.ndim for axis, x in zip(layer.config["axes"], tensors, strict=True)]
    if layer.config["normalize"]:
        # max(norm, 1e-7) in Keras 3, rsqrt(max(square sum, 1e-12)) before
        least = 1e-7 if context.generation.name == "keras3" else 1e-6
        for i, axis in enumerate(axes):
            norm = np.sqrt(np.sum(tensors[i] ** 2, axis=axis, keepdims=True))
            tensors[i] = tensors[i] / np.maximum(norm, least)
    samples = [
        np.tensordot(x, y, axes=(axes[0] - 1, axes[1] - 1)) for x, y in zip(*tensors, strict=True)
    ]
    out = np.stack(samples)
    return (out[:, np.newaxis] if out.ndim == 1 else out), None


EQUATIONS: Mapping[str, Equation] = {
    "Add": folded(np.add),
    "Subtract": folded(np.subtract),
    "Multiply": multiply,
    "Average": folded(np.add, lambda total, count: total / count),
    "Maximum": extreme(np.maximum),
    "Minimum": extreme(np.minimum),
    "Concatenate": concatenate,
    "Dot": dot,
    "Merge": cosine,
}
