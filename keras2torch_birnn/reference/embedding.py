"""Embedding (Keras 2.15 and 3.15)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, Structure


def embedding(layer: LayerSpec, x: Array, mask: Structure, context: Context) -> Result:
    """Compute ``Embedding.call``.

    Row number id, an id that is not whole is cut; (B, T) -> (B, T, F).

    ``Embedding.compute_mask``: the mask is id != 0, before the cut; the incoming one is dropped.
    """
    ids = np.asarray(x).astype(np.int64)
    if np.any(ids < 0):
        raise ValueError(f"layer {layer.name}: ids from 0 on are expected, found {ids.min()}")
    out_mask = np.asarray(x) != 0 if layer.config["mask_zero"] else None
    rows = context.number(layer.weights["embeddings"][ids])
    return rows, out_mask


EQUATIONS: Mapping[str, Equation] = {
    "Embedding": embedding,
}
