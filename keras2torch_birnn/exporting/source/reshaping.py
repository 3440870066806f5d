"""Source text of layers that change the shape of their input."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.emission import Emission, Emit, Site, arguments
from keras2torch_birnn.spec import LayerSpec


def _flatten(layer: LayerSpec, name: str) -> Emission:
    shape = layer.input_shape
    rank = len(shape) if isinstance(shape, tuple) else 0
    moved = layer.config["data_format"] != "channels_last" and rank != 2

    def call(site: Site) -> str:
        if rank == 1:
            return f"{site.x}[:, None]"
        return f"{site.x}.movedim(1, -1).flatten(1)" if moved else f"{site.x}.flatten(1)"

    return Emission(call)


def _reshape(layer: LayerSpec, name: str) -> Emission:
    shape = tuple(map(int, layer.config["target_shape"]))
    sizes = f", {arguments(*shape)}" if shape else ""
    return Emission(lambda site: f"{site.x}.reshape({site.x}.shape[0]{sizes})")


def _permute(layer: LayerSpec, name: str) -> Emission:
    dims = arguments(0, *map(int, layer.config["dims"]))
    return Emission(lambda site: f"{site.x}.permute({dims})")


def _repeat_vector(layer: LayerSpec, name: str) -> Emission:
    steps = int(layer.config["n"])
    return Emission(lambda site: f"{site.x}[:, None, :].expand(-1, {steps}, -1)")


EMITTERS: Mapping[str, Emit] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
}
