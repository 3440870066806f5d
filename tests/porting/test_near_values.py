"""Weights in a layout of the port's own: a few wrong values are found wherever they are."""

from __future__ import annotations

import numpy as np
import pytest
from specs import FIXTURES

from keras2torch_birnn.porting.matching import _describe_elements
from keras2torch_birnn.porting.near_values import near_changes
from keras2torch_birnn.porting.right_tensors import Leaf, find_leaves
from keras2torch_birnn.readers import read_model

GRU = FIXTURES / "tf.keras-2.15.0/bi_gru_after_mul_seq.h5"


@pytest.fixture(scope="module")
def leaf() -> Leaf:
    return find_leaves(read_model(GRU))[0]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("recurrent_kernel", "as it is"),
        ("recurrent_kernel", "transposed"),
        ("recurrent_kernel", "gates apart"),
        ("kernel", "gates turned round"),
        ("kernel", "stacked"),
        ("bias", "as it is"),
        ("bias", "joined in one row"),
    ],
)
def test_wrong_values_are_found_in_any_layout(leaf: Leaf, name: str, layout: str) -> None:
    right = np.asarray(leaf.layer.weights[name], np.float64)
    wrong = right.copy()
    wrong[..., -1, -1] += 1  # in the last gate
    units = right.shape[-1] // 3
    tensors = {
        "as it is": lambda w: {"w": w},
        "transposed": lambda w: {"w": w.T},
        "gates apart": lambda w: dict(zip("zrh", np.split(w, 3, axis=-1), strict=True)),
        "gates turned round": lambda w: {"w": np.concatenate(np.split(w, 3, axis=-1)[::-1], -1)},
        "stacked": lambda w: {"w": np.stack([np.zeros_like(w), w])},
        "joined in one row": lambda w: {"w": w.reshape(-1)},
    }[layout]
    (change,) = near_changes(tensors(wrong), [leaf])
    (told,) = change.tensors
    count = units * (right.shape[0] if name != "bias" else 1)
    assert f": 1 of {count} values of the {name.replace('_', ' ')} of " in told
    assert list(near_changes(tensors(right), [leaf])) == []


def test_other_weights_are_not_taken_for_wrong_ones(leaf: Leaf) -> None:
    rng = np.random.default_rng(1)
    other = {name: rng.normal(size=np.shape(w)) for name, w in leaf.layer.weights.items()}
    assert list(near_changes(other, [leaf])) == []


def test_values_in_another_order_are_told_from_other_values() -> None:
    right = np.random.default_rng(3).normal(size=(6, 2, 5))
    order = [0, 2, 4, 1, 3, 5]
    told = {
        "what is along axis 0 is in another order (0, 2, 4, 1, 3, 5 of the right one)": right[
            order
        ],
        "what is along axis 2 is in another order (4, 0, 1, 2, 3 of the right one)": (
            np.roll(right, 1, axis=2)
        ),
        "the file's values in another order (reshaped otherwise?)": (
            np.random.default_rng(5).permutation(right.ravel()).reshape(right.shape)
        ),
        "other values than the file's (not loaded?)": right + 1,
    }
    assert {words: _describe_elements(found, right).words for words, found in told.items()} == {
        words: words for words in told
    }
