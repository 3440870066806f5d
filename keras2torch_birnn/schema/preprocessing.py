"""Layers that Keras calls preprocessing, as far as they compute on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from keras2torch_birnn.limits import MAX_INT64, MIN_INT64
from keras2torch_birnn.schema.options import (
    REQUIRED,
    BadOptionError,
    Option,
    axes,
    choice,
    flag,
    number,
    optional,
    size,
)
from keras2torch_birnn.schema.row import (
    Config,
    Schema,
    ShapeError,
    WeightShapes,
    known,
    normalized_axes,
    only_images,
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


def _rising(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise BadOptionError(
            "a list of numbers is expected; what adapt() found is not in the configuration of "
            "tf.keras: make the layer anew with bin_boundaries"
        )
    numbers = tuple(number().parse(part) for part in value)
    if any(after < before for before, after in pairwise(numbers)):
        raise BadOptionError("rising numbers are expected")
    return numbers


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


def _value_range(value: Any) -> tuple[float, float]:
    """Parse the least and the largest value, in any order."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadOptionError("two numbers are expected")
    low, high = sorted(number().parse(part) for part in value)
    return low, high


def _images(config: Config, shape: Structure) -> Shape | None:
    """Return the shape of the images; Keras takes a tensor of three dimensions as one image."""
    return known(only_images(shape), rank=4)


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


def encoded(mode: str, depth: int | None, shape: Shape | None) -> Shape | None:
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
        return encoded(mode, depth, shapes)
    ids, weights = shapes
    if mode != "count":
        raise ShapeError(f"count_weights with output_mode {mode!r}, which Keras refuses")
    shape = encoded(mode, depth, ids)
    pairs = zip(ids or (), weights or (), strict=False)
    if None not in (ids, weights) and (
        len(ids) != len(weights) or any(None not in (a, b) and a != b for a, b in pairs)
    ):
        raise ShapeError(f"count_weights {list(weights)} for ids {list(ids)}")
    return shape


def ids_output(
    depth: Callable[[Config], int | None],
) -> Callable[[Config, Structure], Shape | None]:
    """Make the output rule of ids: of the input's shape, or encoded."""

    def output(config: Config, shape: Structure) -> Shape | None:
        if isinstance(shape, tuple) and any(isinstance(part, tuple) for part in shape):
            raise ShapeError("one tensor is expected, found several")
        mode = config["output_mode"]
        return shape if mode == "int" else encoded(mode, depth(config), shape)

    return output


def whole_number(value: Any) -> int:
    """Parse an integer of 64 bits."""
    if type(value) is not int or not MIN_INT64 <= value <= MAX_INT64:
        raise BadOptionError("a whole number of 64 bits is expected")
    return value


def _integers(value: Any) -> tuple[int, ...] | None:
    """Parse the vocabulary; None if ``adapt`` found it, which the config does not hold."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value:
        raise BadOptionError("a list of whole numbers is expected")
    return tuple(whole_number(part) for part in value)


def lookup_tokens(config: Config) -> tuple[tuple[int, ...], int]:
    """Return the numbers that are looked up, and the index of the first of them.

    Before them are the mask (0, where indices come out) and what is not among them.
    """
    masked = config["mask_token"] is not None and config["output_mode"] == "int"
    first = masked + int(config["num_oov_indices"])
    words: tuple[int, ...] = config["vocabulary"]
    tokens = words
    if first <= len(words):  # which may begin with the special tokens
        special = [config["mask_token"]] * masked + [config["oov_token"]] * (first - masked)
        tokens = words[first:] if list(words[:first]) == special else words
    if len(set(tokens)) < len(tokens) or (config["mask_token"] in tokens):
        raise ShapeError("vocabulary holds a number twice, or the mask_token, which Keras refuses")
    return tokens, first


def lookup_depth(config: Config) -> int:
    """Return the number of indices."""
    tokens, first = lookup_tokens(config)
    if not config["pad_to_max_tokens"]:
        return first + len(tokens)
    if config["max_tokens"] is None or config["max_tokens"] < first + len(tokens):
        raise ShapeError("pad_to_max_tokens with fewer max_tokens than there are")
    return int(config["max_tokens"])


def lookup_options(config: Config) -> dict[str, Any]:
    """Return what the module of a lookup needs beside the list, as plain values."""
    _, first = lookup_tokens(config)
    others = config["num_oov_indices"]
    return {
        "mode": config["output_mode"],
        "depth": lookup_depth(config),
        "others": others,
        "start": first - others,
        "mask_token": config["mask_token"],
    }


def _looked_up(config: Config, shape: Structure) -> Shape | None:
    if config["vocabulary"] is None:  # it is looked for in the archive
        return ids_output(lambda config: None)(config, shape)
    lookup_tokens(config)
    return ids_output(lookup_depth)(config, shape)


def output_mode(default: str, allowed: Sequence[str]) -> Option:
    """Allow an output mode; ``binary`` is the name of multi_hot up to tf.keras 2.6."""
    modes = choice(default, *allowed)
    return Option(default, lambda value: modes.parse("multi_hot" if value == "binary" else value))


ENCODINGS = ("one_hot", "multi_hot", "count")

# Keras 3 passes the mask on, tf.keras drops it.
_PASSES_MASK: Mapping[str, Option] = {"passes_mask": flag()}

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
    "AutoContrast": Schema(
        {"value_range": Option((0, 255), _value_range)},
        output=_images,
        ignored=("data_format", "bounding_box_format"),  # always of axes 1 and 2
        refused=("labels or boxes beside the images",),
    ),
    "CategoryEncoding": Schema(
        {
            "num_tokens": size(),
            "output_mode": output_mode("multi_hot", ENCODINGS),
            "sparse": choice(False, False),
        },
        output=_categories,
        arguments=("inputs", "count_weights"),
        renamed={"max_tokens": "num_tokens"},
        refused=("sparse=True", "more than two axes (multi_hot, count)"),
    ),
    "Discretization": Schema(
        {
            "bin_boundaries": Option(REQUIRED, _rising),
            "output_mode": output_mode("int", ("int", *ENCODINGS)),
            "sparse": choice(False, False),
            "num_bins": optional(size(None, least=0)),
        },
        output=ids_output(lambda config: len(config["bin_boundaries"]) + 1),
        ignored=("epsilon",),
        refused=("adapt() of tf.keras", "sparse=True", "more than two axes (as above)"),
    ),
    "IntegerLookup": Schema(
        {
            "vocabulary": Option(None, _integers),
            "max_tokens": optional(size(None, least=2)),
            "num_oov_indices": size(1, least=0),
            "mask_token": optional(Option(None, whole_number)),
            "oov_token": Option(-1, lambda value: None if value is None else whole_number(value)),
            "vocabulary_dtype": choice("int64", "int64"),
            "idf_weights": choice(None, None),
            "invert": choice(False, False),
            "output_mode": output_mode("int", ("int", *ENCODINGS)),
            "sparse": choice(False, False),
            "pad_to_max_tokens": flag(False),
            "oov_method": choice("floormod", "floormod"),
            "salt": choice(None, None),
        },
        output=_looked_up,
        ignored=("vocabulary_size", "has_input_vocabulary"),
        refused=("adapt() outside .keras", "invert=True", "tf_idf", "oov_method=farmhash"),
    ),
}
