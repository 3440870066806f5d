"""Source text of spectrograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.exporting.source.code import call, member, symbol
from keras2torch_birnn.exporting.source.dense import parameter
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper
from keras2torch_birnn.layers.spectrograms import mel_options, stft_options
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.spectrograms"


def _stft(layer: LayerSpec, name: str) -> Emission:
    kernels = {
        key.removesuffix("_kernel"): parameter(kernel.transpose(2, 1, 0))
        for key, kernel in layer.weights.items()
    }
    made = _module(layer, name, **kernels, **stft_options(layer.config))
    return replace(made, state={f"kernels.{key}": f"{name}.kernels.{key}" for key in kernels})


def _mel(layer: LayerSpec, name: str) -> Emission:
    return _module(layer, name, **mel_options(layer.config))


def _module(layer: LayerSpec, name: str, **options: Any) -> Emission:
    return Emission(
        lambda site: call(member(name), site.x),
        {name: call(symbol(layer.class_name), **options)},
        helpers=(Helper(_LAYERS, layer.class_name),),
    )


EMITTERS: Mapping[str, Emit] = {"STFTSpectrogram": _stft, "MelSpectrogram": _mel}
