"""The loss of a compiled model, as Keras' ``fit`` computes it on a batch.

Which function, of which output, with which weight; ``loss_functions`` has the formulas. How values
become one number (masks, sample weights, means) is the generation's: see ``LossRule``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from keras2torch_birnn.errors import (
    ArgumentValueError,
    K2TError,
    UnsupportedOptionError,
    UsageError,
    gather,
    printable,
)
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.schema.options import BadOptionError
from keras2torch_birnn.spec import Generation, Graph, LayerSpec, ModelSpec, TensorRef, leaves
from keras2torch_birnn.trainers.compiled import CompiledTraining
from keras2torch_birnn.trainers.loss_functions import (
    ALIASES,
    LOSSES,
    REDUCTION,
    REFUSED,
    Style,
)
from keras2torch_birnn.trainers.options import single

# A tensor, or a list or mapping of one for each output.
PerOutput: TypeAlias = Any
_EPSILON = 1e-7
_HOW_TO_REPLACE = "compute this loss in torch, of model(x) and the targets"
_NO_DELTA = "the file does not hold the delta of Huber: it is 1.0, as in Keras after load_model"
_BEFORE_ACTIVATION = ("Dense", "EinsumDense", "Activation", "Conv1D", "Conv2D", "Conv3D")
_CROSSENTROPY = ("crossentropy", "ce")


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


def loss_rule(generation: Generation) -> LossRule:
    """Return the rule of a generation, on TensorFlow."""
    version = tuple(map(int, re.findall("[0-9]+", generation.version)[:2]))
    if generation.name == "keras3":
        raised = 0.0 if version >= (3, 13) else _EPSILON
        return LossRule(Style("clipped", True), "valid", "any", raised, weights="as they are")
    if generation.name == "tf.keras":
        mask: Literal["all", "valid"] = "valid" if version >= (2, 11) else "all"
        style = Style("raised", True, single=True)
        return LossRule(style, mask, "any", single=version < (2, 9))
    if version >= (2, 3):
        return LossRule(Style("raised", False), "all", "vectors")
    return LossRule(Style("by logits", False), "valid", "none", nonzero=True)


@dataclass(frozen=True)
class Term:
    """The loss of one output: function, options, reduction, weight in the sum.

    ``output``: its number. ``behind``: the activation that the output is known to come from.
    ``vectors``: the output has one axis beside the batch.
    """

    output: int
    name: str
    options: Mapping[str, Any]
    reduction: str
    weight: float | None
    behind: Literal["softmax", "sigmoid", ""]


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
        by class, of a model with one output.

        Raises:
            ArgumentValueError: another number of tensors than outputs, or a shape does not fit.
        """
        ps = self._split(outputs, "outputs")
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

    def _split(self, given: PerOutput, what: str) -> list[Tensor]:
        if isinstance(given, Mapping) and set(given) == set(self.names):
            given = [given[name] for name in self.names]
        found = list(leaves(given))
        if len(found) != len(self.names):
            raise ArgumentValueError(
                f"{len(self.names)} {what} are expected ({', '.join(map(printable, self.names))}), "
                f"found {len(found)}",
                place=what,
            )
        return found

    def _spread(self, given: PerOutput, what: str) -> list[Tensor | None]:
        """Return what is for each output; a tensor alone is for all of them."""
        if given is None or isinstance(given, Tensor):
            return [given] * len(self.names)
        return list(self._split(given, what))

    def _term(
        self, term: Term, p: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        name, options = term.name, term.options
        if name in _CROSSENTROPY:
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
        if self.rule.nonzero:
            return _reduce_like_keras_2(values, weight, mask)
        kept = _merge_masks(mask, ignored, values, term.reduction, self.rule)
        kind = torch.float32 if self.rule.single else values.dtype
        return _reduce(values.to(kind), weight, kept, term.reduction, self.rule).to(values.dtype)


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


# ---- one number ---------------------------------------------------------------------------------


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


# ---- reading ------------------------------------------------------------------------------------


def build_loss(compiled: CompiledTraining, spec: ModelSpec) -> KerasLoss:
    """Build the loss that a model was compiled with.

    Raises:
        UnsupportedOptionError: lists every loss that is not one of Keras' own, or has options that
        k2t does not know; or nothing was compiled.
    """
    names, behind = _outputs(spec.graph)
    losses = _per_output(compiled.loss, names, "loss", alone=True)
    if not any(one is not None for one in losses):
        raise UnsupportedOptionError("compiled without a loss", _HOW_TO_REPLACE, place="loss")
    alone = not isinstance(compiled.loss_weights, int | float)
    weights = _per_output(compiled.loss_weights, names, "loss_weights", alone=not alone)
    terms: list[Term] = []
    problems: list[K2TError] = []
    for at, (found, weight) in enumerate(zip(losses, weights, strict=True)):
        if found is None:
            continue
        try:
            name, options, reduction = _read_loss(found)
        except UnsupportedOptionError as problem:
            problem.place = f"loss of {printable(names[at])}"
            problems.append(problem)
            continue
        number = None if weight is None else float(plain_value(weight))
        terms.append(Term(at, name, options, reduction, number, behind[at]))
    if problems:
        raise gather(problems)
    return KerasLoss(terms, names, loss_rule(spec.generation))


def describe_loss(compiled: CompiledTraining) -> tuple[str, ...]:
    """Return a note where Keras wrote a loss without an option that changes it."""
    found = plain_value(compiled.loss)
    several = isinstance(found, Mapping) and "class_name" not in found
    losses = found if isinstance(found, list | tuple) else [found]
    for one in found.values() if several else losses:
        config = one.get("config") if isinstance(one, Mapping) else None
        if isinstance(config, Mapping) and one.get("class_name") == "Huber":
            if "delta" not in config:
                return (_NO_DELTA,)
    return ()


def _per_output(given: Any, names: Sequence[str], what: str, *, alone: bool) -> list[Any]:
    """Return what is given for each output: alone for all, in their order, or by their names."""
    given = plain_value(given)
    if given is None:
        return [None] * len(names)
    serialized = isinstance(given, Mapping) and "class_name" in given
    if isinstance(given, Mapping) and not serialized:
        unknown = sorted(str(key) for key in given.keys() - set(names))
        if unknown:
            raise UnsupportedOptionError(
                f"{what} of {', '.join(map(printable, unknown))}, which is no output of the model",
                _HOW_TO_REPLACE,
                place=what,
            )
        return [given.get(name) for name in names]
    if isinstance(given, list | tuple):
        if len(given) != len(names):
            raise UnsupportedOptionError(
                f"{len(given)} {what} for {len(names)} outputs", _HOW_TO_REPLACE, place=what
            )
        return list(given)
    return [given] * len(names)


def _read_loss(found: Any) -> tuple[str, dict[str, Any], str]:
    """Read one loss: its name, its options, its reduction."""
    config: Mapping[str, Any] = {}
    written = found
    if isinstance(found, Mapping):
        written, given = found.get("class_name"), found.get("config")
        if written == "function" or isinstance(given, str):
            written = given
        elif isinstance(given, Mapping):
            config = given
        module = found.get("module")
        own = isinstance(module, str) and module.partition(".")[0] not in (
            "keras",
            "tf_keras",
            "builtins",
        )
        if own:
            written = f"{module}>{written}"
    plain = str(written).replace("_", "").lower()
    if plain in REFUSED or not (plain in ALIASES or str(written) in _CROSSENTROPY):
        why = "is not supported" if plain in REFUSED else "is none of Keras' own losses"
        raise UnsupportedOptionError(f"{printable(str(written))} {why}", _HOW_TO_REPLACE)
    if str(written) in _CROSSENTROPY:
        return str(written), {}, "sum_over_batch_size"
    name = ALIASES[plain]
    row = LOSSES[name].options
    options: dict[str, Any] = {}
    try:
        for key, kind in row.items():
            options[key] = kind.parse(plain_value(config[key])) if key in config else kind.default
        reduction = config.get("reduction") or "sum_over_batch_size"
        reduction = REDUCTION.parse(reduction)
    except BadOptionError as error:
        raise UnsupportedOptionError(f"options of {name}: {error}", _HOW_TO_REPLACE) from None
    for key in config.keys() - row.keys() - {"name", "reduction", "dtype", "fn"}:
        raise UnsupportedOptionError(f"option {printable(key)} of {name}", _HOW_TO_REPLACE)
    return name, options, "sum_over_batch_size" if reduction == "auto" else reduction


def _outputs(graph: Graph) -> tuple[list[str], list[Literal["softmax", "sigmoid", ""]]]:
    """Return the names of the outputs, and the activations that they are known to come from."""
    refs = list(leaves(graph.outputs))
    if isinstance(graph.outputs, Mapping):
        names = [str(key) for key in graph.outputs]
    else:
        names = [ref.layer for ref in refs]
    return names, [_activation_of(graph, ref) for ref in refs]


def _activation_of(graph: Graph, ref: TensorRef) -> Literal["softmax", "sigmoid", ""]:
    layer: LayerSpec = graph.layer(ref.layer)
    if layer.graph is not None:
        inner = list(leaves(layer.graph.outputs))
        return _activation_of(layer.graph, inner[ref.output])
    if layer.class_name == "Softmax":
        return "softmax"
    found = layer.config.get("activation")
    if layer.class_name not in _BEFORE_ACTIVATION:
        return ""
    return "softmax" if found == "softmax" else "sigmoid" if found == "sigmoid" else ""
