"""The recurrent layers' entry in the registry; the modules are in ``rnn``."""

from __future__ import annotations

from torch import nn

from keras2torch_birnn.layers.registry import USES, MaskFlow, converts
from keras2torch_birnn.rnn import layers
from keras2torch_birnn.spec import LayerSpec


def _mask(layer: LayerSpec) -> MaskFlow:
    # The output has steps, and so a mask, only with return_sequences.
    one = layer.parts.get("forward_layer", layer)
    return MaskFlow(takes=True) if one.config["return_sequences"] else USES


@converts("LSTM", "GRU", "SimpleRNN", mask=_mask)
def recurrent(layer: LayerSpec) -> nn.Module:
    """Build an LSTM, GRU or SimpleRNN."""
    return layers.recurrent(layer)


@converts("Bidirectional", mask=_mask)
def bidirectional(layer: LayerSpec) -> nn.Module:
    """Build a Bidirectional."""
    return layers.bidirectional(layer)
