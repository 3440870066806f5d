"""Shapes that attention takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from spec_parity import model_of
from specs import B, functional, layer, values

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.spec import Call, TensorRef

PLAIN: list[tuple[str, dict[str, Any]]] = [("Attention", {}), ("AdditiveAttention", {})]


HEADS: list[tuple[str, dict[str, Any]]] = [
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3, "output_shape": None})
]


@pytest.mark.parametrize(
    ("layers", "shapes", "match"),
    [
        (PLAIN, [(None, 3), (None, 3)], "3 dimensions at least are expected"),
        (PLAIN, [(None, 2, 7, 3), (None, 7, 3)], "differ in their number of dimensions"),
        (PLAIN, [(None, 2, 7, 3), (None, 5, 7, 3)], "axis 1 is not attended over, but its sizes"),
        (PLAIN, [*[(None, 2, 7, 3)] * 2, (None, 5, 7, 3)], "axis 1 is not attended over"),
        (HEADS, [(None, 3), (None, 3)], "3 dimensions at least"),
        (HEADS, [(None, 2, 5, 3), (None, 5, 3)], "differ in their number of dimensions"),
        (HEADS, [(None, 2, 5, 3), (None, 2, 5, 3)], "tensors of 3 dimensions are expected"),
    ],
)
def test_shapes_that_do_not_attend_are_refused(layers: Any, shapes: Any, match: str) -> None:
    for name, config in layers:
        with pytest.raises(ShapeError, match=match):
            SCHEMA[name].output(config, tuple(shapes))


def test_what_stands_between_samples_and_steps_stays_apart() -> None:
    shapes = ((None, 2, 7, 3), (None, 2, 11, 5), (None, None, 11, 3))
    said = {"return_attention_scores": True}
    assert SCHEMA["Attention"].output({}, shapes) == (None, 2, 7, 5)
    assert SCHEMA["Attention"].output(said, shapes) == ((None, 2, 7, 5), (None, 2, 7, 11))
    assert SCHEMA["Attention"].output({}, (None, (None, 2, 11, 5))) == (None, None, None, 5)


@pytest.mark.parametrize("class_name", ["Attention", "AdditiveAttention"])
def test_a_mask_into_attention_of_four_dimensions_is_refused(class_name: str) -> None:
    """tf.keras and Keras 3 do different things with it, and Keras 3 mostly fails."""
    table = {"embeddings": values(11, 3)}
    ids = layer("Embedding", "ids", table, input_dim=11, output_dim=3, mask_zero=True)
    one = layer(class_name, "own", mask_after="query", use_scale=False)
    for shape, refused in (((None, 7), False), ((None, 2, 7), True)):
        first = layer("InputLayer", "x", shape=shape, dtype="int32")
        refs = TensorRef("ids"), TensorRef("ids")
        calls = [Call("ids", 0, (TensorRef("x"),)), Call("own", 0, (refs,))]
        spec = model_of(functional([first, ids, one], calls, (TensorRef("x"),), TensorRef("own")))
        if not refused:
            build(spec)
            continue
        with pytest.raises(K2TError, match=f"a mask into {class_name} of more than 3 dimensions"):
            build(spec)
        with pytest.raises(ValueError, match="of more than 3 dimensions is not known"):
            compute(spec, [np.ones((B, 2, 7), dtype=np.int32)])
