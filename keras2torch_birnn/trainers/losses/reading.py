"""Read the losses that a model was compiled with, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError, gather, printable
from keras2torch_birnn.readers.config.custom_objects import is_custom_class, is_custom_function
from keras2torch_birnn.readers.config.dialects import plain_value
from keras2torch_birnn.schema.options import BadOptionError, number, optional
from keras2torch_birnn.spec import Graph, LayerSpec, ModelSpec, TensorRef, leaves
from keras2torch_birnn.trainers.compiled import CompiledTraining
from keras2torch_birnn.trainers.losses.formulas import (
    ALIASES,
    CROSSENTROPY,
    DTYPE,
    LOSSES,
    REDUCTION,
    REFUSED,
)
from keras2torch_birnn.trainers.losses.keras_loss import KerasLoss, Term
from keras2torch_birnn.trainers.losses.means import loss_rule

_HOW_TO_REPLACE = "compute this loss in torch, of model(x) and the targets"
_NO_DELTA = "the file does not hold the delta of Huber: it is 1.0, as in Keras after load_model"
_LOGITS = (
    "the file does not say on which backend it was trained: a loss of logits (from_logits=True) "
    "behind a softmax or sigmoid takes what comes before that, as Keras on TensorFlow does; Keras "
    "on torch or jax takes the probabilities for logits"
)
_WEIGHT = optional(number(None))
_BEFORE_ACTIVATION = ("Dense", "EinsumDense", "Activation", "Conv1D", "Conv2D", "Conv3D")


def build_loss(compiled: CompiledTraining, spec: ModelSpec) -> KerasLoss:
    """Build the loss that a model was compiled with.

    Raises:
        UnsupportedOptionError: lists every loss that is not one of Keras' own, or has options that
        k2t does not know; or nothing was compiled.
    """
    names, behind = _outputs(spec.graph)
    losses = _per_output(compiled.loss, names, "loss")
    if not any(one is not None for one in losses):
        raise UnsupportedOptionError("compiled without a loss", _HOW_TO_REPLACE, place="loss")
    weights = _per_output(compiled.loss_weights, names, "loss_weights")
    terms: list[Term] = []
    problems: list[K2TError] = []
    for at, (found, weight) in enumerate(zip(losses, weights, strict=True)):
        if found is None:
            continue
        try:
            name, options, reduction, dtype = _read_loss(found)
            factor = _parse_weight(weight)
        except UnsupportedOptionError as problem:
            problem.place = f"loss of {printable(names[at])}"
            problems.append(problem)
            continue
        terms.append(Term(at, name, options, reduction, factor, behind[at], dtype))
    if problems:
        raise gather(problems)
    return KerasLoss(terms, names, loss_rule(spec.generation, compiled.backend))


def describe_loss(compiled: CompiledTraining, spec: ModelSpec) -> tuple[str, ...]:
    """Return notes about what the file does not say of a loss: an option, or the backend."""
    notes = _describe_options(compiled)
    if spec.generation.name != "keras3" or compiled.backend:
        return notes
    with suppress(K2TError):  # it is said where the loss is asked for
        terms = build_loss(compiled, spec).terms
        if any(one.behind and one.options.get("from_logits") for one in terms):
            return (*notes, _LOGITS)
    return notes


def _describe_options(compiled: CompiledTraining) -> tuple[str, ...]:
    found = plain_value(compiled.loss)
    several = isinstance(found, Mapping) and "class_name" not in found
    losses = found if isinstance(found, list | tuple) else [found]
    for one in found.values() if several else losses:
        config = one.get("config") if isinstance(one, Mapping) else None
        if isinstance(config, Mapping) and one.get("class_name") == "Huber":
            if "delta" not in config:
                return (_NO_DELTA,)
    return ()


def _parse_weight(weight: Any) -> float | None:
    """Parse the weight of one output's loss.

    Raises:
        UnsupportedOptionError: it is no number.
    """
    try:
        parsed: float | None = _WEIGHT.parse(plain_value(weight))
    except BadOptionError as error:
        raise UnsupportedOptionError(
            f"loss_weights={printable(repr(weight))}: {error}", _HOW_TO_REPLACE
        ) from None
    return parsed


def _per_output(values: Any, names: Sequence[str], what: str) -> list[Any]:
    """Return what is given for each output: alone for all, in their order, or by their names."""
    values = plain_value(values)
    if values is None:
        return [None] * len(names)
    serialized = isinstance(values, Mapping) and "class_name" in values
    if isinstance(values, Mapping) and not serialized:
        unknown = sorted(str(key) for key in values.keys() - set(names))
        if unknown:
            raise UnsupportedOptionError(
                f"{what} of {', '.join(map(printable, unknown))}, which is no output of the model",
                _HOW_TO_REPLACE,
                place=what,
            )
        return [values.get(name) for name in names]
    if isinstance(values, list | tuple):
        if len(values) != len(names):
            raise UnsupportedOptionError(
                f"{len(values)} {what} for {len(names)} outputs", _HOW_TO_REPLACE, place=what
            )
        return list(values)
    return [values] * len(names)


def _read_loss(loss: Any) -> tuple[str, dict[str, Any], str, torch.dtype | None]:
    """Read one loss: its name, its options, its reduction, its dtype."""
    config: Mapping[str, Any] = {}
    written = str(loss)
    if isinstance(loss, Mapping):
        written, given = str(loss.get("class_name")), loss.get("config")
        if is_custom_function(loss) or isinstance(given, str):
            written = str(given)
        elif isinstance(given, Mapping):
            config = given
        # Keras writes its own functions by their full names, never as mse or mae.
        if is_custom_function(loss):
            known = written in LOSSES or written in REFUSED
            written = written if known else f"the function {written} of the user"
        elif is_custom_class(loss):
            written = f"{loss.get('module')}>{written}"
    plain = written.replace("_", "").lower()
    if plain in REFUSED or not (plain in ALIASES or written in CROSSENTROPY):
        why = "is not supported" if plain in REFUSED else "is none of Keras' own losses"
        raise UnsupportedOptionError(f"{printable(written)} {why}", _HOW_TO_REPLACE)
    if written in CROSSENTROPY:
        return written, {}, "sum_over_batch_size", None
    name = ALIASES[plain]
    row = LOSSES[name].options
    options: dict[str, Any] = {}
    try:
        for key, kind in row.items():
            options[key] = kind.parse(plain_value(config[key])) if key in config else kind.default
        reduction = REDUCTION.parse(config.get("reduction", REDUCTION.default))
        dtype = DTYPE.parse(_plain_dtype(config.get("dtype")))
    except BadOptionError as error:
        raise UnsupportedOptionError(f"options of {name}: {error}", _HOW_TO_REPLACE) from None
    for key in config.keys() - row.keys() - {"name", "reduction", "dtype", "fn"}:
        raise UnsupportedOptionError(f"option {printable(key)} of {name}", _HOW_TO_REPLACE)
    reduction = "sum_over_batch_size" if reduction == "auto" else reduction
    return name, options, reduction, dtype and getattr(torch, dtype)


def _plain_dtype(dtype: Any) -> Any:
    """Return the name of a dtype that is given by name or as a policy."""
    config = dtype.get("config") if isinstance(dtype, Mapping) else None
    return config.get("name") if isinstance(config, Mapping) else dtype


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
