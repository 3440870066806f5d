"""Convolution and pooling over one and two axes: every window against the reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from spec_parity import agree_alone, assert_gives, model_of
from specs import B, chain, layer, with_options

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.shape_inference import infer_model


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["Conv", "DepthwiseConv", "SeparableConv"])
def test_every_window_agrees_with_the_reference(kind: str, rank: int) -> None:
    for size, stride, dilation, padding, form in itertools.product(
        (1, 2, 3), (1, 2), (1, 3), ("valid", "same", "causal"), ("channels_last", "channels_first")
    ):
        if padding == "causal" and (rank, kind) not in ((1, "Conv"), (1, "SeparableConv")):
            continue
        config = {"filters": 5, "depth_multiplier": 2}
        config = {k: v for k, v in config.items() if k in SCHEMA[f"{kind}{rank}D"].options}
        spec = layer(
            f"{kind}{rank}D", kernel_size=(size, 3)[:rank], strides=(stride, 1)[:rank],
            dilation_rate=(dilation, 2)[:rank], padding=padding, data_format=form, **config,
        )  # fmt: skip
        agree_alone(spec, (B, 13, 11, 7)[: rank + 2] if rank == 2 else (B, 13, 7))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["Max", "Average"])
def test_every_pool_agrees_with_the_reference(kind: str, rank: int) -> None:
    for size, stride, padding, form in itertools.product(
        (1, 2, 3, 5), (1, 2), ("valid", "same"), ("channels_last", "channels_first")
    ):
        spec = layer(
            f"{kind}Pooling{rank}D", pool_size=(size, 3)[:rank], strides=(stride, 1)[:rank],
            padding=padding, data_format=form,
        )  # fmt: skip
        agree_alone(spec, (B, 13, 11, 7)[: rank + 2] if rank == 2 else (B, 13, 7))


@pytest.mark.parametrize("rank", [1, 2])
def test_every_transposed_window_agrees_with_the_reference(rank: int) -> None:
    tried, every = 0, itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (1, 2), ("valid", "same"), (None, 0, 1),
        ("channels_last", "channels_first"),
    )  # fmt: skip
    for size, stride, dilation, padding, extra, form in itertools.islice(every, 0, None, 5):
        spec = layer(
            f"Conv{rank}DTranspose", kernel_size=(size, 2)[:rank], strides=(stride, 3)[:rank],
            dilation_rate=(dilation, 1)[:rank], padding=padding, data_format=form, filters=5,
            output_padding=None if extra is None else (extra, 1)[:rank],
        )  # fmt: skip
        shape = (B, 5, 7, 3) if rank == 2 else (B, 5, 3)
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
