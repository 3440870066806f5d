"""``penalty`` and ``constrain_``: the regularizers and constraints of a converted model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import (
    UnsupportedOptionError,
    UsageError,
    check_module,
    gather,
    printable,
)
from keras2torch_birnn.layers.training_terms import TrainingTerms, outputs_of, terms_of
from keras2torch_birnn.schema.training_rules import (
    ACTIVITY,
    CONSTRAINT,
    Activity,
    is_known,
    weights_of,
)
from keras2torch_birnn.spec import LayerSpec, leaves
from keras2torch_birnn.trainers.weight_views import (
    Path,
    WeightView,
    find_views,
)

Options: TypeAlias = Mapping[str, Any]
# Keras' epsilon, which norms are raised by.
_EPSILON = 1e-7
_VIEWS = "training_views"


def penalty(model: nn.Module) -> Tensor:
    """Compute the sum of all regularizers, a differentiable scalar to add to the loss.

    Those of outputs (``activity_regularizer``) need the outputs of the last call of the model,
    which must have been in training mode.

    Args:
        model: What ``convert`` or ``load`` returned, or any module that holds such models.

    Returns:
        The sum; 0 where Keras adds nothing.

    Raises:
        UnsupportedOptionError: Some regularizers cannot be computed; all of them are listed.
        UsageError: Outputs are needed, and the model was not called in training mode.
    """
    check_module(model)
    total = _zero(model)
    problems = []
    for module, terms in _modules(model):
        problems += [*_unknown(terms, constraints=False), *_refused(terms)]
        if problems:
            continue
        views = _views(module, terms)
        for path, key, options in _weights(terms.layer):
            if key.endswith(CONSTRAINT):
                continue
            view = views[path]
            if terms.rule.frozen or view.learns(module):
                factors = _rounded(options, terms)
                total = total + sum(_l1_l2(factors, one) for one in view.values(module))
        for one in terms.activities:
            total = total + _of_outputs(one, terms)
    if problems:
        raise gather(problems)
    return total


def constrain_(model: nn.Module) -> None:
    """Apply the constraints to the weights, in place: call it after each step of the optimizer.

    As in Keras, weights that are frozen stay as they are.

    Args:
        model: What ``convert`` or ``load`` returned, or any module that holds such models.

    Raises:
        UnsupportedOptionError: Some constraints cannot be applied; all of them are listed, and
            nothing was changed.
    """
    check_module(model)
    found = list(_modules(model))
    problems = [one for _, terms in found for one in _unknown(terms, constraints=True)]
    if problems:
        raise gather(problems)
    with torch.no_grad():
        for module, terms in found:
            for path, key, options in _weights(terms.layer):
                if not key.endswith(CONSTRAINT):
                    continue
                view = _views(module, terms)[path]
                if view.learns(module):
                    view.write(module, _constrain(view.read(module), options))


def _modules(model: nn.Module) -> Iterator[tuple[nn.Module, TrainingTerms]]:
    for module in model.modules():
        terms = terms_of(module)
        if terms is not None:
            yield module, terms


def _zero(model: nn.Module) -> Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros((), dtype=like.dtype, device=like.device)


def _weights(layer: LayerSpec, path: Path = ()) -> Iterator[tuple[Path, str, Options]]:
    """Yield every weight of a layer that is regularized or constrained, with the option."""
    for key, options in layer.training.items():
        for name in weights_of(key, layer):
            yield (*path, name), key, options
    for part_key, part in layer.parts.items():
        yield from _weights(part, (*path, part_key))


def _views(module: nn.Module, terms: TrainingTerms) -> Mapping[Path, WeightView]:
    """Return where the weights are in the module's tensors; found once."""
    known: Any = module.__dict__.get(_VIEWS)
    if known is None:
        known = find_views(terms.layer, [path for path, _, _ in _weights(terms.layer)])
        module.__dict__[_VIEWS] = known
    return cast(Mapping[Path, WeightView], known)


# ---- regularizers -------------------------------------------------------------------------------


def _l1_l2(options: Options, x: Tensor) -> Tensor:
    """Return l1 sum |x| + l2 sum x^2; a factor of 0 leaves its sum out, which may be infinite."""
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    if options["l1"]:
        total = total + options["l1"] * x.abs().sum()
    if options["l2"]:
        total = total + options["l2"] * x.square().sum()
    return total


def _of_outputs(activity: Activity, terms: TrainingTerms) -> Tensor:
    outputs = outputs_of(terms)
    if outputs is None:
        raise UsageError(
            f"{printable(activity.place)} regularizes its output, and the model was not called in "
            "training mode",
            "call model.train(), then the model, before k2t.penalty(model)",
        )
    options = _rounded(activity.regularizer, terms)
    total = [
        _l1_l2(options, y) / (max(1, len(y)) if terms.rule.per_row else 1)
        for output in outputs
        for y in leaves(output)
    ]
    return torch.stack(total).sum()


def _rounded(options: Options, terms: TrainingTerms) -> Options:
    """Return the options with factors as that Keras multiplies by them."""
    if not terms.rule.single:
        return options
    return {**options, **{key: float(np.float32(options[key])) for key in ("l1", "l2")}}


# ---- constraints --------------------------------------------------------------------------------


def _constrain(w: Tensor, options: Options) -> Tensor:
    if options["name"] == "NonNeg":
        return w.clamp(min=0)
    norms = w.square().sum(dim=options["axis"], keepdim=True).sqrt()
    if options["name"] == "UnitNorm":
        return w / (_EPSILON + norms)
    if options["name"] == "MaxNorm":
        wanted = norms.clamp(0, options["max_value"])
    else:
        rate = options["rate"]
        wanted = rate * norms.clamp(options["min_value"], options["max_value"])
        wanted = wanted + (1 - rate) * norms
    return w * (wanted / (_EPSILON + norms))


# ---- refusals -----------------------------------------------------------------------------------


def _unknown(terms: TrainingTerms, *, constraints: bool) -> Iterator[UnsupportedOptionError]:
    """Yield an error for every regularizer, or every constraint, that k2t does not know."""
    for part in terms.layer.walk():
        for key, options in part.training.items():
            if key.endswith(CONSTRAINT) is constraints and not is_known(key, options):
                kind = "constraint" if constraints else "regularizer"
                yield UnsupportedOptionError(
                    f"{printable(key)} {printable(options['name'])} is not a {kind} that k2t knows",
                    "write it in your own training step, and remove it from the model in Keras",
                    place=part.place,
                )


def _refused(terms: TrainingTerms) -> Iterator[UnsupportedOptionError]:
    """Yield an error for every regularizer of outputs that are not at hand."""
    for one in terms.activities:
        if one.refused:
            yield UnsupportedOptionError(
                f"{ACTIVITY} {one.refused} is not supported: that output is not kept",
                "regularize the output of a layer around it, in Keras, and save again",
                place=one.place,
            )
