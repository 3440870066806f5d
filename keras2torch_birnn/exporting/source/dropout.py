"""Source text of layers that act in training only."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import call, symbol
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper, module
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.dropout"


def same(layer: LayerSpec, name: str) -> Emission:
    """Write a layer that leaves its input alone."""
    return Emission(lambda site: site.x, same=True)


def _module(name: str, kind: str, *options: object) -> Emission:
    helpers = () if kind.startswith("nn.") else (Helper(_LAYERS, kind),)
    return module(name, call(symbol(kind), *options), (), *helpers)


def _shaped(name: str, rate: float, shape: tuple[int | None, ...]) -> Emission:
    return _module(name, "ShapedDropout", rate, shape)


def _dropout(layer: LayerSpec, name: str) -> Emission:
    shape, rate = layer.config["noise_shape"], layer.config["rate"]
    if shape is not None:
        return _shaped(name, rate, tuple(shape))
    return _module(name, "nn.Dropout", rate)


def _spatial(layer: LayerSpec, name: str) -> Emission:
    axes = int(layer.class_name[-2])
    ones = (1,) * axes
    last = axes == 1 or layer.config["data_format"] == "channels_last"
    return _shaped(name, layer.config["rate"], (None, *ones, None) if last else (None, None, *ones))


def _gaussian_noise(layer: LayerSpec, name: str) -> Emission:
    return _module(name, "GaussianNoise", layer.config["stddev"])


def _gaussian_dropout(layer: LayerSpec, name: str) -> Emission:
    return _module(name, "GaussianDropout", layer.config["rate"])


def _alpha_dropout(layer: LayerSpec, name: str) -> Emission:
    shape, rate = layer.config["noise_shape"], layer.config["rate"]
    if shape is None:
        return _module(name, "nn.AlphaDropout", rate)
    return _module(name, "ShapedAlphaDropout", rate, tuple(shape))


EMITTERS: Mapping[str, Emit] = {
    "Dropout": _dropout,
    **{f"SpatialDropout{rank}D": _spatial for rank in (1, 2, 3)},
    "GaussianNoise": _gaussian_noise,
    "GaussianDropout": _gaussian_dropout,
    "AlphaDropout": _alpha_dropout,
    "ActivityRegularization": same,
    "Identity": same,
}
