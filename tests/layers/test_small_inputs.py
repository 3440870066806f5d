"""Inputs with fewer steps than a window has: the error names the layer and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from spec_parity import model_of as spec_of
from spec_parity import with_random_weights
from specs import chain, layer

from keras2torch_birnn.errors import ArgumentValueError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.spec import LayerSpec, Shape

SMALL: Mapping[str, tuple[LayerSpec, Shape, Shape, str]] = {
    "pooling": (
        layer("MaxPooling1D", "peaks", pool_size=(5,), strides=(2,)),
        (None, 7), (3, 7), "peaks: its window needs at least 5 steps, found 3; give a longer input",
    ),
    "channels first": (
        layer("AveragePooling1D", "means", pool_size=(3,), data_format="channels_first"),
        (7, None), (7, 2), "means: its window needs at least 3 steps, found 2",
    ),
    "a dilated convolution": (
        layer("Conv1D", "far", filters=5, kernel_size=(3,), dilation_rate=(4,)),
        (None, 7), (8, 7), "far: its window needs at least 9 steps, found 8",
    ),
    "a separable convolution": (
        layer("SeparableConv1D", "thin", filters=5, kernel_size=(3,), depth_multiplier=2),
        (None, 7), (2, 7), "thin: its window needs at least 3 steps, found 2",
    ),
    "two axes": (
        layer("Conv2D", "plane", filters=5, kernel_size=(3, 2)),
        (None, None, 7), (2, 11, 7), r"plane: .* sizes of at least \(3, 2\), found \(2, 11\)",
    ),
}  # fmt: skip


def model_of(spec: LayerSpec, shape: Shape) -> Any:
    """The layer in a nested model, whose path the error has to name."""
    spec = with_random_weights(replace(spec, input_shape=(None, *shape)))
    inner = chain(spec, name="inner", shape=(None, *shape))
    return build(spec_of(chain(inner, shape=(None, *shape))))


@pytest.mark.parametrize("how", [torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(("spec", "shape", "given", "words"), SMALL.values(), ids=SMALL)
def test_the_layer_is_named_with_what_it_needs(
    spec: LayerSpec, shape: Shape, given: Shape, words: str, how: type[AbstractContextManager[Any]]
) -> None:
    model = model_of(spec, shape)
    with how(), pytest.raises(ArgumentValueError, match=f"^inner/{words}"):
        model(torch.zeros(2, *(size or 0 for size in given)))


def test_other_errors_of_torch_stay_as_they_are() -> None:
    model = model_of(*SMALL["a dilated convolution"][:2])
    with pytest.raises(RuntimeError, match=r"expected input.* to have 7 channels"):
        model(torch.zeros(2, 11, 3))
