"""Losses of compiled models: seven of Keras' functions, and the mean that today's Keras takes.

Sources: ``losses`` of Keras 3.15. Older ones have the same functions; where their means differ, a
note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from keras2torch_birnn.errors import (
    ArgumentValueError,
    K2TError,
    UnsupportedOptionError,
    printable,
)
from keras2torch_birnn.readers.config.classes import is_custom_class, is_custom_function
from keras2torch_birnn.readers.config.generations import plain_value
from keras2torch_birnn.schema.options import BadOptionError, Option, choice, flag, number, optional
from keras2torch_birnn.spec import Generation, Graph, LayerSpec, ModelSpec, TensorRef, leaves
from keras2torch_birnn.trainers.compiled import CompiledTraining, runs_on_tensorflow

_EPSILON = 1e-7  # Keras' ``backend.epsilon()``
# A tensor, or a list or mapping of one for each output.
PerOutput: TypeAlias = Tensor | Sequence[Tensor | None] | Mapping[str, Tensor | None] | None
Activation = Literal["softmax", "sigmoid", ""]
Options: TypeAlias = Mapping[str, Any]
Formula: TypeAlias = Callable[[Tensor, Tensor, Options, Activation], Tensor]


@dataclass(frozen=True)
class Term:
    """The loss of one output.

    ``behind``: the activation that the output is known to come from, whose logits Keras on
    TensorFlow takes, so that it does not clip.
    """

    name: str
    options: Options
    weight: float
    behind: Activation


class KerasLoss:
    """Loss of a model as it was compiled: ``loss(model(x), y)`` is that of Keras' ``fit``.

    Without the penalties of ``k2t.penalty``. ``terms``: one for each output, None where it has no
    loss. ``names``: of the outputs.
    """

    def __init__(self, terms: Sequence[Term | None], names: Sequence[str]) -> None:
        self.terms, self.names = tuple(terms), tuple(names)

    def __call__(
        self,
        outputs: PerOutput,
        targets: PerOutput,
        sample_weight: PerOutput = None,
        mask: PerOutput = None,
    ) -> Tensor:
        """Compute the loss of a batch, a scalar.

        outputs: of the model. targets: as ``fit`` takes them, one tensor for each output, in a list
        or by the name of its layer. sample_weight: (B,), or (B, T) for every step, for all outputs
        or for each. mask: ``k2t.output_mask(model, *inputs)``, true at valid places. Outputs in
        half precision, as under autocast, count as float32.

        Raises:
            ArgumentValueError: another number of tensors than outputs, or a shape does not fit.
        """
        given = [self._split(outputs, "outputs"), self._split(targets, "targets")]
        spread = [self._spread(sample_weight, "sample_weight"), self._spread(mask, "mask")]
        total: Tensor | None = None
        for term, p, y, weight, valid in zip(self.terms, *given, *spread, strict=True):
            if term is not None:
                value = _compute(term, p, y, weight, valid) * term.weight
                total = value if total is None else total + value
        return torch.zeros(()) if total is None else total

    def _split(self, values: PerOutput, what: str) -> list[Any]:
        if isinstance(values, Mapping):
            if values.keys() != set(self.names):
                raise ArgumentValueError(
                    f"{what} of {', '.join(map(printable, values))}",
                    f"give one for each output: {', '.join(map(printable, self.names))}",
                    place=what,
                )
            return [values[name] for name in self.names]
        found = list(leaves(values))
        if len(found) != len(self.names):
            raise ArgumentValueError(
                f"{len(self.names)} {what} are expected ({', '.join(map(printable, self.names))}), "
                f"found {len(found)}",
                place=what,
            )
        return found

    def _spread(self, values: PerOutput, what: str) -> list[Any]:
        """Return what is for each output; a tensor alone is for all of them."""
        if values is None or isinstance(values, Tensor):
            return [values] * len(self.names)
        return self._split(values, what)


def _compute(
    term: Term, p: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None
) -> Tensor:
    """Return the mean of one loss over valid places, or the sum."""
    p = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p
    if y.dim() == 1 and p.dim() == 2:
        y = y.unsqueeze(-1)
    elif p.dim() == y.dim() + 1 and p.shape[-1] == 1:
        p = p.squeeze(-1)
    elif y.dim() == p.dim() + 1 and y.shape[-1] == 1:
        y = y.squeeze(-1)
    if term.name == "sparse_categorical_crossentropy":
        y = (y.squeeze(-1) if y.dim() == p.dim() else y).long()
    else:
        y = y.to(p.dtype)
    values = _LOSSES[term.name].formula(y, p, term.options, term.behind)
    as_mean = term.options["reduction"] != "sum"
    if mask is not None:
        kept = mask.to(values.dtype)
        if as_mean:
            kept = kept * kept.numel() / kept.sum().clamp_min(1)
        weight = kept if weight is None else _times(kept, weight.to(kept.dtype))
    if weight is not None:
        values = _times(values, weight.to(values.dtype))
    return values.mean() if as_mean else values.sum()


def _times(values: Tensor, weight: Tensor) -> Tensor:
    """Multiply by weights of as many axes, or of one more or less."""
    if weight.dim() == values.dim() + 1 and weight.shape[-1] == 1:
        weight = weight.squeeze(-1)
    elif values.dim() == weight.dim() + 1:
        weight = weight.unsqueeze(-1)
    try:
        return values * weight
    except RuntimeError:
        raise ArgumentValueError(
            f"weights of shape {tuple(weight.shape)} do not fit {tuple(values.shape)}",
            "give one for each row, or for each step",
            place="sample_weight",
        ) from None


# ---- Keras' functions: targets y and outputs p, a value for each row or step -------------------


@dataclass(frozen=True)
class _Loss:
    formula: Formula
    options: Mapping[str, Option]


def _huber(y: Tensor, p: Tensor, options: Options, behind: Activation) -> Tensor:
    delta: float = options["delta"]
    return functional.huber_loss(p, y, reduction="none", delta=delta).mean(dim=-1)


def _divergence(y: Tensor, p: Tensor, options: Options, behind: Activation) -> Tensor:
    y, p = y.clamp(_EPSILON, 1.0), p.clamp(_EPSILON, 1.0)
    return (y * (y / p).log()).sum(dim=-1)


def _logs(p: Tensor, options: Options, behind: Activation) -> Tensor:
    """Return the logarithms of the probabilities of classes."""
    if options["from_logits"]:
        return functional.log_softmax(p, dim=-1)
    if behind == "softmax":
        return p.clamp_min(torch.finfo(p.dtype).tiny).log()
    return (p / p.sum(dim=-1, keepdim=True)).clamp(_EPSILON, 1.0 - _EPSILON).log()


def _smooth(y: Tensor, options: Options, classes: int) -> Tensor:
    amount = options["label_smoothing"]
    return y * (1.0 - amount) + amount / classes if amount else y


def _categorical(y: Tensor, p: Tensor, options: Options, behind: Activation) -> Tensor:
    return -(_smooth(y, options, y.shape[-1]) * _logs(p, options, behind)).sum(dim=-1)


def _sparse(y: Tensor, p: Tensor, options: Options, behind: Activation) -> Tensor:
    return -_logs(p, options, behind).gather(-1, y.unsqueeze(-1)).squeeze(-1)


def _binary(y: Tensor, p: Tensor, options: Options, behind: Activation) -> Tensor:
    y = _smooth(y, options, 2)
    if options["from_logits"]:
        each = functional.binary_cross_entropy_with_logits(p, y, reduction="none")
    elif behind == "sigmoid":
        # 1 - p is rounded to 0 long before p is: there it is half of the last place
        rest = (1.0 - p).clamp_min(torch.finfo(p.dtype).eps / 2)
        each = -(y * p.clamp_min(torch.finfo(p.dtype).tiny).log() + (1.0 - y) * rest.log())
    else:
        p = p.clamp(_EPSILON, 1.0 - _EPSILON)
        more = options["raised"]
        each = -(y * (p + more).log() + (1.0 - y) * (1.0 - p + more).log())
    return each.mean(dim=-1)


_LOGITS = {"from_logits": flag(False)}
_SMOOTH = {**_LOGITS, "label_smoothing": number(0.0)}
_LOSSES: Mapping[str, _Loss] = {
    "mean_squared_error": _Loss(lambda y, p, o, b: (p - y).square().mean(dim=-1), {}),
    "mean_absolute_error": _Loss(lambda y, p, o, b: (p - y).abs().mean(dim=-1), {}),
    "huber": _Loss(_huber, {"delta": number(1.0)}),
    "kl_divergence": _Loss(_divergence, {}),
    "categorical_crossentropy": _Loss(_categorical, _SMOOTH),
    "sparse_categorical_crossentropy": _Loss(_sparse, _LOGITS),
    "binary_crossentropy": _Loss(_binary, _SMOOTH),
}
# Other names of Keras, in lower case without underscores; classes are called as the functions.
_ALIASES: Mapping[str, str] = {
    **{name.replace("_", ""): name for name in _LOSSES},
    "bce": "binary_crossentropy",
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "kld": "kl_divergence",
    "kullbackleiblerdivergence": "kl_divergence",
    "huberloss": "huber",
}
_REDUCTION = choice("sum_over_batch_size", "sum_over_batch_size", "auto", "mean", "sum")


# ---- from a file --------------------------------------------------------------------------------

_HOW_ELSE = "compute it in torch, of model(x) and the targets"
_WEIGHT = optional(number(None))
_BEFORE_ACTIVATION = ("Dense", "EinsumDense", "Activation", "Conv1D", "Conv2D", "Conv3D")
_OLDER_MEANS = (
    "the loss is averaged over valid places, as today's Keras does; this Keras averages over all, "
    "with 0 at masked ones"
)
_OLDER_WEIGHTS = (
    "rows of sample weight 0 count in the mean of the loss, as in today's Keras; this Keras leaves "
    "them out"
)


def read_loss(compiled: CompiledTraining, spec: ModelSpec) -> KerasLoss:
    """Read the loss that a model was compiled with.

    Raises:
        UnsupportedOptionError: there is none, or one that is not known here.
    """
    names, behind = _outputs(spec.graph, logits=_finds_logits(compiled))
    losses = _per_output(compiled.loss, names, "loss")
    if not any(one is not None for one in losses):
        raise UnsupportedOptionError("compiled without a loss", _HOW_ELSE, place="loss")
    weights = _per_output(compiled.loss_weights, names, "loss_weights")
    terms = [
        None if loss is None else _read_term(loss, weight, activation, spec.generation)
        for loss, weight, activation in zip(losses, weights, behind, strict=True)
    ]
    return KerasLoss(terms, names)


def describe_loss(
    compiled: CompiledTraining, spec: ModelSpec, *, masked: bool
) -> tuple[KerasLoss | None, tuple[str, ...]]:
    """Return the loss, None if it is not known here, and notes. masked: an output has a mask."""
    try:
        loss = read_loss(compiled, spec)
    except K2TError as error:
        return None, (f"state.loss is None: {error.message}; {error.advice}",)
    notes = [_OLDER_MEANS] if masked and _averages_over_all(spec.generation) else []
    if spec.generation.name in ("keras1", "keras2") and spec.generation.numbers < (2, 3):
        notes.append(_OLDER_WEIGHTS)
    return loss, tuple(notes)


def _averages_over_all(generation: Generation) -> bool:
    if generation.name == "tf.keras":
        return generation.numbers < (2, 11)
    return generation.name != "keras3" and generation.numbers >= (2, 3)


def _per_output(values: Any, names: Sequence[str], what: str) -> list[Any]:
    """Return what is given for each output: alone for all, in their order, or by their names."""
    values = plain_value(values)
    if isinstance(values, Mapping) and "class_name" not in values:
        unknown = sorted(str(key) for key in values.keys() - set(names))
        if unknown:
            raise UnsupportedOptionError(
                f"{what} of {', '.join(map(printable, unknown))}, which is no output of the model",
                _HOW_ELSE,
                place=what,
            )
        return [values.get(name) for name in names]
    if isinstance(values, list | tuple):
        if len(values) != len(names):
            raise UnsupportedOptionError(
                f"{len(values)} {what} for {len(names)} outputs", _HOW_ELSE, place=what
            )
        return list(values)
    return [values] * len(names)


def _read_term(loss: Any, weight: Any, behind: Activation, generation: Generation) -> Term:
    config: Mapping[str, Any] = {}
    written = str(loss)
    if isinstance(loss, Mapping):
        written, given = str(loss.get("class_name")), loss.get("config")
        if is_custom_function(loss) or isinstance(given, str):
            written = str(given)
        elif isinstance(given, Mapping):
            config = given
        # Keras writes its own functions by their full names, never as mse or mae.
        if is_custom_function(loss) and written not in _LOSSES:
            written = f"function {written} of the user"
        elif is_custom_class(loss) and not is_custom_function(loss):
            written = f"{loss.get('module')}>{written}"
    name = _ALIASES.get(written.replace("_", "").lower())
    if name is None:
        raise UnsupportedOptionError(
            f"the loss {printable(written)} is not supported", _HOW_ELSE, place="loss"
        )
    options: dict[str, Any] = {}
    row = {**_LOSSES[name].options, "reduction": _REDUCTION}
    what = f"options of {name}"
    try:
        for key, kind in row.items():
            options[key] = kind.parse(plain_value(config[key])) if key in config else kind.default
        what = f"loss_weights={printable(repr(weight))}"
        factor = _WEIGHT.parse(plain_value(weight))
    except BadOptionError as error:
        raise UnsupportedOptionError(f"{what}: {error}", _HOW_ELSE) from None
    usual = {"name": None, "fn": None, "dtype": None, "axis": -1, "ignore_class": None}
    for key in config.keys() - row.keys() - {"name", "fn"}:
        if config[key] != usual.get(key, config[key] is None):
            raise UnsupportedOptionError(f"option {printable(key)} of {name}", _HOW_ELSE)
    if options.get("from_logits") and behind:
        raise UnsupportedOptionError(
            f"{name} of logits (from_logits=True) of an output that is a {behind}", _HOW_ELSE
        )
    if name == "binary_crossentropy":  # older ones add epsilon again after they have clipped
        raised = generation.name != "keras3" and generation.numbers >= (2, 3)
        options["raised"] = _EPSILON if raised else 0.0
    return Term(name, options, 1.0 if factor is None else factor, behind)


def _finds_logits(compiled: CompiledTraining) -> bool:
    """Tell whether this Keras takes the logits behind a softmax or sigmoid."""
    older = compiled.generation.name in ("keras1", "keras2")
    return runs_on_tensorflow(compiled.backend) and not (
        older and compiled.generation.numbers < (2, 3)
    )


def _outputs(graph: Graph, *, logits: bool) -> tuple[list[str], list[Activation]]:
    """Return the names of the outputs, and the activations whose logits Keras takes."""
    refs = list(leaves(graph.outputs))
    names = [ref.layer for ref in refs]
    if isinstance(graph.outputs, Mapping):
        names = [str(key) for key in graph.outputs]
    none: Activation = ""
    return names, [_activation_of(graph, ref) if logits else none for ref in refs]


def _activation_of(graph: Graph, ref: TensorRef) -> Activation:
    layer: LayerSpec = graph.layer(ref.layer)
    if layer.graph is not None:
        return _activation_of(layer.graph, list(leaves(layer.graph.outputs))[ref.output])
    if layer.class_name == "Softmax":
        return "softmax"
    found = layer.config.get("activation") if layer.class_name in _BEFORE_ACTIVATION else ""
    return "softmax" if found == "softmax" else "sigmoid" if found == "sigmoid" else ""
