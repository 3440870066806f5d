"""Source text of pooling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.exporting.source.code import (
    Expression,
    call,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.convolution import channels_ahead, channels_behind, short
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Site
from keras2torch_birnn.schema.pages import for_ranks
from keras2torch_birnn.spec import LayerSpec


def _windows(layer: LayerSpec, name: str, built: Any) -> Emission | None:
    config, size = layer.config, layer.config["pool_size"]
    if config["padding"] == "same":
        return None
    last, rank = config["data_format"] == "channels_last", len(size)
    more = () if config["strides"] in (None, size) else (short(config["strides"]),)
    pooling = symbol(f"nn.{'Max' if layer.class_name.startswith('Max') else 'Avg'}Pool{rank}d")

    def pool(site: Site) -> Expression:
        y = call(member(name), channels_ahead(site.x, rank) if last else site.x)
        return channels_behind(y, rank) if last else y

    return Emission(pool, {name: call(pooling, short(size), *more)})


EMITTERS: Mapping[str, Emit] = {
    **for_ranks("MaxPooling{}D", lambda _: _windows),
    **for_ranks("AveragePooling{}D", lambda _: _windows),
}
