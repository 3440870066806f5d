"""Source text of layers that act in training only."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import call, symbol
from keras2torch_birnn.exporting.source.emission import Emission, Emit, copied, module
from keras2torch_birnn.spec import LayerSpec


def same(layer: LayerSpec, name: str) -> Emission:
    """Write a layer that leaves its input alone."""
    return Emission(lambda site: site.x, same=True)


def _torchs(name: str, kind: str, rate: float) -> Emission:
    return module(name, call(symbol(f"nn.{kind}"), rate))


def _dropout(layer: LayerSpec, name: str) -> Emission:
    shape, rate = layer.config["noise_shape"], layer.config["rate"]
    if shape is None:
        return _torchs(name, "Dropout", rate)
    return copied(layer, name, "ShapedDropout", rate, tuple(shape))


def _spatial(layer: LayerSpec, name: str) -> Emission:
    axes = int(layer.class_name[-2])
    ones = (1,) * axes
    last = axes == 1 or layer.config["data_format"] == "channels_last"
    shape = (None, *ones, None) if last else (None, None, *ones)
    return copied(layer, name, "ShapedDropout", layer.config["rate"], shape)


def _gaussian(layer: LayerSpec, name: str) -> Emission:
    option = "stddev" if layer.class_name == "GaussianNoise" else "rate"
    return copied(layer, name, layer.class_name, layer.config[option])


def _alpha_dropout(layer: LayerSpec, name: str) -> Emission:
    shape, rate = layer.config["noise_shape"], layer.config["rate"]
    if shape is None:
        return _torchs(name, "AlphaDropout", rate)
    return copied(layer, name, "ShapedAlphaDropout", rate, tuple(shape))


EMITTERS: Mapping[str, Emit] = {
    "Dropout": _dropout,
    **{f"SpatialDropout{rank}D": _spatial for rank in (1, 2, 3)},
    **dict.fromkeys(("GaussianNoise", "GaussianDropout"), _gaussian),
    "AlphaDropout": _alpha_dropout,
    "ActivityRegularization": same,
    "Identity": same,
}
