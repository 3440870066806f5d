"""Source text of spectrograms."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.dense import parameter
from keras2torch_birnn.exporting.source.emission import Emission, Emit, copied
from keras2torch_birnn.layers.spectrograms import mel_options, stft_options
from keras2torch_birnn.spec import LayerSpec


def _stft(layer: LayerSpec, name: str) -> Emission:
    kernels = {
        key.removesuffix("_kernel"): parameter(kernel.transpose(2, 1, 0))
        for key, kernel in layer.weights.items()
    }
    keys = [f"kernels.{key}" for key in kernels]
    return copied(layer, name, layer.class_name, keys=keys, **kernels, **stft_options(layer.config))


def _mel(layer: LayerSpec, name: str) -> Emission:
    return copied(layer, name, layer.class_name, **mel_options(layer.config))


EMITTERS: Mapping[str, Emit] = {"STFTSpectrogram": _stft, "MelSpectrogram": _mel}
