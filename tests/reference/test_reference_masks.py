"""The reference of masks that no file of Keras shows, and the names of what it computed.

That masks go where they go in Keras: ``parity/test_fixtures.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference_runs import run
from specs import (
    KERAS2,
    KERAS3,
    TF_KERAS,
    H,
    chain,
    functional,
    layer,
    rnn,
    values,
)

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.spec import (
    Call,
    LayerSpec,
    TensorRef,
)

# ---- masks through layers ----------------------------------------------------------------------

IDS = np.array([[3, 1, 0, 2, 0], [0, 0, 0, 0, 0], [4, 4, 1, 2, 3]])


def embedding(**config: Any) -> LayerSpec:
    table = np.arange(12.0).reshape(6, 2) - 3
    return layer("Embedding", "emb", {"embeddings": table}, input_dim=6, output_dim=2, **config)


def test_embedding_cuts_fractions_but_masks_before_the_cut() -> None:
    trace = run(chain(embedding(mask_zero=True)), np.array([[0.5, 0.0, 1.9]]))
    np.testing.assert_array_equal(trace.outputs[0][0], [[-3, -2], [-3, -2], [-1, 0]])
    np.testing.assert_array_equal(trace.masks["emb"], [[True, False, True]])


def test_embedding_refuses_ids_out_of_range() -> None:
    with pytest.raises(ValueError, match="layer emb: ids from 0 on are expected, found -1"):
        run(chain(embedding()), np.array([[-1]]))
    with pytest.raises(IndexError, match="out of bounds"):
        run(chain(embedding()), np.array([[6]]))


def test_concatenation_refuses_a_mask_of_too_few_axes() -> None:
    """(B, T) on (B, T, 3, F): one Keras does there what another does not."""
    inner = layer("RepeatVector", n=3)
    rows = layer("TimeDistributed", "rows", layer=inner, masking="input")
    both = layer("Concatenate", "both", axis=-1, masking="all")
    calls = [
        Call("emb", 0, (TensorRef("x"),)),
        Call("rows", 0, (TensorRef("emb"),)),
        Call("both", 0, ((TensorRef("rows"), TensorRef("rows")),)),
    ]
    specs = [layer("InputLayer", "x"), embedding(mask_zero=True), rows, both]
    root = functional(specs, calls, (TensorRef("x"),), TensorRef("both"))
    with pytest.raises(UnsupportedOptionError, match="both: a mask of 2 axes on a tensor of 4 is"):
        run(root, IDS)


def test_masking_compares_in_float32_and_zeroes() -> None:
    x = np.array([[[0.1, 0.1], [0.1, 2.0]]], dtype=np.float32)
    trace = run(chain(layer("Masking", mask_value=0.1)), x)
    np.testing.assert_array_equal(trace.masks["Masking"], [[False, True]])
    np.testing.assert_array_equal(trace.outputs[0][0, 0], [0, 0])
    assert trace.outputs[0][0, 1, 1] == 2


@pytest.mark.parametrize(
    ("version", "passes"), [("2.2.4-tf", False), ("2.4.0", False), ("2.15.0", True)]
)
def test_relu_passes_the_mask_only_in_newer_tf_keras(version: str, passes: bool) -> None:
    root = chain(embedding(mask_zero=True), layer("ReLU"))
    trace = run(root, IDS, generation=replace(TF_KERAS, version=version))
    assert (trace.masks["ReLU"] is not None) is passes


def test_softmax_uses_its_mask_from_tf_keras_2_4_on() -> None:
    """A (B, T) mask on (B, T, C) values fits only where T = C and B is 1 or T: as Keras."""
    x, ids = values(1, 3, 3), np.array([[1, 0, 2]])
    specs = [
        layer("InputLayer", "x"),
        layer("InputLayer", "m", dtype="bool"),
        layer("Softmax", "soft"),
    ]
    call = Call("soft", 0, (TensorRef("x"),), {"mask": TensorRef("m")})
    root = functional(specs, [call], (TensorRef("x"), TensorRef("m")), TensorRef("soft"))
    e = np.exp(x)
    plain, masked = e / e.sum(axis=-1, keepdims=True), e * (ids != 0)
    masked = masked / masked.sum(axis=-1, keepdims=True)
    old = replace(TF_KERAS, version="2.2.4-tf")
    for generation, expected in (
        (KERAS2, plain),
        (old, plain),
        (TF_KERAS, masked),
        (KERAS3, masked),
    ):
        (found,) = run(root, x, ids != 0, generation=generation).outputs
        np.testing.assert_allclose(found, expected)
    with pytest.raises(ValueError, match=r"a mask of shape \(3, 1, 3\) does not fit values"):
        run(root, x, np.ones((3, 1, 3)))


# ---- names -------------------------------------------------------------------------------------

WORDS = np.array([[[1, 2, 0], [0, 0, 0]], [[3, 0, 4], [5, 5, 5]]])  # (B, T, words), 0 is padding


def test_the_trace_names_layers_inside_wrappers_and_second_calls() -> None:
    inner = chain(embedding(mask_zero=True), rnn("GRU", name="words"), name="inner")
    root = chain(layer("TimeDistributed", "td", layer=inner), rnn("GRU", 3, H, name="text"))
    trace = run(root, WORDS)
    assert set(trace.layers) == {
        "chain_input", "td/inner/inner_input", "td/inner/emb", "td/inner/words", "td", "text"
    }  # fmt: skip
    assert trace.layers["td/inner/emb"].shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(trace.masks["td/inner/emb"], WORDS != 0)
    np.testing.assert_array_equal(trace.layers["td"], trace.layers["td/inner/words"])
    twice = chain(embedding(), rnn("GRU", name="g"), name="twice")
    specs = [layer("InputLayer", "a"), layer("InputLayer", "b"), twice]
    calls = [Call("twice", i, (TensorRef(name),)) for i, name in enumerate("ab")]
    refs = (TensorRef("a"), TensorRef("b"))
    outputs = (TensorRef("twice", 1), TensorRef("twice"))
    both = run(functional(specs, calls, refs, outputs), IDS, IDS[::-1])
    assert {"twice/g", "twice#1/g", "twice", "twice#1"} <= set(both.layers)
    np.testing.assert_array_equal(both.outputs[0], both.outputs[1][::-1])
