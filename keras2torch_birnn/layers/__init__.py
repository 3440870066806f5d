"""One page per family of layers: torch module, weight mapping and converter together."""

from keras2torch_birnn.layers.registry import CONVERTERS

__all__ = ["CONVERTERS"]
