"""The loss of a compiled model, as Keras' ``fit`` computes it on a batch.

Which function, of which output, with which weight. ``formulas`` has the functions, ``means`` how
their values become one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.errors import ArgumentValueError, UsageError, printable
from keras2torch_birnn.spec import leaves
from keras2torch_birnn.trainers.losses.formulas import CROSSENTROPY, LOSSES
from keras2torch_birnn.trainers.losses.means import LossRule, reduce_values
from keras2torch_birnn.trainers.options import single

# A tensor, or a list or mapping of one for each output.
PerOutput: TypeAlias = Tensor | Sequence[Tensor | None] | Mapping[str, Tensor | None] | None


@dataclass(frozen=True)
class Term:
    """The loss of one output: function, options, reduction, weight in the sum.

    ``output``: its number. ``behind``: the activation that the output is known to come from.
    ``dtype``: what the loss is computed in, that of the output if None.
    """

    output: int
    name: str
    options: Mapping[str, Any]
    reduction: str
    weight: float | None
    behind: Literal["softmax", "sigmoid", ""]
    dtype: torch.dtype | None = None


class KerasLoss:
    """Loss of a model as it was compiled: ``loss(model(x), y)`` is the loss of Keras' ``fit``.

    Without the penalties of ``k2t.penalty``. ``terms``: one for each output that has a loss.
    """

    def __init__(self, terms: Sequence[Term], names: Sequence[str], rule: LossRule) -> None:
        self.terms, self.names, self.rule = tuple(terms), tuple(names), rule

    def __call__(
        self,
        outputs: PerOutput,
        targets: PerOutput,
        sample_weight: PerOutput = None,
        mask: PerOutput = None,
        class_weight: Mapping[int, float] | None = None,
    ) -> Tensor:
        """Compute the loss of a batch, a scalar.

        outputs: of the model. targets: as ``fit`` takes them, one tensor for each output, in a list
        or by the name of its layer. sample_weight: (B,), or (B, T) for every step, for all outputs
        or for each. mask: ``k2t.output_mask(model, *inputs)``, true at valid places. class_weight:
        by class, of a model with one output. Outputs in half precision, as under autocast, count
        as float32.

        Raises:
            ArgumentValueError: another number of tensors than outputs, or a shape does not fit.
        """
        ps = [_not_half(one) for one in self._split(outputs, "outputs")]
        ys = self._split(targets, "targets")
        masks = self._spread(mask, "mask")
        weights = self._spread(sample_weight, "sample_weight")
        if class_weight is not None:
            if len(self.names) != 1:
                raise UsageError(
                    "class weights of a model with several outputs, which no Keras takes",
                    "give sample_weight for each output",
                )
            given = {
                number: single(value) if self.rule.style.single else value
                for number, value in class_weight.items()
            }
            weights = [_with_class_weights(ys[0], weights[0], given)]
        total: Tensor | None = None
        for term in self.terms:
            at = term.output
            value = self._term(term, ps[at], ys[at], weights[at], masks[at])
            value = value if term.weight is None else value * term.weight
            total = value if total is None else total + value
        return ps[0].new_zeros(()) if total is None else total

    def _split(self, values: PerOutput, what: str) -> list[Tensor]:
        if isinstance(values, Mapping):
            self._check_names(values, what)
            values = [values[name] for name in self.names]
        found = list(leaves(values))
        if len(found) != len(self.names):
            raise ArgumentValueError(
                f"{len(self.names)} {what} are expected ({', '.join(map(printable, self.names))}), "
                f"found {len(found)}",
                place=what,
            )
        return found

    def _check_names(self, values: Mapping[str, Any], what: str) -> None:
        unknown = [name for name in values if name not in self.names]
        missing = [name for name in self.names if name not in values]
        if unknown or missing:
            kinds = (("no output is called", unknown), ("missing are", missing))
            said = [
                f"{words} {', '.join(map(printable, names))}" for words, names in kinds if names
            ]
            raise ArgumentValueError(
                "; ".join(said),
                f"give one for each output: {', '.join(map(printable, self.names))}",
                place=what,
            )

    def _spread(self, values: PerOutput, what: str) -> list[Tensor | None]:
        """Return what is for each output; a tensor alone is for all of them."""
        if values is None or isinstance(values, Tensor):
            return [values] * len(self.names)
        return list(self._split(values, what))

    def _term(
        self, term: Term, p: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        name, options, given = term.name, term.options, p.dtype
        p = p if term.dtype is None else p.to(term.dtype)
        if name in CROSSENTROPY:
            name = _choose_crossentropy(y, p)
            options = {key: kind.default for key, kind in LOSSES[name].options.items()}
        found = LOSSES[name]
        y, p = _fit_ranks(y, p)
        ignored = None
        if found.sparse:
            axis = options.get("axis", -1) % p.dim()
            y = y.squeeze(axis) if y.dim() == p.dim() and y.shape[axis] == 1 else y
            y = y.long()
            if options.get("ignore_class") is not None:
                ignored = y != options["ignore_class"]
                y = torch.where(ignored, y, 0)
        else:
            y = y.to(p.dtype)
        known = self.rule.logits == "any" or (self.rule.logits == "vectors" and p.dim() == 2)
        style = replace(self.rule.style, probabilities=term.behind if known else "")
        values = found.formula(y, p, options, style)
        if ignored is not None:
            values = torch.where(ignored, values, 0.0)
        return reduce_values(values, weight, mask, ignored, term.reduction, self.rule).to(given)


def _not_half(p: Tensor) -> Tensor:
    return p.float() if p.dtype in (torch.float16, torch.bfloat16) else p


def _fit_ranks(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Add or drop an axis of size 1 at the end, as Keras does."""
    if y.dim() == 1 and p.dim() == 2:
        return y.unsqueeze(-1), p
    if p.dim() == y.dim() + 1 and p.shape[-1] == 1:
        return y, p.squeeze(-1)
    if y.dim() == p.dim() + 1 and y.shape[-1] == 1:
        return y.squeeze(-1), p
    return y, p


def _choose_crossentropy(y: Tensor, p: Tensor) -> str:
    """Choose the function that Keras 3 means by "crossentropy"."""
    if p.shape[-1] == 1:
        return "binary_crossentropy"
    sparse = y.dim() < p.dim() or (y.dim() == p.dim() and y.shape[-1] == 1)
    return "sparse_categorical_crossentropy" if sparse else "categorical_crossentropy"


def _with_class_weights(
    y: Tensor, weight: Tensor | None, class_weight: Mapping[int, float]
) -> Tensor:
    """Multiply sample weights by those of the classes; targets are class numbers or one-hot."""
    if y.dim() > 1:
        y = y.argmax(dim=-1) if y.shape[-1] > 1 else y.squeeze(-1)
    kind = torch.float64 if weight is None else weight.dtype
    table = torch.ones(int(y.max()) + 1, dtype=kind, device=y.device)
    for number, value in class_weight.items():
        if 0 <= number < len(table):
            table[number] = value
    found = table[y.round().long() if y.is_floating_point() else y.long()]
    return found if weight is None else found * weight
