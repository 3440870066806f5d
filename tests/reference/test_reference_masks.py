"""The reference of masks: through layers, TimeDistributed and nested models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference_runs import run
from specs import (
    GENERATIONS,
    KERAS2,
    KERAS3,
    MERGE_MODES,
    TF_KERAS,
    H,
    bi,
    chain,
    functional,
    layer,
    rnn,
    values,
)

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import (
    Call,
    Generation,
    LayerSpec,
    TensorRef,
)

# ---- masks through layers ----------------------------------------------------------------------

IDS = np.array([[3, 1, 0, 2, 0], [0, 0, 0, 0, 0], [4, 4, 1, 2, 3]])


def embedding(**config: Any) -> LayerSpec:
    table = np.arange(12.0).reshape(6, 2) - 3
    return layer("Embedding", "emb", {"embeddings": table}, input_dim=6, output_dim=2, **config)


def test_embedding_looks_rows_up_and_masks_id_zero() -> None:
    trace = run(chain(embedding(mask_zero=True)), IDS.astype(float))
    np.testing.assert_array_equal(trace.outputs[0][0, 0], [3.0, 4.0])
    np.testing.assert_array_equal(trace.masks["emb"], IDS != 0)
    assert run(chain(embedding()), IDS).masks["emb"] is None


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


def test_recurrent_layers_pass_the_mask_with_sequences_only() -> None:
    for sequences in (True, False):
        halves = [rnn("GRU", seed=i, return_sequences=sequences, return_state=True) for i in (1, 2)]
        for merge_mode in MERGE_MODES:
            root = chain(embedding(mask_zero=True), bi(*halves, merge_mode))
            masks = run(root, IDS).masks["bi"]
            heads = 2 if merge_mode is None else 1
            assert len(masks) == heads + 2
            assert all((mask is not None) is sequences for mask in masks[:heads])
            assert all(mask is None for mask in masks[heads:])


def masked_call(generation: Generation, **kwargs: Any) -> Trace:
    """Masked ids, a Bidirectional called with ``kwargs``, an average of what its mask says."""
    half = rnn("GRU", seed=1, return_sequences=True)
    specs = [
        layer("InputLayer", "ids"),
        layer("InputLayer", "m", dtype="bool"),
        layer("InputLayer", "s"),
        embedding(mask_zero=True),
        bi(half, rnn("GRU", seed=2, return_sequences=True)),
        layer("GlobalAveragePooling1D", "average"),
    ]
    calls = [
        Call("emb", 0, (TensorRef("ids"),)),
        Call("bi", 0, (TensorRef("emb"),), kwargs),
        Call("average", 0, (TensorRef("bi"),)),
    ]
    inputs = (TensorRef("ids"), TensorRef("m"), TensorRef("s"))
    root = functional(specs, calls, inputs, TensorRef("average"))
    other = np.ones(IDS.shape, bool)
    other[:, 0] = False
    return run(root, IDS, other, np.zeros((3, H)), generation=generation)


def test_ignore_mask_runs_unmasked_and_passes_the_mask_on() -> None:
    states = {"initial_state": (TensorRef("s"), TensorRef("s"))}
    used = masked_call(KERAS3, **states)
    ignored = masked_call(KERAS3, **states, ignore_mask=True)
    assert np.abs(used.layers["bi"] - ignored.layers["bi"]).max() > 0.01
    assert ignored.layers["bi"][1].all()  # the row of padding alone is computed, not zeroed
    np.testing.assert_array_equal(ignored.masks["bi"], IDS != 0)


def test_a_passed_mask_overrides_and_goes_on_in_newer_keras() -> None:
    for generation in GENERATIONS:
        trace = masked_call(generation, mask=TensorRef("m"))
        assert not trace.layers["bi"][:, 0].any()
        assert trace.layers["bi"][:, 1:].all()
        goes_on = np.ones(IDS.shape, bool)
        goes_on[:, 0] = False
        np.testing.assert_array_equal(
            trace.masks["bi"], IDS != 0 if generation is KERAS2 else goes_on
        )


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


# ---- TimeDistributed and nested models ---------------------------------------------------------

WORDS = np.array([[[1, 2, 0], [0, 0, 0]], [[3, 0, 4], [5, 5, 5]]])  # (B, T, words), 0 is padding


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)
def test_which_mask_goes_through_time_distributed(generation: Generation) -> None:
    """Over masked words: the inner layer gets each step's mask, and then the generations part."""
    inner = rnn("GRU")
    root = chain(embedding(mask_zero=True), layer("TimeDistributed", "td", layer=inner))
    trace = run(root, WORDS, generation=generation)
    mask = trace.masks["td"]
    if generation is KERAS3:
        np.testing.assert_array_equal(mask, WORDS != 0)  # as it came
    else:
        np.testing.assert_array_equal(mask, (WORDS != 0).any(axis=-1))
    step = run(chain(embedding(mask_zero=True), inner), WORDS[:, 0], generation=generation)
    np.testing.assert_array_equal(trace.outputs[0][:, 0], step.outputs[0])


def test_time_distributed_stacks_inner_masks_before_keras_3() -> None:
    root = chain(layer("TimeDistributed", "td", layer=embedding(mask_zero=True)))
    np.testing.assert_array_equal(run(root, WORDS, generation=TF_KERAS).masks["td"], WORDS != 0)
    assert run(root, WORDS, generation=KERAS3).masks["td"] is None


@pytest.mark.parametrize(
    ("version", "shape"), [("2.1.6", (None, 2, 3, 2)), ("2.2.4", (2, 2, 3, 2))]
)
def test_the_mask_passes_by_time_distributed_in_old_keras(version: str, shape: Any) -> None:
    inner = rnn("GRU")
    td = replace(layer("TimeDistributed", "td", layer=inner), input_shape=shape)
    generation = replace(KERAS2, version=version)
    trace = run(chain(embedding(mask_zero=True), td), WORDS, generation=generation)
    np.testing.assert_array_equal(trace.masks["td"], WORDS != 0)
    step = run(chain(embedding(), inner), WORDS[:, 0], generation=generation)
    np.testing.assert_array_equal(trace.outputs[0][:, 0], step.outputs[0])


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


def test_nested_inputs_given_as_a_dict_are_matched_by_name() -> None:
    inner = functional(
        [layer("InputLayer", "p"), layer("InputLayer", "q"), layer("Flatten", "flat")],
        [Call("flat", 0, (TensorRef("q"),))],
        {"p": TensorRef("p"), "q": TensorRef("q")},
        (TensorRef("p"), TensorRef("flat")),
    )
    specs = [layer("InputLayer", "a"), layer("InputLayer", "b"), replace(inner, name="inner")]
    call = Call("inner", 0, ({"q": TensorRef("a"), "p": TensorRef("b")},))
    outputs = (TensorRef("inner", 0, 0), TensorRef("inner", 0, 1))
    root = functional(specs, [call], (TensorRef("a"), TensorRef("b")), outputs)
    a, b = values(2, 3, 5), values(2, 4)
    first, second = run(root, a, b).outputs
    np.testing.assert_array_equal(first, b)
    np.testing.assert_array_equal(second, a.reshape(2, 15))
