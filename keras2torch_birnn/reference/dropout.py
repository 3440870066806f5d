"""Layers that act in training only, and Identity."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.schema.pages import for_ranks
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def identity(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Return the input: layers that act in training only."""
    return x, mask


def identity_layer(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Identity.call``: tf.keras (2.15) has no ``supports_masking`` there, Keras 3 has."""
    return x, mask if context.generation.name == "keras3" else None


EQUATIONS: Mapping[str, Equation] = {
    "Dropout": identity,
    **for_ranks("SpatialDropout{}D", lambda _: identity),
    "Identity": identity_layer,
    "GaussianNoise": identity,
    "GaussianDropout": identity,
    "AlphaDropout": identity,
    "ActivityRegularization": identity,
}
