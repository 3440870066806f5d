"""Differences between training in torch and in the Keras of the file."""

from __future__ import annotations

from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.rules.sgd import SGD

_ROWS = (
    "an Embedding is trained as by Keras on TensorFlow, which squares, compares and clips the "
    "gradients of repeated ids one by one; Keras on torch or jax adds them up before"
)


def needs_rows(optimizer: KerasOptimizer) -> bool:
    """Tell whether the rows of an Embedding's gradient count one by one."""
    family, clips = optimizer.settings.family, bool(optimizer.settings.clips)
    if family == "keras3":
        return clips or not isinstance(optimizer.rule, SGD)
    if family == "legacy":
        return clips or bool(optimizer.rule.left_alone())
    return clips and family == "tf.keras"


def describe_differences(optimizer: KerasOptimizer, *, embeddings: bool) -> tuple[str, ...]:
    """Return notes about what may be trained otherwise than by this Keras."""
    of_backend = embeddings and optimizer.settings.family == "keras3"
    return (_ROWS,) if of_backend and needs_rows(optimizer) else ()
