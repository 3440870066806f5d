"""Differences between training in torch and in the Keras of the file."""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn.spec import ModelSpec
from keras2torch_birnn.trainers.compiled import CompiledTraining
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.rules.sgd import SGD

_SPARSE = (
    "an Embedding: Keras takes the gradients of repeated ids one by one where {what}; here, as in "
    "torch, they are added up before"
)
_LAZY = (
    "an Embedding: this optimizer of tf.keras updates only the rows of the ids in a batch, and "
    "leaves the {what} of other rows as they are; here all rows are updated"
)


def describe_differences(
    compiled: CompiledTraining, optimizer: KerasOptimizer, spec: ModelSpec
) -> tuple[str, ...]:
    """Return notes about what is trained otherwise than by this Keras."""
    trained = any(
        layer.class_name == "Embedding" and layer.config.get("trainable", True)
        for layer in spec.root.walk()
    )
    return tuple(_of_embeddings(compiled, optimizer)) if trained else ()


def _of_embeddings(compiled: CompiledTraining, optimizer: KerasOptimizer) -> Iterator[str]:
    family = compiled.optimizer.family
    norms = any(kind == "by variable" for kind, _ in optimizer.settings.clips)
    if family == "keras3" and not isinstance(optimizer.rule, SGD):
        yield _SPARSE.format(what="it squares, compares or clips them")
    elif family != "keras2" and norms:
        yield _SPARSE.format(what="it clips them (clipnorm)")
    lazy = {"sgd": "momentum", "adamax": "moments", "adadelta": "averages", "nadam": "weights"}
    what = lazy.get(compiled.optimizer.class_name.lower())
    if family == "legacy" and what and any(optimizer.slot_names()):
        yield _LAZY.format(what=what)
