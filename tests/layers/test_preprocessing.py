"""CategoryEncoding and Rescaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from model_configs import entry, listed, parsed, source
from spec_parity import KERAS_3, STEPS, TF_215, agree, model_of, parse
from specs import B, T, chain, functional, layer, values

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import Call, LayerSpec, ModelSpec, TensorRef


@pytest.mark.parametrize(("version", "passes"), [(TF_215, False), (KERAS_3, True), ("3.0.5", True)])
@pytest.mark.parametrize("class_name", ["Identity", "Rescaling", "Normalization"])
def test_masks_pass_preprocessing_in_keras_3_only(
    class_name: str, version: str, passes: bool
) -> None:
    spec, problems = parse(class_name, {"scale": 2.0} if class_name == "Rescaling" else {}, STEPS,
                            version)  # fmt: skip
    assert not problems
    assert spec.semantics["passes_mask"] is passes


def test_category_encoding_is_drawn_ids_of_its_tokens() -> None:
    spec = ModelSpec(
        chain(layer("CategoryEncoding", num_tokens=3), shape=(None, 50)), generation_of(KERAS_3)
    )
    (drawn,) = draw_inputs(spec, steps=7, seed=0)
    assert drawn.dtype == np.int32
    assert set(np.unique(drawn)) == {0, 1, 2}


# ---- CategoryEncoding with weights, Rescaling ----------------------------------------------------


def weighted_ids(
    mode: str, ids: tuple[int | None, ...], weights: tuple[int | None, ...]
) -> LayerSpec:
    """Ids and what each of them counts, in a model."""
    one = layer("CategoryEncoding", "own", num_tokens=5, output_mode=mode)
    call = Call("own", 0, (TensorRef("x"), TensorRef("w")))
    first = [layer("InputLayer", "x", shape=ids), layer("InputLayer", "w", shape=weights)]
    return functional([*first, one], [call], (TensorRef("x"), TensorRef("w")), TensorRef("own"))


@pytest.mark.parametrize(
    ("mode", "ids", "weights", "match"),
    [
        ("multi_hot", (None, 7), (None, 7), "count_weights with output_mode 'multi_hot'"),
        ("count", (None, 7), (None, 3), r"count_weights \[None, 3\] for ids \[None, 7\]"),
        ("count", (None, 7), (None, 7, 1), r"count_weights \[None, 7, 1\] for ids"),
        ("count", (None, 7, 2), (None, 7, 2), "an input of 2 dimensions is expected"),
    ],
)
def test_weights_that_do_not_fit_their_ids_are_refused(
    mode: str, ids: Any, weights: Any, match: str
) -> None:
    problems: list[K2TError] = []
    infer_model(weighted_ids(mode, ids, weights), problems)
    with pytest.raises(K2TError, match=match):
        raise problems[0]


def test_ids_beside_their_weights_are_drawn_as_ids() -> None:
    spec = model_of(weighted_ids("count", (None, 50), (None, 50)))
    ids, weights = draw_inputs(spec, steps=7, seed=0)
    assert set(np.unique(ids)) == set(range(5))
    assert weights.dtype == np.float32
    agree(spec, ids, weights.astype(np.float64))


def test_a_tensor_that_a_call_does_not_know_is_called_a_tensor() -> None:
    """Not a line of Python."""
    node = listed("x", extra=["w", 0, 0])
    own = entry("CategoryEncoding", "own", [node], num_tokens=5)
    _, parsing = parsed(TF_215, source("x", 7), source("w", 7), own)
    (problem,) = parsing.problems
    assert "CategoryEncoding called with extra=a tensor: unknown" in str(problem)


def test_lists_of_a_rescaling_are_shown_as_their_shapes() -> None:
    one = layer("Rescaling", "own", scale=[1.0, 2.0], offset=0.5, passes_mask=True)
    assert "scale=(2,), offset=0.5" in repr(convert_layer(one))
    agree(model_of(chain(one, shape=(None, T, 2))), values(B, T, 2))
