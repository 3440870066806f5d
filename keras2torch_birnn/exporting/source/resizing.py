"""Source text of layers that pad, crop or repeat steps."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import Expression, arguments, call, member, symbol
from keras2torch_birnn.exporting.source.dropout import same
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.resizing"


def _module(name: str, helper: str, options: Expression) -> Emission:
    return Emission(
        lambda site: call(member(name), site.x),
        {name: call(symbol(helper), options)},
        helpers=(Helper(_LAYERS, helper),),
    )


def _last(layer: LayerSpec) -> bool:
    return bool(layer.config["data_format"] == "channels_last")


def _margins(layer: LayerSpec, name: str) -> Emission:
    crops = layer.class_name.startswith("Cropping")
    sizes = layer.config["cropping" if crops else "padding"]
    sign = -1 if crops else 1
    around = tuple((sign * int(before), sign * int(after)) for before, after in sizes)
    return _module(name, "Margins", arguments(around, channels_last=_last(layer)))


def _up_sampling(layer: LayerSpec, name: str) -> Emission:
    mode = layer.config.get("interpolation", "nearest")
    corners = mode == "bilinear" and layer.semantics["bilinear"] == "corners"
    factors = tuple(map(int, layer.config["size"]))
    options = arguments(factors, mode=mode, corners=corners, channels_last=_last(layer))
    return _module(name, "UpSampling", options)


def _resizing(layer: LayerSpec, name: str) -> Emission:
    config = layer.config
    if layer.class_name == "RandomCrop" and not layer.semantics["resizes"]:
        return same(layer, name)
    size = (int(config["height"]), int(config["width"]))
    if layer.class_name == "CenterCrop":
        return _module(name, "CenterCrop", arguments(size, channels_last=_last(layer)))
    options = arguments(
        size,
        mode=config.get("interpolation", "bilinear"),
        crops=config.get("crop_to_aspect_ratio", True),  # a RandomCrop
        channels_last=_last(layer),
    )
    return _module(name, "Resizing", options)


EMITTERS: Mapping[str, Emit] = {
    **{f"{kind}{rank}D": _margins for kind in ("ZeroPadding", "Cropping") for rank in (1, 2, 3)},
    **{f"UpSampling{rank}D": _up_sampling for rank in (1, 2, 3)},
    **dict.fromkeys(("Resizing", "CenterCrop", "RandomCrop"), _resizing),
}
