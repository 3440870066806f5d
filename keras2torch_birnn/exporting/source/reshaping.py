"""Source text of layers that change the shape of their input."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import Expression, arguments, code
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Site
from keras2torch_birnn.spec import LayerSpec


def _flatten(layer: LayerSpec, name: str) -> Emission:
    shape = layer.input_shape
    rank = len(shape) if isinstance(shape, tuple) else 0
    moved = layer.config["data_format"] != "channels_last" and rank != 2

    def flatten(site: Site) -> Expression:
        if rank == 1:
            return code("{}[:, None]", site.x)
        x = code("{}.movedim(1, -1)", site.x) if moved else site.x
        return code("{}.flatten(1)", x)

    return Emission(flatten)


def _reshape(layer: LayerSpec, name: str) -> Emission:
    shape = tuple(map(int, layer.config["target_shape"]))

    def reshape(site: Site) -> Expression:
        rows = code("{}.shape[0]", site.x)
        return code("{}.reshape({})", site.x, arguments(rows, *shape))

    return Emission(reshape)


def _permute(layer: LayerSpec, name: str) -> Emission:
    dims = arguments(0, *map(int, layer.config["dims"]))
    return Emission(lambda site: code("{}.permute({})", site.x, dims))


def _repeat_vector(layer: LayerSpec, name: str) -> Emission:
    steps = int(layer.config["n"])
    return Emission(lambda site: code("{}[:, None, :].expand(-1, {}, -1)", site.x, steps))


EMITTERS: Mapping[str, Emit] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
}
