"""Keras' losses as functions of targets and outputs; each returns a value per row or step.

Sources: ``losses`` and the TensorFlow backend of Keras 2.2.4, 2.3.1, tf.keras 2.10 and 2.15,
tf_keras 2.21, Keras 3.0.5 to 3.15. ``y`` are targets of the dtype and rank of the outputs ``p``,
but class numbers for sparse losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.schema.options import Option, choice, flag, number, optional, size
from keras2torch_birnn.trainers.options import single

EPSILON = 1e-7  # Keras' ``backend.epsilon()``
_LOG_2 = single(math.log(2.0))  # as every Keras computes it, for values of float64 too


@dataclass(frozen=True)
class Style:
    """Rules of a generation that losses differ by.

    ``binary``: binary crossentropy of clipped probabilities; with epsilon added to them again
    ("raised"); or by their logits. ``signs``: hinge losses take targets 0 and 1 as -1 and 1.
    ``probabilities``: the output is known to be a softmax or sigmoid, whose logits that Keras
    finds, so it does not clip. ``single``: the delta of Huber and the weights of classes are
    rounded to float32. ``sparse``: probabilities for class numbers are divided by their sum after
    they are clipped, or before.
    """

    binary: Literal["clipped", "raised", "by logits"]
    signs: bool
    probabilities: Literal["softmax", "sigmoid", ""] = ""
    single: bool = False
    sparse: Literal["clipped first", "divided first"] = "clipped first"


Options: TypeAlias = Mapping[str, Any]
Formula: TypeAlias = Callable[[Tensor, Tensor, Options, Style], Tensor]


class Loss(NamedTuple):
    """One loss: its formula, options, and whether its targets are class numbers."""

    formula: Formula
    options: Mapping[str, Option] = {}
    sparse: bool = False


def _clip(p: Tensor) -> Tensor:
    return p.clamp(EPSILON, 1.0 - EPSILON)


def _log(p: Tensor) -> Tensor:
    """Return log p; where p is rounded to 0 that of the smallest number."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def _simple(formula: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return Loss(lambda y, p, options, style: formula(y, p))


def _mean_log_squares(y: Tensor, p: Tensor) -> Tensor:
    first, second = ((x.clamp_min(EPSILON) + 1.0).log() for x in (p, y))
    return (first - second).square().mean(dim=-1)


