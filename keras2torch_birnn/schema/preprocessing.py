"""Layers that Keras calls preprocessing, as far as they compute on numbers, and augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema import AUGMENTATION
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    axes,
    choice,
    flag,
    number,
    size,
)
from keras2torch_birnn.schema.row import (
    Config,
    Schema,
    ShapeError,
    WeightShapes,
    known,
    normalized_axes,
)
from keras2torch_birnn.spec import Shape, Structure


def _numbers(value: Any) -> Any:
    """Parse a number, or nested lists of numbers, as tuples."""
    if isinstance(value, list | tuple):
        numbers = tuple(_numbers(part) for part in value)
        if len({_extent(part) for part in numbers}) != 1:
            raise BadOptionError("numbers, or lists of equal lengths, are expected")
        return numbers
    return number().parse(value)


def _extent(numbers: Any) -> tuple[int, ...]:
    """Return the shape of what ``_numbers`` gives."""
    return (len(numbers), *_extent(numbers[0])) if isinstance(numbers, tuple) else ()


def _rescaled(config: Config, shape: Shape | None) -> Shape | None:
    """Return the input's shape; refuse lists of numbers that do not broadcast to it."""
    if shape is None:
        return None
    for name in ("scale", "offset"):
        extent = _extent(config[name])
        sizes = (*shape[1:][::-1], 1)
        pairs = zip(reversed(extent), sizes, strict=False)
        if len(extent) > len(sizes) or any(n not in (1, size_) and size_ for n, size_ in pairs):
            raise ShapeError(f"{name} of shape {list(extent)} does not fit {list(shape)}")
    return shape


def _normalization_weights(config: Config, shape: Shape | None) -> WeightShapes:
    sizes: Shape = (None,) * len(config["axis"])
    if shape is not None:
        sizes = tuple(shape[axis] for axis in normalized_axes(config, len(shape)))
    if config["mean"] is not None:
        if config["variance"] is None:
            raise ShapeError("mean without variance")
        for name in ("mean", "variance"):
            extent = _extent(config[name])
            pairs = zip(reversed(extent), reversed(sizes), strict=False)
            if len(extent) > len(sizes) or any(b not in (None, a) and a != 1 for a, b in pairs):
                raise ShapeError(f"{name} of shape {list(extent)} does not fit {list(sizes)}")
        return {}
    return {"mean": sizes, "variance": sizes, "count": ()}


def _encoded(mode: str, depth: int | None, shape: Shape | None) -> Shape | None:
    """Shape of ids 0 to depth - 1 encoded (``encode_categorical_inputs`` of Keras 3.15).

    multi_hot and count of more than two axes: Keras 3 reduces the second axis, not the last as
    its documentation and its declared shape say; of one axis it has no batch. Both are refused.
    """
    if mode == "one_hot":
        shape = known(shape, least_rank=1)
        if shape is None:
            return None
        return (*(shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape), depth)
    shape = known(shape, rank=2)
    return None if shape is None else (shape[0], depth)


def _categories(config: Config, shapes: Structure) -> Shape | None:
    """Read ids, or ids and what each of them counts."""
    mode, depth = config["output_mode"], config["num_tokens"]
    if not isinstance(shapes, tuple) or not any(isinstance(part, tuple) for part in shapes):
        return _encoded(mode, depth, shapes)
    ids, weights = shapes
    if mode != "count":
        raise ShapeError(f"count_weights with output_mode {mode!r}, which Keras refuses")
    shape = _encoded(mode, depth, ids)
    pairs = zip(ids or (), weights or (), strict=False)
    if None not in (ids, weights) and (
        len(ids) != len(weights) or any(None not in (a, b) and a != b for a, b in pairs)
    ):
        raise ShapeError(f"count_weights {list(weights)} for ids {list(ids)}")
    return shape


# "binary" is the name of multi_hot up to tf.keras 2.6.
_MODES = choice("multi_hot", "one_hot", "multi_hot", "count")
_OUTPUT_MODE = Option(
    "multi_hot", lambda value: _MODES.parse("multi_hot" if value == "binary" else value)
)

# Keras 3 passes the mask on, tf.keras drops it.
_PASSES_MASK: Mapping[str, Option] = {"passes_mask": flag()}


# ---- augmentation --------------------------------------------------------------------------------

# What they draw, and from where; at inference nothing is drawn.
_IN_TRAINING = tuple(
    "factor height_factor width_factor x_factor y_factor brightness_factor contrast_factor "
    "saturation_factor hue_factor addition_factor threshold_factor mode fill_mode fill_value "
    "interpolation value_range data_format bounding_box_format scale kernel_size sigma alpha "
    "num_ops num_chains chain_depth all_ops max_number".split()
)


def _images(config: Config, shape: Structure) -> Structure:
    """Return the shape of images; refuse labels and boxes beside them."""
    if isinstance(shape, Mapping) or any(isinstance(part, tuple) for part in shape or ()):
        raise ShapeError("images alone are expected, found several tensors")
    return shape


LAYERS: Mapping[str, Schema] = {
    "Normalization": Schema(
        {
            "axis": Option((-1,), lambda value: () if value is None else axes(-1).parse(value)),
            "mean": Option(None, lambda value: None if value is None else _numbers(value)),
            "variance": Option(None, lambda value: None if value is None else _numbers(value)),
            "invert": flag(False),
        },
        _normalization_weights,
        semantics=_PASSES_MASK,
        not_trained=("mean", "variance", "count"),
        integer_weights=("count",),
        refused=("mean without variance",),
    ),
    "Rescaling": Schema(
        {
            "scale": Option(REQUIRED, _numbers),
            "offset": Option(0.0, _numbers),
        },
        semantics=_PASSES_MASK,
        output=_rescaled,
    ),
    "CategoryEncoding": Schema(
        {
            "num_tokens": size(),
            "output_mode": _OUTPUT_MODE,
            "sparse": choice(False, False),
        },
        output=_categories,
        arguments=("inputs", "count_weights"),
        renamed={"max_tokens": "num_tokens"},
        refused=("sparse=True", "more than two axes (multi_hot, count)"),
    ),
    **dict.fromkeys(
        AUGMENTATION,
        Schema(
            output=_images,
            ignored=_IN_TRAINING,
            semantics={"keeps_integers": flag(False)},
            refused=("labels or boxes beside the images",),
        ),
    ),
}
