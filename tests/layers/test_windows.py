"""Convolution and pooling over one to three axes: every window against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from spec_parity import agree_alone, assert_gives, model_of
from specs import B, chain, layer, with_options

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.schema import SCHEMA, BadOptionError, ShapeError
from keras2torch_birnn.schema.shape_inference import infer_model

KINDS = ("Conv", "DepthwiseConv", "SeparableConv", "MaxPooling", "AveragePooling")
WINDOWS = [name for kind in KINDS for rank in (1, 2, 3) if (name := f"{kind}{rank}D") in SCHEMA]
FORMS = ("channels_last", "channels_first")


@pytest.mark.parametrize("class_name", WINDOWS)
def test_every_window_agrees_with_the_reference(class_name: str) -> None:
    options, rank = SCHEMA[class_name].options, int(class_name[-2])
    causal = class_name in ("Conv1D", "SeparableConv1D")
    paddings = ("valid", "same", "causal") if causal else ("valid", "same")
    dilations = ((1, 1, 1), (1, 2, 1), (3, 2, 1)) if "dilation_rate" in options else (None,)
    sizes = (1, 2, 3) if "dilation_rate" in options else (1, 2, 3, 5)
    counts = {"filters": 5, "depth_multiplier": 2}
    for size, stride, dilation, padding, form in itertools.product(
        sizes, (1, 2), dilations, paddings, FORMS
    ):
        window = {"kernel_size": (size, 3, 2)[:rank], "pool_size": (size, 3, 2)[:rank]}
        strides = (stride, 1, stride)[:rank]
        given: dict[str, Any] = {**counts, **window, "strides": strides, "padding": padding}
        given |= {"dilation_rate": dilation and dilation[:rank], "data_format": form}
        shape = (B, 13, 11, 7, 2)[: rank + 2]
        agree_alone(layer(class_name, **{k: v for k, v in given.items() if k in options}), shape)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_transposed_window_agrees_with_the_reference(rank: int) -> None:
    tried, every = 0, itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (1, 2), ("valid", "same"), (None, 0, 1), FORMS
    )  # fmt: skip
    for size, stride, dilation, padding, extra, form in itertools.islice(every, 0, None, 5):
        spec = layer(
            f"Conv{rank}DTranspose", kernel_size=(size, 2, 3)[:rank],
            strides=(stride, 3, 2)[:rank], dilation_rate=(dilation, 1, 1)[:rank],
            padding=padding, data_format=form, filters=5,
            output_padding=None if extra is None else (extra, 1, 0)[:rank],
        )  # fmt: skip
        shape = (B, 5, 7, 3, 2)[: rank + 2]
        problems: list[K2TError] = []
        infer_model(chain(spec, shape=shape), problems)
        if not problems:
            tried += 1
            agree_alone(spec, shape)
    assert tried > 15


def test_the_steps_of_a_transposed_convolution_by_hand() -> None:
    """Kernel 100 10 1 over 1 2 3, every second step: each input leaves its three digits."""
    kernel = np.array([100.0, 10.0, 1.0]).reshape(3, 1, 1)
    weights = {"kernel": kernel, "bias": np.zeros(1)}
    spec = layer("Conv1DTranspose", weights=weights, filters=1, kernel_size=(3,), strides=(2,))
    x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    for options, expected in (
        ({}, [100, 10, 201, 20, 302, 30, 3]),
        ({"output_padding": (1,)}, [100, 10, 201, 20, 302, 30, 3, 0]),
        ({"padding": "same"}, [100, 10, 201, 20, 302, 30]),  # nothing in front: TensorFlow's SAME
        ({"padding": "same", "output_padding": (0,)}, [10, 201, 20, 302, 30]),
    ):
        model = model_of(chain(with_options(spec, **options), shape=(None, 3, 1)))
        assert_gives(model, [x], np.reshape(expected, (1, -1, 1)))


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
