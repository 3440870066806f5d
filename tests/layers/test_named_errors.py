"""Errors of a call: whatever fails, the message begins with the path of the Keras layer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from fixture_files import FIXTURES
from spec_parity import model_of as spec_of
from spec_parity import with_random_weights
from specs import bi, chain, layer, rnn, values

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.core import differs
from keras2torch_birnn.spec import LayerSpec, Shape

WORDS = layer("Embedding", "words", {"embeddings": values(13, 5)}, input_dim=13, output_dim=5)
# Layer, the shape of its input, what is given to it, how the error begins.
FAILING: Mapping[str, tuple[LayerSpec, Shape, torch.Tensor, str]] = {
    "a window": (
        layer("MaxPooling1D", "peaks", pool_size=(5,)),
        (None, 7), torch.zeros(2, 3, 7), "inner/peaks: ",
    ),
    "a window of channels first": (
        layer("AveragePooling1D", "means", pool_size=(3,), data_format="channels_first"),
        (7, None), torch.zeros(2, 7, 2), "inner/means: ",
    ),
    "too few channels": (
        layer("Conv1D", "far", filters=5, kernel_size=(3,)),
        (None, 7), torch.zeros(2, 11, 3), "inner/far: .*to have 7 channels",
    ),
    "a step before the module": (
        layer("BatchNormalization", "norm"),
        (None, 7), torch.zeros(()), "inner/norm: ",
    ),
    "a recurrent layer": (
        bi(rnn("LSTM"), rnn("LSTM", seed=1)),
        (None, 2), torch.zeros(2, 11, 3), "inner/bi: ",
    ),
    "an id": (
        WORDS,
        (None,), torch.tensor([[3, 12, 13]]), "inner/words: ids from 0 to 12 .*, found 13; look",
    ),
    "a negative id": (
        WORDS,
        (None,), torch.tensor([[3, -1, 14]]), "inner/words: ids from 0 to 12 .*, found -1;",
    ),
    "an id in steps": (
        layer("TimeDistributed", "each", layer=WORDS, masking="inner"),
        (None, 3), torch.full((2, 5, 3), 13), "inner/each: ids from 0 to 12 .*, found 13;",
    ),
}  # fmt: skip


def model_of(spec: LayerSpec, shape: Shape) -> Any:
    """The layer in a nested model, whose path the error has to name."""
    spec = with_random_weights(replace(spec, input_shape=(None, *shape)))
    inner = chain(spec, name="inner", shape=(None, *shape))
    return build(spec_of(chain(inner, shape=(None, *shape))))


@pytest.mark.parametrize(
    "prepare",
    [lambda m: m, copy.deepcopy, k2t.freeze, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["as it is", "copied", "frozen", "pickled"],
)
@pytest.mark.parametrize(("spec", "shape", "given", "words"), FAILING.values(), ids=FAILING)
def test_an_error_names_its_layer(
    spec: LayerSpec,
    shape: Shape,
    given: torch.Tensor,
    words: str,
    prepare: Callable[[Any], Any],
) -> None:
    with pytest.raises((RuntimeError, IndexError, k2t.K2TError), match=f"^{words}"):
        prepare(model_of(spec, shape))(given)


def test_an_error_in_a_mask_names_the_layer_that_makes_it() -> None:
    def fail(x: Any, mask: Any, **constants: Any) -> None:
        raise ArithmeticError("no mask")

    model = build(spec_of(chain(layer("Masking", "gaps"), rnn("LSTM"), shape=(None, None, 2))))
    for node in model.graph.find_nodes(op="call_function", target=differs):
        node.target = fail
    model.recompile()
    with pytest.raises(ArithmeticError, match=r"^gaps: no mask"):
        model(torch.zeros(2, 11, 2))


def test_a_frozen_program_leaves_wrong_ids_to_the_model() -> None:
    model = k2t.convert(FIXTURES / "keras-3.15.1/mask_stack_bi_dense.h5")
    fast, ids = k2t.freeze(model), torch.zeros(2, 7, dtype=torch.int64)
    fast(ids)
    for form in (model, fast):
        with pytest.raises(k2t.K2TError, match=r"^embedding.*: ids from 0 to \d+ are expected"):
            form(ids + 1000)


def test_a_call_with_too_few_inputs_is_no_error_of_a_layer() -> None:
    model = model_of(*FAILING["an id"][:2])
    with pytest.raises(TypeError, match=r"^\w+\(\) missing|forward"):
        model()
