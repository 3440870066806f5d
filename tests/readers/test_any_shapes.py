"""Shapes of layers and operations, of any options and inputs: inferred or refused."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from synthetic import write

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.schema import OPS, SCHEMA, ShapeError
from keras2torch_birnn.schema.operations.movement import split
from keras2torch_birnn.schema.options import REQUIRED, BadOptionError, Option
from keras2torch_birnn.schema.row import Schema

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, -2, -5, 7, 31, 2**31 - 1, 0.5, 1.5, "x", "same", "valid"),
    *("full", "concat", "sum", "relu", "channels_first", "channels_last", "count", "sizes", "@"),
    *("places", "float", "int32", "ij,jk->ik", "...a,ab->...b", "abc->ca", [], [0], [1], [-1], [5]),
    *([0, 1], [1, 0], [2, 3], [[0, 1], [1, 0]], [[1, 2]], [[0], [0]], [-3], [2**31 - 1, 2]),
    *(["...", None], [[0, 2, 1], 0], [["@", None, 1]]),
)
ROUNDS = 12


def any_option(option: Option, random: Random) -> Any:
    """A value that the option takes; of those that are refused, a few are drawn."""
    for _ in range(1 if option.default is not REQUIRED and random.random() < 0.6 else 12):
        with suppress(BadOptionError):
            return option.parse(random.choice(VALUES))
    return option.default


def any_shape(random: Random) -> tuple[int | None, ...] | None:
    rank = random.choice((1, 2, 3, 3, 4, 4, 5, 6))
    return tuple(random.choice((None, 1, 2, 3, 5, 7)) for _ in range(rank))


def any_input(schema: Schema, random: Random) -> Any:
    count = random.choice((1, 2, 3)) if schema.listed else len(schema.arguments)
    shapes = tuple(None if random.random() < 0.1 else any_shape(random) for _ in range(count))
    return shapes if schema.listed or count > 1 else shapes[0]


@pytest.mark.parametrize("table", [SCHEMA, OPS], ids=["layers", "operations"])
def test_any_options_and_shapes_give_a_shape_or_a_refusal(table: Mapping[str, Schema]) -> None:
    random = Random(2026)
    for schema in [*table.values()] * ROUNDS:
        named = {**schema.options, **schema.semantics}
        config = {key: any_option(option, random) for key, option in named.items()}
        if REQUIRED in config.values():
            continue
        given = any_input(schema, random)
        for rule in (schema.weights, schema.output):
            with suppress(ShapeError, K2TError):
                rule({"trainable": True, **config}, given)


@pytest.mark.parametrize(("sections", "by"), [((2, 3), "count"), (3, "sizes"), (3, "places")])
def test_a_split_of_one_kind_with_sections_of_another_is_refused(sections: Any, by: str) -> None:
    """Only a file of k2t's form can say so."""
    with pytest.raises(ShapeError, match=f"which are no {by}"):
        split({"sections": sections, "by": by, "axis": -1}, (7, 5))


PLAIN = ("ELU", "LeakyReLU", "ReLU", "Softmax", "ThresholdedReLU", "UnitNormalization")


@pytest.mark.parametrize(
    ("class_name", "config", "weights", "steps"),
    [
        *((name, {}, {}, steps) for name in PLAIN for steps in (False, True)),
        ("PReLU", {}, {"alpha": (7,)}, False),
        ("PReLU", {"shared_axes": [1]}, {"alpha": (1, 7)}, True),
        ("Rescaling", {"scale": 0.5}, {}, True),
        ("LayerNormalization", {}, {"gamma": (7,), "beta": (7,)}, True),
    ],
)
def test_the_layer_behind_one_of_any_shape_tells_the_shape_of_the_input(
    class_name: str, config: Any, weights: Any, steps: bool, tmp_path: Path
) -> None:
    """A Sequential that was built by its first call says nothing of it."""
    second = {"name": "second", "units": 5}
    shapes = {"kernel": (7, 5), "bias": (5,)}
    if steps:
        shapes = {"kernel": (7, 20), "recurrent_kernel": (5, 20), "bias": (20,)}
    layers = [
        {"class_name": class_name, "config": {"name": "first", **config}},
        {"class_name": "LSTM" if steps else "Dense", "config": second},
    ]
    stored = {
        layer: {f"{layer}/{name}:0": shape for name, shape in of_layer.items()}
        for layer, of_layer in (("first", weights), ("second", shapes))
    }
    path, out = tmp_path / "model.h5", tmp_path / "out.pt"
    write(path, {"class_name": "Sequential", "config": layers}, stored)
    (row, *_) = k2t.inspect(path).rows
    assert row.output_shape == ((None, None, 7) if steps else (None, 7))
    k2t.save(k2t.convert(path), out)
    assert k2t.verify(path, out).ok