def _huber(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    error, delta = (p - y).abs(), options["delta"]
    delta = single(delta) if style.single else delta
    far = delta * error - 0.5 * delta**2
    return torch.where(error <= delta, 0.5 * error.square(), far).mean(dim=-1)


def _log_cosh(y: Tensor, p: Tensor) -> Tensor:
    error = p - y
    return (error + functional.softplus(-2.0 * error) - _LOG_2).mean(dim=-1)


def _divergence(y: Tensor, p: Tensor) -> Tensor:
    y, p = y.clamp(EPSILON, 1.0), p.clamp(EPSILON, 1.0)
    return (y * (y / p).log()).sum(dim=-1)


def _signs(y: Tensor, style: Style) -> Tensor:
    binary = style.signs and bool(((y == 0) | (y == 1)).all())
    return 2.0 * y - 1.0 if binary else y


def _hinge(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    return (1.0 - _signs(y, style) * p).clamp_min(0.0).mean(dim=-1)


def _squared_hinge(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    return (1.0 - _signs(y, style) * p).clamp_min(0.0).square().mean(dim=-1)


def _categorical_hinge(y: Tensor, p: Tensor) -> Tensor:
    wrong = ((1.0 - y) * p).amax(dim=-1)
    return (wrong - (y * p).sum(dim=-1) + 1.0).clamp_min(0.0)


def _cosine(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    axis = options["axis"]
    y, p = (functional.normalize(x, dim=axis) for x in (y, p))
    return -(y * p).sum(dim=axis)


# ---- crossentropies -----------------------------------------------------------------------------


def _smooth(y: Tensor, options: Options, classes: int) -> Tensor:
    amount = options["label_smoothing"]
    return y * (1.0 - amount) + amount / classes if amount else y


def _categorical(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    axis = options["axis"]
    y = _smooth(y, options, y.shape[-1])
    if options["from_logits"] and style.probabilities != "softmax":
        return -(y * functional.log_softmax(p, dim=axis)).sum(dim=axis)
    if style.probabilities == "softmax":
        return -(y * _log(p)).sum(dim=axis)
    return -(y * _clip(p / p.sum(dim=axis, keepdim=True)).log()).sum(dim=axis)


def _sparse(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    axis = options["axis"]
    if options["from_logits"] and style.probabilities != "softmax":
        logs = functional.log_softmax(p, dim=axis)
    elif style.probabilities == "softmax":
        logs = _log(p)
    elif style.sparse == "divided first":
        logs = _clip(p / p.sum(dim=axis, keepdim=True)).log()
    else:
        logs = functional.log_softmax(_clip(p).log(), dim=axis)
    return -logs.gather(axis, y.unsqueeze(axis)).squeeze(axis)


def _each_binary(y: Tensor, p: Tensor, style: Style, *, from_logits: bool) -> Tensor:
    if from_logits and style.probabilities != "sigmoid":
        return functional.binary_cross_entropy_with_logits(p, y, reduction="none")
    if style.probabilities == "sigmoid":
        # 1 - p is rounded to 0 long before p is: there it is half of the last place
        rest = (1.0 - p).clamp_min(torch.finfo(p.dtype).eps / 2)
        return -(y * _log(p) + (1.0 - y) * rest.log())
    p = _clip(p)
    if style.binary == "by logits":
        logits = (p / (1.0 - p)).log()
        return functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
    more = EPSILON if style.binary == "raised" else 0.0
    return -(y * (p + more).log() + (1.0 - y) * (1.0 - p + more).log())


def _binary(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    each = _each_binary(_smooth(y, options, 2), p, style, from_logits=options["from_logits"])
    return each.mean(dim=options["axis"])


def _binary_focal(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    y = _smooth(y, options, 2)
    each = _each_binary(y, p, style, from_logits=options["from_logits"])
    p = p.sigmoid() if options["from_logits"] else p
    right = y * p + (1.0 - y) * (1.0 - p)
    each = (1.0 - right).pow(options["gamma"]) * each
    if options["apply_class_balancing"]:
        each = (y * options["alpha"] + (1.0 - y) * (1.0 - options["alpha"])) * each
    return each.mean(dim=options["axis"])


def _categorical_focal(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    axis = options["axis"]
    y = _smooth(y, options, y.shape[-1])
    if options["from_logits"] and style.probabilities != "softmax":
        p = p.softmax(dim=axis)
    p = _clip(p / p.sum(dim=axis, keepdim=True))
    weight: Tensor = options["alpha"] * (1.0 - p).pow(options["gamma"])
    return (weight * -y * p.log()).sum(dim=axis)


# ---- overlaps -----------------------------------------------------------------------------------


def _sum(x: Tensor, options: Options) -> Tensor:
    return x.sum() if options["axis"] is None else x.sum(dim=options["axis"])


def _dice(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    both = _sum(y * p, options)
    return 1.0 - 2.0 * both / (_sum(y, options) + _sum(p, options) + EPSILON)


def _tversky(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    both = _sum(y * p, options)
    missed, wrong = _sum((1.0 - p) * y, options), _sum(p * (1.0 - y), options)
    value: Tensor = both + missed * options["alpha"] + wrong * options["beta"] + EPSILON
    return 1.0 - both / value


def _generalized(y: Tensor, p: Tensor, options: Options, style: Style) -> Tensor:
    right = p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    value: Tensor = (1.0 - right.pow(options["q"])) / options["q"]
    return value


_AXIS = size(-1, least=-32)
_LOGITS = {"from_logits": flag(False)}
_SMOOTH = {**_LOGITS, "label_smoothing": number(0.0), "axis": _AXIS}
_FOCAL = {**_SMOOTH, "alpha": number(0.25), "gamma": number(2.0)}
_AXES = {"axis": optional(size(least=-32))}

LOSSES: Mapping[str, Loss] = {
    "mean_squared_error": _simple(lambda y, p: (p - y).square().mean(dim=-1)),
    "mean_absolute_error": _simple(lambda y, p: (p - y).abs().mean(dim=-1)),
    "mean_absolute_percentage_error": _simple(
        lambda y, p: 100.0 * ((y - p) / y.abs().clamp_min(EPSILON)).abs().mean(dim=-1)
    ),
    "mean_squared_logarithmic_error": _simple(_mean_log_squares),
    "huber": Loss(_huber, {"delta": number(1.0)}),
    "log_cosh": _simple(_log_cosh),
    "kl_divergence": _simple(_divergence),
    "poisson": _simple(lambda y, p: (p - y * (p + EPSILON).log()).mean(dim=-1)),
    "hinge": Loss(_hinge),
    "squared_hinge": Loss(_squared_hinge),
    "categorical_hinge": _simple(_categorical_hinge),
    "cosine_similarity": Loss(_cosine, {"axis": _AXIS}),
    "categorical_crossentropy": Loss(_categorical, _SMOOTH),
    "sparse_categorical_crossentropy": Loss(
        _sparse,
        {**_LOGITS, "axis": _AXIS, "ignore_class": optional(size(least=-(2**31)))},
        sparse=True,
    ),
    "binary_crossentropy": Loss(_binary, _SMOOTH),
    "binary_focal_crossentropy": Loss(
        _binary_focal, {**_FOCAL, "apply_class_balancing": flag(False)}
    ),
    "categorical_focal_crossentropy": Loss(_categorical_focal, _FOCAL),
    "dice": Loss(_dice, _AXES),
    "tversky": Loss(_tversky, {**_AXES, "alpha": number(0.5), "beta": number(0.5)}),
    "categorical_generalized_cross_entropy": Loss(_generalized, {"q": number(0.5)}, sparse=True),
}
# Other names of Keras, in lower case without underscores; classes are called as the functions.
ALIASES: Mapping[str, str] = {
    **{name.replace("_", ""): name for name in LOSSES},
    "bce": "binary_crossentropy",
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_logarithmic_error",
    "kld": "kl_divergence",
    "kullbackleiblerdivergence": "kl_divergence",
    "huberloss": "huber",
    "cosine": "cosine_similarity",
    "cosineproximity": "cosine_similarity",
}
# Those of Keras that need more than outputs and targets, or were never compared.
REFUSED = ("ctc", "circle")
# A name that means another function for each kind of target, in Keras 3.
CROSSENTROPY = ("crossentropy", "ce")
# Half precision would give other numbers than Keras, whose backends round in different places.
DTYPE = choice(None, None, "float32", "float64")
REDUCTION = choice(
    "sum_over_batch_size", "sum_over_batch_size", "auto", "mean", "sum", "mean_with_sample_weight"
)
