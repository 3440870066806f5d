"""How the values of a loss become one number: masks, sample weights, means.

That differs from generation to generation of Keras: see ``LossRule``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.spec import Generation
from keras2torch_birnn.trainers.compiled import runs_on_tensorflow
from keras2torch_birnn.trainers.losses.formulas import EPSILON, Style


@dataclass(frozen=True)
class LossRule:
    """How a generation makes one number of the values of a loss.

    ``mask``: values at masked places count as 0 in a mean over "all" places; or over the "valid"
    ones, whose number may be ``raised``. ``nonzero``: the mean leaves out rows whose sample weight
    is 0, and values of a row are averaged before they are weighted (Keras before 2.3).
    ``weights``: sample weights get an axis where they lack one. ``logits``: see ``Style``; those of
    "any" softmax, of "vectors" alone, or "none". ``single``: computed in float32.
    """

    style: Style
    mask: Literal["all", "valid"]
    logits: Literal["any", "vectors", "none"]
    raised: float = 0.0
    nonzero: bool = False
    weights: Literal["expanded", "as they are"] = "expanded"
    single: bool = False


def loss_rule(generation: Generation, backend: str = "") -> LossRule:
    """Return the rule of a generation on a backend, TensorFlow if that is not known.

    Keras on another one does not find the logits behind a softmax or sigmoid.
    """
    version = generation.numbers
    if generation.name == "keras3":
        raised = 0.0 if version >= (3, 13) else EPSILON
        if not runs_on_tensorflow(backend):
            style = Style("clipped", True, sparse="divided first")
            return LossRule(style, "valid", "none", raised, weights="as they are")
        return LossRule(Style("clipped", True), "valid", "any", raised, weights="as they are")
    if generation.name == "tf.keras":
        mask: Literal["all", "valid"] = "valid" if version >= (2, 11) else "all"
        of_tensorflow = Style("raised", True, single=True)
        return LossRule(of_tensorflow, mask, "any", single=version < (2, 9))
    if version >= (2, 3):
        return LossRule(Style("raised", True), "all", "vectors")
    return LossRule(Style("by logits", False), "valid", "none", nonzero=True)


def reduce_values(
    values: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    ignored: Tensor | None,
    reduction: str,
    rule: LossRule,
) -> Tensor:
    """Return the sum or mean of the values of a loss, a scalar of their dtype.

    values, mask: a number for each row, or step; masks are true at valid places. weight: as many,
    or one for each row. ignored: false where the target is of an ignored class.

    Raises:
        ArgumentValueError: the shape of the weights does not fit.
    """
    if rule.nonzero:
        return _reduce_like_keras_2(values, weight, mask)
    kind = torch.float32 if rule.single else values.dtype
    factors = _merge_masks(mask, ignored, values, reduction, rule)
    return _reduce(values.to(kind), weight, factors, reduction, rule).to(values.dtype)


def _merge_masks(
    mask: Tensor | None, ignored: Tensor | None, values: Tensor, reduction: str, rule: LossRule
) -> Tensor | None:
    """Return the factors of an output's mask and of targets that are not of an ignored class.

    Where the mean is over "all" places of a mask, those of an ignored class are left out still.
    """
    if rule.mask == "valid" and mask is not None:
        ignored = mask if ignored is None else mask & ignored
        mask = None
    total = None if mask is None else mask.to(values.dtype)
    if ignored is None:
        return total
    valid = ignored.to(values.dtype)
    if reduction not in ("sum", "mean_with_sample_weight"):
        valid = valid * _ratio(valid.numel(), valid.sum() + rule.raised)
    return valid if total is None else total * valid


def _reduce(
    values: Tensor, weight: Tensor | None, total: Tensor | None, reduction: str, rule: LossRule
) -> Tensor:
    """Return the sum or mean of values times weights; ``total``: factors of the masks."""
    if weight is not None:
        total = weight if total is None else _times(total, weight.to(total.dtype), rule, "mask")
    weighted = values
    if total is not None:
        total = total.to(values.dtype)
        weighted = _times(values, total, rule, "values of the loss")
    if reduction == "sum" or weighted.dim() == 0:
        return weighted.sum()
    if reduction == "mean_with_sample_weight" and total is not None:
        return weighted.sum() * _ratio(1, total.sum())
    return weighted.sum() / max(1, weighted.numel())


def _ratio(number: float, by: Tensor) -> Tensor:
    """Return number / by, 0 where ``by`` is 0."""
    return torch.where(by == 0, torch.zeros_like(by), number / torch.where(by == 0, 1.0, by))


def _times(values: Tensor, weight: Tensor, rule: LossRule, what: str) -> Tensor:
    """Multiply by weights of as many axes, or of one more or less."""
    if weight.dim() == values.dim() + 1 and weight.shape[-1] == 1:
        weight = weight.squeeze(-1)
    elif values.dim() == weight.dim() + 1:
        if values.shape[-1] == 1 and weight.dim() > 1:
            values = values.squeeze(-1)
        elif values.shape[-1] == 1 or rule.weights == "expanded":
            weight = weight.unsqueeze(-1)
    try:
        return values * weight
    except RuntimeError:
        raise ArgumentValueError(
            f"weights of shape {tuple(weight.shape)} do not fit the {what}, {tuple(values.shape)}",
            "give one for each of them",
            place="sample_weight",
        ) from None


def _reduce_like_keras_2(values: Tensor, weight: Tensor | None, mask: Tensor | None) -> Tensor:
    if mask is not None:
        kept = mask.to(values.dtype)
        values = values * kept / kept.mean()
    if weight is None:
        return values.mean()
    weight = weight.to(values.dtype)
    if values.dim() > weight.dim():
        values = values.flatten(weight.dim()).mean(dim=-1)
    return (values * weight / (weight != 0).to(values.dtype).mean()).mean()
