"""Training as the Keras of the file does it: what is trained, and how a batch is normalized.

Also whether it asks a plugin's cell for its first states. Nothing of this is in the text of a
spec: it follows from the generation, when the model is built, so it holds for an OUT of any age.
Sources: ``BatchNormalization.call`` of Keras 1.2.2, 2.0.8 to 2.3.1 (with
``K.normalize_batch_in_training`` and ``K.moving_average_update`` of TensorFlow's backend), tf.keras
of TensorFlow 1.14 to 2.15, Keras 3.0.5 to 3.15; ``trainable_weights`` of layers, wrappers and
models of the same; ``RNN.get_initial_state``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from keras2torch_birnn.schema import CONV_LSTMS, normalized_axes
from keras2torch_birnn.schema.custom_cells import ASKED, is_custom_cell
from keras2torch_birnn.schema.penalties import penalty_rule, with_penalty_rule
from keras2torch_birnn.spec import Generation, LayerSpec

# The name of a BatchNormalization's rule in its semantics.
BATCH_RULE = "batch_rule"
# Keras 3 ``backend.epsilon()``, which a masked count of steps is raised by.
_EPSILON = 1e-7


@dataclass(frozen=True)
class BatchRule:
    """Training rule of a BatchNormalization.

    ``masked``: whose moments are taken where there is a mask: of "all" steps, or of the "valid"
    ones; "valid, counted before broadcasting" is Keras 3 before 3.15, which differs where the axis
    is not the last. ``count_raised_by``: what is added to the number of valid steps.
    ``bessel``: the moving variance takes n / (n - 1) times the variance of a batch of n, n = 1
    left as it is; ``bessel_epsilon``: it takes n / (n - 1 - epsilon) times that.
    ``unbiased_start``: the moving averages of a loaded model start from zero with a correction of
    the bias, as those of Adam (``zero_debias`` of TensorFlow). ``single``: the weight of a new
    batch is rounded to float32. ``by``: the statistics by which the layer normalizes in training,
    its "moving averages" where Keras has frozen it, and whether these follow the batches.
    """

    masked: Literal["all", "valid", "valid, counted before broadcasting"] = "valid"
    count_raised_by: float = _EPSILON
    bessel: bool = False
    bessel_epsilon: bool = False
    unbiased_start: bool = False
    single: bool = False
    by: Literal["batch, followed", "batch, not followed", "moving averages"] = "batch, followed"


def with_training_rules(root: LayerSpec, generation: Generation) -> LayerSpec:
    """Return the model with ``trainable`` set on every layer, with its batch and penalty rules.

    ``trainable`` is the state after Keras' ``load_model`` of the file: False on a layer means that
    none of the weights in it is trained, True holds for its own weights alone. TensorFlow 2.2 to
    2.11 thaws a Bidirectional in ``load_model``; it stays frozen here, as the file says.
    """
    if generation.name != "keras3":
        return _settled(root, generation, learns=True)
    # Keras 3 writes the flag of the model only if it is functional.
    learns = root.class_name != "Functional" or root.config.get("trainable", True)
    return _settled(root, generation, learns=learns)


# Keras 3: layers whose weights belong to inner layers, to which the flag is not passed on.
_FLAG_NOT_PASSED_ON = frozenset(("MultiHeadAttention", *CONV_LSTMS))


_WRAPPERS = frozenset(("Bidirectional", "TimeDistributed"))


def _set_wrapper_flags(layer: LayerSpec, generation: Generation) -> LayerSpec:
    """Set the flags of a wrapper and of what it wraps as Keras 1 and 2 use them.

    The wrapper's flag has no effect before 2.1.4; from then on it replaces that of what it wraps,
    but not those of the layers in a model.
    """
    if generation.name not in ("keras1", "keras2") or layer.class_name not in _WRAPPERS:
        return layer
    if generation.numbers < (2, 1, 4):
        return replace(layer, config={**layer.config, "trainable": True})
    flag = layer.config.get("trainable", True)
    parts = {
        key: replace(part, config={**part.config, "trainable": flag})
        for key, part in layer.parts.items()
    }
    return replace(layer, parts=parts)


def _settled(layer: LayerSpec, generation: Generation, *, learns: bool) -> LayerSpec:
    """Set the rules of a layer and of all inside it; ``learns``: outer layers are trainable."""
    layer = _set_wrapper_flags(layer, generation)
    own = bool(layer.config.get("trainable", True))
    config, semantics = dict(layer.config), dict(layer.semantics)
    if layer.class_name == "BatchNormalization":
        semantics[BATCH_RULE] = batch_rule(layer, generation)
    if is_custom_cell(layer):
        semantics[ASKED] = generation.name in ("tf.keras", "keras3")
    if generation.name == "keras3":
        heard = (
            not layer.parts and layer.graph is None and layer.class_name not in _FLAG_NOT_PASSED_ON
        )
        inner, config["trainable"] = learns, learns and (own or not heard)
    else:
        # A model's own flag is not in its file, or is not read from it; its layers' flags are.
        inner = learns and (own or layer.graph is not None)
        config["trainable"] = inner
    layer = with_penalty_rule(replace(layer, semantics=semantics), penalty_rule(generation))
    return replace(layer, config=config).map_inner(
        lambda _, one: _settled(one, generation, learns=inner)
    )


def batch_rule(layer: LayerSpec, generation: Generation) -> BatchRule:
    """Return how this generation trains this BatchNormalization.

    Its own flag counts here, not those of outer layers: Keras does not look at them.
    """
    version = generation.numbers
    rule = _rule_in_training(layer, generation, version)
    if layer.config.get("trainable", True):
        return rule
    if generation.name == "keras3" or (generation.name == "tf.keras" and version >= (2, 2)):
        return replace(rule, by="moving averages")
    # TensorFlow 1.12 and before, Keras 1 and 2
    followed = generation.name != "tf.keras" and version < (2, 1, 3)
    return rule if followed else replace(rule, by="batch, not followed")


def _rule_in_training(
    layer: LayerSpec, generation: Generation, version: tuple[int, ...]
) -> BatchRule:
    if generation.name == "keras3":
        return BatchRule("valid" if version >= (3, 15) else "valid, counted before broadcasting")
    fused = _fused(layer, generation, version)
    rule = BatchRule("all", count_raised_by=0.0, bessel=fused, single=True)
    if generation.name == "tf.keras":
        return replace(rule, masked="valid") if version >= (2, 12) and not fused else rule
    return replace(
        rule,
        bessel_epsilon=version >= (2, 1, 4),
        unbiased_start=(2, 1, 3) <= version < (2, 3),
    )


def _fused(layer: LayerSpec, generation: Generation, version: tuple[int, ...]) -> bool:
    """Tell whether TensorFlow's kernel runs it, which has no float64 and ignores masks.

    No config says ``fused``: a loaded layer takes the kernel wherever it can.
    """
    shape = layer.input_shape
    if not isinstance(shape, tuple) or len(layer.config["axis"]) != 1:
        return False
    (axis,) = normalized_axes(layer.config, len(shape))
    if any(array.dtype == np.float64 for array in layer.weights.values()):
        return False
    if generation.name == "tf.keras":
        five = version >= (2, 5) and len(shape) == 5
        return (len(shape) == 4 and axis in (1, 3)) or (five and axis in (1, 4))
    # On a CPU, Keras 2 has it for channels at the end; Keras 1 and 2 before 2.1.3 never.
    return len(shape) == 4 and axis == 3 and version >= (2, 1, 3)
