"""Source text of pooling."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.exporting.source.convolution import (
    channels_ahead,
    channels_behind,
    short,
)
from keras2torch_birnn.exporting.source.emission import (
    Called,
    Emission,
    Emit,
    Helper,
    Site,
    arguments,
    literal,
)
from keras2torch_birnn.spec import LayerSpec

_LAYERS = "keras2torch_birnn.layers.pooling"


def _windows(layer: LayerSpec, name: str) -> Emission:
    config, maximum = layer.config, layer.class_name.startswith("Max")
    size = tuple(map(int, config["pool_size"]))
    stride = tuple(map(int, config["strides"] or size))
    last, rank = config["data_format"] == "channels_last", len(size)
    if config["padding"] == "same":
        options = arguments(
            kind="max" if maximum else "average",
            size=size,
            stride=stride,
            padding="same",
            last=last,
        )
        return Emission(
            lambda site: f"self.{name}({site.x})",
            {name: f"Pooling({options})"},
            helpers=(Helper(_LAYERS, "Pooling"),),
        )
    more = () if stride == size else (short(stride),)
    kind = f"{'Max' if maximum else 'Avg'}Pool{rank}d"

    def call(site: Site) -> str:
        x = channels_ahead(site.x, rank) if last else site.x
        y = f"self.{name}({x})"
        return channels_behind(y, rank) if last else y

    return Emission(call, {name: f"nn.{kind}({arguments(short(size), *more)})"})


def _global(layer: LayerSpec, name: str) -> Emission:
    config, maximum = layer.config, "Max" in layer.class_name
    rank, last = int(layer.class_name[-2]), config["data_format"] == "channels_last"
    first = 1 if last else 2
    axes = first if rank == 1 else tuple(range(first, first + rank))
    options = arguments(dim=axes, **({"keepdim": True} if config["keepdims"] else {}))

    def call(site: Site) -> str | Called:
        if maximum:
            return f"{site.x}.amax({options})"
        if site.mask is None:
            return f"{site.x}.mean({options})"
        weight, total = site.fresh("weight"), site.fresh("total")
        made = f"{weight} = {site.mask}.to({site.x}.dtype).unsqueeze({literal(3 - first)})"
        summed = f"{total} = ({site.x} * {weight}).sum({options})"
        mean = f"{site.out} = {total} / {weight}.sum({options})"
        return Called((made, summed, mean), site.out)

    return Emission(call)


def _adaptive(layer: LayerSpec, name: str) -> Emission:
    options = arguments(
        kind="max" if "Max" in layer.class_name else "average",
        size=tuple(map(int, layer.config["output_size"])),
        last=layer.config["data_format"] == "channels_last",
    )
    return Emission(
        lambda site: f"self.{name}({site.x})",
        {name: f"AdaptivePooling({options})"},
        helpers=(Helper(_LAYERS, "AdaptivePooling"),),
    )


EMITTERS: Mapping[str, Emit] = {
    **{f"{kind}Pooling{rank}D": _windows for kind in ("Max", "Average") for rank in (1, 2, 3)},
    **{f"Global{kind}Pooling{rank}D": _global for kind in ("Max", "Average") for rank in (1, 2, 3)},
    **{
        f"Adaptive{kind}Pooling{rank}D": _adaptive
        for kind in ("Max", "Average")
        for rank in (1, 2, 3)
    },
}
