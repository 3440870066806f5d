"""Differences between training in torch and in the Keras of the file."""

from __future__ import annotations

from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.saved_model import SavedModel
from keras2torch_birnn.readers.containers.tfjs import TensorFlowJS
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.trainers.rules.adam import Nadam
from keras2torch_birnn.trainers.rules.sgd import SGD
from keras2torch_birnn.trainers.stored import StoredState

_NO_STATE = "the file holds no state of the optimizer: it begins anew, as in Keras"
_UNREAD = (
    "the optimizer's state in a model of TensorFlow.js is not read: it begins anew, as in Keras"
)
_ROWS = (
    "the file does not say on which backend it was trained: an Embedding is trained as by Keras on "
    "TensorFlow, which squares, compares and clips the gradients of repeated ids one by one; Keras "
    "on torch or jax adds them up before"
)
_CLIPPED_ROWS = (
    "an Embedding is trained as by Keras on TensorFlow 1.14 or later, where clipvalue clips the "
    "gradients of repeated ids one by one; others add them up before"
)
_NO_PRODUCT = (
    "the file does not hold the product of Nadam's momenta: it begins at 1 again, as in Keras "
    "after load_model; a training that was never interrupted goes on otherwise"
)
_UNCOUNTED = (
    "the file does not hold the number of steps, which the decay of the learning rate needs: they "
    "begin at 0 again, as in Keras 2.2 after load_model; a training that was never interrupted "
    "goes on otherwise"
)
_EAGER_PRODUCT = (
    "Nadam is trained as by eager steps of this Keras (run_eagerly=True); inside a graph, as fit "
    "runs by default, it multiplies the product of its momenta once for each weight, so its first "
    "steps differ until the product is near 0"
)
_DECAY = (
    "all trained weights decay, as in Keras after load_model: no file says which of them were "
    "excluded by exclude_from_weight_decay"
)
_UNCONSTRAINED = (
    "the experimental optimizers of tf.keras 2.10 apply no constraints, so state.constrain_() does "
    "nothing; k2t.constrain_(state.model) applies them"
)
_SCALED = (
    "Keras scales its loss (LossScaleOptimizer), by itself where it computes in float16; here it "
    "is not scaled, and steps whose gradients are not finite are left out, as there"
)
_TRACKED = (
    "the optimizer goes on with the state in the file, which load_model of Keras leaves out of a "
    'SavedModel: it begins anew there, as with state="new"'
)


def needs_rows(optimizer: KerasOptimizer) -> bool:
    """Tell whether the rows of an Embedding's gradient count one by one."""
    family, clips = optimizer.settings.family, bool(optimizer.settings.clips)
    if family == "keras3":
        rows = clips or not isinstance(optimizer.rule, SGD)
        return rows and optimizer.settings.on_tensorflow
    if family == "legacy":
        return clips or bool(optimizer.rule.left_alone())
    if family == "keras2":
        return any(kind == "by value" for kind, _ in optimizer.settings.clips)
    return clips


def describe_differences(
    optimizer: KerasOptimizer, *, embeddings: bool, unconstrained: bool
) -> tuple[str, ...]:
    """Return notes about what may be trained otherwise than by this Keras.

    unconstrained: the model has constraints, which this optimizer of Keras does not apply.
    """
    family = optimizer.settings.family
    unknown = family == "keras3" and not optimizer.settings.backend
    of_backend = embeddings and unknown and needs_rows(optimizer)
    of_graph = isinstance(optimizer.rule, Nadam) and family == "tf.keras"
    decays = optimizer.settings.weight_decay != 0 or optimizer.rule.decays()
    found = (
        (_ROWS, of_backend),
        (_CLIPPED_ROWS, embeddings and family == "keras2"),
        (_EAGER_PRODUCT, of_graph),
        (_DECAY, decays),
        (_UNCONSTRAINED, unconstrained),
    )
    return tuple(note for note, applies in found if applies)


def describe_state(
    optimizer: KerasOptimizer, stored: StoredState | None, container: Container
) -> tuple[str, ...]:
    """Return notes about the state of a file."""
    if stored is None:
        unread = isinstance(container, TensorFlowJS) and container.has_optimizer
        return (_UNREAD if unread else _NO_STATE,)
    tracked = isinstance(container, SavedModel)
    no_product = isinstance(optimizer.rule, Nadam) and not stored.shared
    found = (
        (_NO_PRODUCT, no_product and optimizer.iterations),
        (_UNCOUNTED, stored.iterations is None and optimizer.settings.decay != 0),
        (_TRACKED, tracked),
        (_SCALED, optimizer.settings.scaled),
    )
    return tuple(note for note, applies in found if applies)
