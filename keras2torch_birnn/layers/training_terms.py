"""Attach a layer's regularizers and constraints to its torch module, and keep outputs for them.

Nothing of this runs unless the module is in training mode and has an activity regularizer: only
then it has a hook, which keeps its outputs until the model is called again.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx, nn

from keras2torch_birnn.schema.training_rules import PENALTY_RULE, Activity, PenaltyRule, activities
from keras2torch_birnn.spec import LayerSpec

_NAME = "training_terms"
_IN_STEPS = "of a layer in a model inside TimeDistributed"


class KeptOutputs:
    """Forward hook that keeps the outputs of a module's last calls in training mode.

    ``calls``: calls of the module in one call of the model. ``paused``: this call is none.
    """

    def __init__(self, calls: int = 1) -> None:
        self.calls = calls
        self.paused = False
        self.outputs: deque[Any] = deque(maxlen=calls)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep an output; forget all in eval mode, so that none of another batch is left."""
        if self.paused:
            return
        if module.training:
            self.outputs.append(output)
        else:
            self.outputs.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the hook without outputs, which belong to the graph of a loss."""
        return KeptOutputs, (self.calls,)


@dataclass(frozen=True, eq=False)
class NoValues:
    """Stand-in for a weight without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TrainingTerms:
    """Regularizers and constraints of a layer's module.

    ``layer``: its spec, with ``NoValues`` in place of arrays. ``kept``: outputs for ``activities``.
    """

    layer: LayerSpec
    rule: PenaltyRule
    activities: tuple[Activity, ...]
    kept: KeptOutputs | None


def terms_of(module: nn.Module) -> TrainingTerms | None:
    """Return what Keras adds to the training of a module's layer, None if nothing."""
    found = module.__dict__.get(_NAME)
    return found if isinstance(found, TrainingTerms) else None


def attach_terms(
    module: nn.Module, layer: LayerSpec, *, folded: bool, steps: bool
) -> nn.Module | None:
    """Attach the regularizers and constraints of a layer, and of those inside it, to its module.

    folded: it is in a model that a TimeDistributed applies to all steps at once. steps: there are
    some after the module. Returns a module to call with their output, if that is regularized.
    """
    if not any(part.training for part in layer.walk()):
        return None
    rule: PenaltyRule = layer.semantics[PENALTY_RULE]
    found = tuple(activities(layer))
    if folded:  # it is not one batch
        found = tuple(replace(one, refused=_IN_STEPS) for one in found)
    kept = KeptOutputs() if found else None
    output = nn.Identity() if steps and kept is not None else None
    if kept is not None:
        (output or module).register_forward_hook(kept)
    bare = replace_weights(layer, lambda _, array: NoValues(array.shape, array.dtype))
    setattr(module, _NAME, TrainingTerms(bare, rule, found, kept))
    return output


def count_calls(model: fx.GraphModule) -> None:
    """Tell each hook how often a call of the model calls its module."""
    calls = Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")
    for name, module in model.named_modules():
        terms = terms_of(module)
        if terms is not None and terms.kept is not None:
            terms.kept.calls = calls[name]
            terms.kept.outputs = deque(maxlen=calls[name])


def replace_weights(layer: LayerSpec, change: Any, path: tuple[str, ...] = ()) -> LayerSpec:
    """Return the layer with ``change((*path, name), array)`` in place of every array.

    ``path``: the keys of the parts on the way to the layer that has the weight.
    """
    weights: Mapping[str, Any] = {
        name: change((*path, name), array) for name, array in layer.weights.items()
    }
    parts = {key: replace_weights(part, change, (*path, key)) for key, part in layer.parts.items()}
    return replace(layer, weights=weights, parts=parts)


def outputs_of(terms: TrainingTerms) -> tuple[Any, ...] | None:
    """Return the outputs of the last call of the model, None if it was not in training mode."""
    kept = terms.kept
    if kept is None or len(kept.outputs) < kept.calls:
        return None
    return tuple(kept.outputs)
