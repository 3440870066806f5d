"""LocallyConnected: windows that do not fit, and every window against the reference."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from spec_parity import TF_215, agree_alone
from specs import B, layer, values

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.schema import SCHEMA, BadOptionError, ShapeError


@pytest.mark.parametrize(
    ("options", "shape", "match"),
    [
        ({}, (None, None, 3), "the number of its steps has to be known"),
        ({}, (None, 7, None), "the number of its channels has to be known"),
        ({}, None, "the shape of its input has to be known"),
        ({}, (None, 7), "an input of 3 dimensions is expected"),
        ({"kernel_size": 15, "padding": "same", "implementation": 2}, (None, 7, 3),
         "a window of 15 over 7 steps"),
        ({"kernel_size": 11}, (None, 7, 3), "a window of 11 does not fit the 7 steps"),
    ],
)  # fmt: skip
def test_windows_of_their_own_that_do_not_fit_are_refused(
    options: Any, shape: Any, match: str
) -> None:
    spec = layer("LocallyConnected1D", **{"filters": 5, "kernel_size": 2, **options})
    with pytest.raises(ShapeError, match=match):
        SCHEMA["LocallyConnected1D"].weights(spec.config, shape)


def test_same_padding_of_the_first_implementation_is_refused() -> None:
    spec = layer("LocallyConnected1D", filters=5, kernel_size=2, padding="same")
    with pytest.raises(ShapeError, match="padding='same' with implementation=1"):
        SCHEMA["LocallyConnected1D"].output(spec.config, (None, 7, 3))
    assert SCHEMA["LocallyConnected1D"].output({**spec.config, "padding": "valid"}, None) is None
    with pytest.raises(BadOptionError, match="one of 1, 2, 3 is expected"):
        SCHEMA["LocallyConnected1D"].options["implementation"].parse(4)


@pytest.mark.parametrize("rank", [1, 2])
def test_every_window_of_its_own_agrees_with_the_reference(rank: int) -> None:
    tried, every = 0, itertools.product(
        (1, 2, 3, 5, 12), (1, 2, 3), (1, 2, 3), ("valid", "same"),
        ("channels_last", "channels_first"),
    )  # fmt: skip
    for size, stride, mode, padding, form in itertools.islice(every, 0, None, 7):
        if (mode == 1 and padding == "same") or (size > 11 and padding == "valid"):
            continue
        spec = layer(
            f"LocallyConnected{rank}D", "own", filters=5, kernel_size=(size, 2)[:rank],
            strides=(stride, 1)[:rank], padding=padding, data_format=form, implementation=mode,
        )  # fmt: skip
        between = (11, 3)[:rank]
        shape = (*between, 2) if form == "channels_last" else (2, *between)
        agree_alone(spec, (B, *shape), TF_215)
        tried += 1
    assert tried == 20


def test_a_kernel_of_its_own_for_every_place_is_shown() -> None:
    weights = {"kernel": values(6, 4, 5), "bias": values(6, 5)}
    spec = layer("LocallyConnected1D", "own", weights, filters=5, kernel_size=2)
    module = convert_layer(replace(spec, input_shape=(None, 7, 2)))
    assert "weight=(6, 4, 5), bias=(6, 5), sizes=(2,), strides=(1,)" in repr(module)
