"""Source text of pooling."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    arguments,
    call,
    code,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.convolution import channels_ahead, channels_behind, short
from keras2torch_birnn.exporting.source.emission import Called, Emission, Emit, Site
from keras2torch_birnn.spec import LayerSpec


def _windows(layer: LayerSpec, name: str) -> Emission | None:
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


def _global(layer: LayerSpec, name: str) -> Emission:
    config, maximum = layer.config, "Max" in layer.class_name
    rank, last = int(layer.class_name[-2]), config["data_format"] == "channels_last"
    first = 1 if last else 2
    axes = first if rank == 1 else tuple(range(first, first + rank))
    options = arguments(dim=axes, **({"keepdim": True} if config["keepdims"] else {}))

    def pool(site: Site) -> Expression | Called:
        x = site.x
        if maximum:
            return code("{}.amax({})", x, options)
        if site.step_mask is None:
            return code("{}.mean({})", x, options)
        weight, total = site.fresh("weight"), site.fresh("total")
        made = code("{}.to({}.dtype).unsqueeze({})", site.step_mask, x, 3 - first)
        summed = code("({} * {}).sum({})", x, weight, options)
        mean = code("{} / {}.sum({})", total, weight, options)
        pairs = ((weight, made), (total, summed), (site.out, mean))
        return Called(tuple(Statement(*pair) for pair in pairs), site.out)

    return Emission(pool)


EMITTERS: Mapping[str, Emit] = {
    f"{where}{kind}Pooling{rank}D": write
    for where, write in (("", _windows), ("Global", _global))
    for kind in ("Max", "Average")
    for rank in (1, 2, 3)
}
