"""Pooling over one axis, two or three, in windows and at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from keras2torch_birnn.schema.options import Option, choice, flag, optional, window
from keras2torch_birnn.schema.pages import for_ranks
from keras2torch_birnn.schema.row import Config, Schema
from keras2torch_birnn.schema.windows import (
    DATA_FORMAT,
    channel_axis,
    resized,
    window_length,
)
from keras2torch_birnn.spec import Shape


def _pool_output(config: Config, shape: Shape | None) -> Shape | None:
    sizes: Sequence[int] = config["pool_size"]
    strides: Sequence[int] = config["strides"] or sizes
    return resized(
        config,
        shape,
        len(sizes),
        lambda size, i: window_length(size, sizes[i], strides[i], config["padding"]),
    )


def _global_pool_output(rank: int, config: Config, shape: Shape | None) -> Shape | None:
    kept = resized(config, shape, rank, lambda size, i: 1)
    return kept if kept is None or config["keepdims"] else (kept[0], kept[channel_axis(config)])


def _pool(rank: int) -> Schema:
    options = {
        "pool_size": window(2, rank),
        "strides": optional(window(None, rank)),
        "padding": choice("valid", "valid", "same"),
        "data_format": DATA_FORMAT,
    }
    return Schema(options, output=_pool_output)


def _global_pool(rank: int, **semantics: Option) -> Schema:
    options = {"data_format": DATA_FORMAT, "keepdims": flag(False)}
    return Schema(options, output=partial(_global_pool_output, rank), semantics=semantics)


LAYERS: Mapping[str, Schema] = {
    **for_ranks("MaxPooling{}D", _pool),
    **for_ranks("AveragePooling{}D", _pool),
    **for_ranks("GlobalMaxPooling{}D", _global_pool),
    "GlobalAveragePooling1D": _global_pool(1, use_mask=flag(True)),
    "GlobalAveragePooling2D": _global_pool(2),
    "GlobalAveragePooling3D": _global_pool(3),
}
