"""Training as the Keras of the file does it: what is trained, and what is frozen.

Also whether it asks a plugin's cell for its first states. Nothing of this is in the text of a
spec: it follows from the generation, when the model is built, so it holds for an OUT of any age.
Sources: ``trainable_weights`` of layers, wrappers and models of Keras 1.2.2, 2.0.8 to 2.3.1, of
tf.keras of TensorFlow 1.14 to 2.15 and of Keras 3.0.5 to 3.15; ``BatchNormalization.call`` and
``RNN.get_initial_state`` of the same.
"""

from __future__ import annotations

from dataclasses import replace

from keras2torch_birnn.schema import CONV_LSTMS
from keras2torch_birnn.schema.custom_cells import ASKED, is_custom_cell
from keras2torch_birnn.schema.penalties import penalty_rule, with_penalty_rule
from keras2torch_birnn.spec import Generation, LayerSpec

# In the semantics of a BatchNormalization: its own flag says that it is not trained. Those of outer
# layers do not count here, Keras does not look at them.
FROZEN = "frozen"


def with_training_rules(root: LayerSpec, generation: Generation) -> LayerSpec:
    """Return the model with ``trainable`` set on every layer, and with its penalty rules.

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
        semantics[FROZEN] = not own
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


def describe_batch_rule(root: LayerSpec, generation: Generation) -> tuple[str, ...]:
    """Note where the Keras of the file may train a BatchNormalization otherwise."""
    layers = [one for one in root.walk() if one.class_name == "BatchNormalization"]
    if not layers or generation.name == "keras3":
        return ()
    return (
        "BatchNormalization is trained by the rule of Keras 3: moments of the steps that are not "
        "masked, a moving variance without n / (n - 1), frozen layers by their moving averages; "
        f"Keras {generation.version} may differ",
    )
