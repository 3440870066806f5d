"""Source text of spectrograms."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.dense import parameter
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper, copied
from keras2torch_birnn.layers.spectrograms import mel_options, stft_options
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.spectrograms"


def _stft(layer: LayerSpec, name: str) -> Emission:
    kernels = {
        key.removesuffix("_kernel"): parameter(kernel.transpose(2, 1, 0))
        for key, kernel in layer.weights.items()
    }
    helper = Helper(_LAYERS, layer.class_name)
    keys = [f"kernels.{key}" for key in kernels]
    return copied(name, helper, keys=keys, **kernels, **stft_options(layer.config))


def _mel(layer: LayerSpec, name: str) -> Emission:
    return copied(name, Helper(_LAYERS, layer.class_name), **mel_options(layer.config))


EMITTERS: Mapping[str, Emit] = {"STFTSpectrogram": _stft, "MelSpectrogram": _mel}
