"""Layers that seldom stand beside sequence models: what is refused, what no file of Keras has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from specs import B, T, chain, functional, layer, values

from keras2torch_birnn.conversion import build
from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.inputs import draw_inputs
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import SCHEMA, ShapeError
from keras2torch_birnn.shapes import infer_model
from keras2torch_birnn.spec import Call, LayerSpec, ModelSpec, Structure, TensorRef

KERAS_2, TF_215, KERAS_3 = "2.2.4", "2.15.0", "3.15.1"


def model_of(root: LayerSpec, version: str = KERAS_3) -> ModelSpec:
    problems: list[K2TError] = []
    root = infer_model(root, problems)
    assert not problems, problems
    return ModelSpec(root, generation_of(version))


def agree(spec: ModelSpec, *inputs: Any) -> None:
    """Torch and the reference give the same in float64."""
    wanted = compute(spec, inputs).outputs
    with torch.no_grad():
        found = build(spec, dtype="float64")(*map(torch.from_numpy, inputs))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


# ---- options of preprocessing, PReLU, dropout, Concatenate -------------------------------------


def weighed(mode: str, ids: tuple[int | None, ...], weights: tuple[int | None, ...]) -> LayerSpec:
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
    infer_model(weighed(mode, ids, weights), problems)
    with pytest.raises(K2TError, match=match):
        raise problems[0]


def test_ids_beside_their_weights_are_drawn_as_ids() -> None:
    spec = model_of(weighed("count", (None, 50), (None, 50)))
    ids, weights = draw_inputs(spec, steps=7, seed=0)
    assert set(np.unique(ids)) == set(range(5))
    assert weights.dtype == np.float32
    agree(spec, ids, weights.astype(np.float64))


def test_a_tensor_that_a_call_does_not_know_is_called_a_tensor() -> None:
    """Not a line of Python."""
    nodes: dict[str, Structure] = {"own": [[["x", 0, 0, {"extra": ["w", 0, 0]}]]], "x": [], "w": []}
    layers = [
        {"class_name": name, "name": key, "config": config, "inbound_nodes": nodes[key]}
        for key, name, config in (
            ("x", "InputLayer", {"batch_input_shape": [None, 7]}),
            ("w", "InputLayer", {"batch_input_shape": [None, 7]}),
            ("own", "CategoryEncoding", {"num_tokens": 5}),
        )
    ]
    ends = {"input_layers": [["x", 0, 0], ["w", 0, 0]], "output_layers": [["own", 0, 0]]}
    parsing = Parsing(generation_of(TF_215))
    model = {"class_name": "Functional", "config": {"name": "m", "layers": layers, **ends}}
    parse_architecture(model, parsing)
    (problem,) = parsing.problems
    assert "CategoryEncoding called with extra=a tensor: unknown" in str(problem)


def test_shared_axes_below_one_count_as_keras_counts_them() -> None:
    """It takes 1 away first: 0 is the last axis, -1 the last but one."""
    for axes, expected in (([-1], (1, 3)), ([0], (7, 1)), ([1], (1, 3)), ([2, 1], (1, 1))):
        weights = SCHEMA["PReLU"].weights({"shared_axes": axes}, (None, 7, 3))
        assert weights["alpha"] == expected


def test_rows_are_concatenated_and_no_other_layer_merges_them() -> None:
    shapes = ((None, 7, 3), (None, 7, 3))
    assert SCHEMA["Concatenate"].output({"axis": 0}, shapes) == (None, 7, 3)
    assert SCHEMA["Concatenate"].output({"axis": -2}, ((2, 7), (3, 7))) == (5, 7)
    for axis in (3, -4):
        with pytest.raises(ShapeError, match=f"axis {axis} of a tensor of 3 dimensions"):
            SCHEMA["Concatenate"].output({"axis": axis}, shapes)
    with pytest.raises(ShapeError, match="axis 0 of a tensor of 3 dimensions"):
        SCHEMA["Dot"].output({"axes": (0, 1), "highest_rank": 32}, shapes)


def test_alpha_dropout_of_a_shape_drops_whole_steps_in_training() -> None:
    module = convert_layer(layer("AlphaDropout", rate=0.3, noise_shape=(None, 64, 1)))
    x = torch.randn(32, 64, 7)
    assert torch.equal(module.eval()(x), x)
    torch.manual_seed(0)
    y = module.train()(x)
    dropped = (y - y[..., :1]).abs().amax(dim=-1) < 1e-6
    assert 0.2 < dropped.float().mean().item() < 0.4
    assert y.mean().abs() < 0.1
    assert (y.std() - 1).abs() < 0.1
    assert "noise_shape=(None, 64, 1)" in repr(module)


def test_dropout_is_shown_with_its_shape() -> None:
    module = convert_layer(layer("Dropout", rate=0.3, noise_shape=(None, 1, 3))).train()
    y = module(torch.ones(5, 7, 3))
    assert torch.equal(y, y[:, :1].expand_as(y))


def test_lists_of_a_rescaling_are_shown_as_their_shapes() -> None:
    one = layer("Rescaling", "own", scale=[1.0, 2.0], offset=0.5, passes_mask=True)
    assert "scale=(2,), offset=0.5" in repr(convert_layer(one))
    agree(model_of(chain(one, shape=(None, T, 2))), values(B, T, 2))
