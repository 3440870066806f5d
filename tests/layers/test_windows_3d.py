"""Convolution, pooling and padding over three axes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from spec_parity import agree_alone
from specs import B, layer

from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.schema import SCHEMA, BadOptionError, ShapeError


@pytest.mark.parametrize("class_name", ["Conv3D", "Conv3DTranspose", "MaxPooling3D",
                                        "AveragePooling3D"])  # fmt: skip
def test_every_window_over_three_axes_agrees_with_the_reference(class_name: str) -> None:
    key = "pool_size" if "Pooling" in class_name else "kernel_size"
    for size, stride, padding, form in itertools.product(
        (1, 2, 3), (1, 2), ("valid", "same"), ("channels_last", "channels_first")
    ):
        options: dict[str, Any] = {key: (size, 2, 3), "strides": (stride, 1, 2)}
        if key == "kernel_size":
            options |= {"filters": 5, "dilation_rate": (1, 2, 1) if stride == 1 else 1}
        if class_name == "Conv3D" and stride == 1:
            options |= {"strides": 1}
        shape = (5, 7, 11, 2) if form == "channels_last" else (2, 5, 7, 11)
        spec = layer(class_name, "own", padding=padding, data_format=form, **options)
        agree_alone(spec, (B, *shape))


@pytest.mark.parametrize(
    ("class_name", "options", "match"),
    [
        ("Conv3D", {"filters": 5, "kernel_size": (2, 3)}, "a list of 3 is expected"),
        ("Conv3D", {"filters": 5, "kernel_size": 2, "padding": "causal"}, "one of 'valid', 'same'"),
        ("ZeroPadding3D", {"padding": [[1, 2], [0, 1]]}, "a list of 3 pairs is expected"),
    ],
)
def test_sizes_of_three_axes_are_three(class_name: str, options: Any, match: str) -> None:
    with pytest.raises(BadOptionError, match=match):
        layer(class_name, "own", **options)


def test_a_window_of_three_axes_needs_five_dimensions() -> None:
    spec = layer("Conv3D", "own", filters=5, kernel_size=2)
    with pytest.raises(ShapeError, match="an input of 5 dimensions is expected"):
        SCHEMA["Conv3D"].output(spec.config, (None, 7, 5, 3))


def test_cubes_of_keras_1_have_the_words_of_keras_2() -> None:
    config = {"nb_filter": 5, "kernel_dim1": 2, "kernel_dim2": 3, "kernel_dim3": 1}
    entry = {"class_name": "Convolution3D", "config": {**config, "dim_ordering": "tf"}}
    assert keras1.modernize(entry) == {
        "class_name": "Conv3D",
        "config": {"filters": 5, "kernel_size": [2, 3, 1], "data_format": "channels_last"},
    }
