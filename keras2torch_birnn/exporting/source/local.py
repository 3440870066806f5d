"""Source text of locally connected layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from keras2torch_birnn.exporting.source.activation import FUNCTIONAL, TORCH, applied
from keras2torch_birnn.exporting.source.convolution import channels_ahead
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper, Site, literal
from keras2torch_birnn.schema.local import places
from keras2torch_birnn.spec import LayerSpec

_CONNECT = Helper("keras2torch_birnn.layers.local", "connect_locally")


def _locally_connected(layer: LayerSpec, name: str) -> Emission:
    config, shape = layer.config, layer.input_shape
    axes, last = places(config, shape), config["data_format"] == "channels_last"
    channels, rank = int(shape[-1] if last else shape[1]), len(axes)
    inner = channels * math.prod(axis.size for axis in axes)
    sizes = (math.prod(axis.count for axis in axes), inner, config["filters"])
    around = [size for axis in reversed(axes) for size in axis.around()]
    windows = ", ".join(
        literal(tuple(getattr(axis, what) for axis in axes)) for what in ("size", "stride", "count")
    )
    members = {f"{name}_weight": f"nn.Parameter(torch.zeros({literal(sizes)}))"}
    state = {"weight": f"{name}_weight"}
    if config["use_bias"]:
        bias = tuple(map(int, layer.weights["bias"].shape))
        members[f"{name}_bias"] = f"nn.Parameter(torch.zeros({literal(bias)}))"
        state["bias"] = f"{name}_bias"

    def call(site: Site) -> str:
        x = channels_ahead(site.x, rank) if last else site.x
        x = f"functional.pad({x}, {literal(tuple(around))})" if any(around) else x
        y = f"connect_locally({x}, self.{name}_weight, {windows})"
        y = f"{y} + self.{name}_bias" if config["use_bias"] else y
        y, _ = applied(config["activation"], y)
        if last:
            return y
        whole = y if y.endswith(")") and config["activation"] != "linear" else f"({y})"
        return f"{whole}.movedim(-1, 1)"

    more = applied(config["activation"], "x")[1]
    pad = (FUNCTIONAL,) if any(around) else ()
    return Emission(call, members, state, (_CONNECT, TORCH, *pad, *more))


EMITTERS: Mapping[str, Emit] = dict.fromkeys(
    ("LocallyConnected1D", "LocallyConnected2D"), _locally_connected
)
