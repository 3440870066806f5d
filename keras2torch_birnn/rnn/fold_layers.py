"""A stack of bidirectional layers in one call of torch's kernel: merges folded into the weights.

A merge that adds the directions up can be done by the next layer's input weights:
W (f + b) = [W W] [f; b] and W (f + b) / 2 = [W/2 W/2] [f; b]. "concat" is what torch's kernel does;
only a product cannot be had this way. f, b: the directions' outputs (B, T, H).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from keras2torch_birnn.rnn.call import Asked, Result
from keras2torch_birnn.rnn.engines import Recurrence, no_steps, run_kernel, to_keep

# Merge mode -> what the next layer's input weights are multiplied by, for each direction; None:
# they are wide already.
FACTORS: Mapping[str | None, float | None] = {"concat": None, "sum": 1.0, "ave": 0.5}


def cannot_fold(layers: Sequence[Recurrence], modes: Sequence[str | None], dropout: float) -> str:
    """Why these layers cannot be one call; empty if they can.

    modes: what each merges by. dropout: between the layers.
    """
    first = layers[0]
    if first.kernel is None:
        return "torch has no kernel for this cell"
    for mode in modes[:-1]:
        if mode not in FACTORS:
            return f"merge_mode={mode!r} cannot be folded into the next layer's weights"
    if first.training and dropout and len(layers) > 1:
        return "dropout between the layers"
    return ""


def run_folded(layers: Sequence[Recurrence], modes: Sequence[str | None], asked: Asked) -> Result:
    """All layers; ``asked.start`` and the final states are those of all, each with two directions.

    modes: what each layer merges by.
    """
    if asked.x.shape[1] == 0:
        return no_steps(layers, asked)
    later = zip(layers[1:], modes[:-1], strict=True)
    return run_kernel((layers[0], *(reading(layer, mode) for layer, mode in later)), to_keep(asked))


def reading(layer: Recurrence, mode: str | None) -> Recurrence:
    """A layer that reads two directions side by side as it would read them merged."""
    factor = FACTORS[mode]
    if factor is None:
        return layer
    wide = tuple(w._replace(ih=torch.cat((w.ih, w.ih), dim=1) * factor) for w in layer.weights)
    return layer._replace(weights=wide)
