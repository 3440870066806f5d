"""Source text of layers that pad, crop or repeat steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.exporting.source.dropout import same
from keras2torch_birnn.exporting.source.emission import Emission, Emit, copied
from keras2torch_birnn.spec import LayerSpec


def _module(layer: LayerSpec, name: str, kind: str, sizes: object, **options: Any) -> Emission:
    last = bool(layer.config["data_format"] == "channels_last")
    return copied(layer, name, kind, sizes, **options, channels_last=last)


def _margins(layer: LayerSpec, name: str) -> Emission:
    crops = layer.class_name.startswith("Cropping")
    sizes = layer.config["cropping" if crops else "padding"]
    sign = -1 if crops else 1
    around = tuple((sign * int(before), sign * int(after)) for before, after in sizes)
    return _module(layer, name, "Margins", around)


def _up_sampling(layer: LayerSpec, name: str) -> Emission:
    mode = layer.config.get("interpolation", "nearest")
    corners = mode == "bilinear" and layer.semantics["bilinear"] == "corners"
    factors = tuple(map(int, layer.config["size"]))
    return _module(layer, name, "UpSampling", factors, mode=mode, corners=corners)


def _resizing(layer: LayerSpec, name: str) -> Emission:
    config = layer.config
    if layer.class_name == "RandomCrop" and not layer.semantics["resizes"]:
        return same(layer, name)
    size = (int(config["height"]), int(config["width"]))
    if layer.class_name == "CenterCrop":
        return _module(layer, name, "CenterCrop", size)
    mode = config.get("interpolation", "bilinear")
    crops = config.get("crop_to_aspect_ratio", True)  # a RandomCrop
    return _module(layer, name, "Resizing", size, mode=mode, crops=crops)


EMITTERS: Mapping[str, Emit] = {
    **{f"{kind}{rank}D": _margins for kind in ("ZeroPadding", "Cropping") for rank in (1, 2, 3)},
    **{f"UpSampling{rank}D": _up_sampling for rank in (1, 2, 3)},
    **dict.fromkeys(("Resizing", "CenterCrop", "RandomCrop"), _resizing),
}
