"""Build small models from specs, and compare torch with the reference on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from model_configs import parse_config
from specs import chain, values

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.shape_inference import expected_weights, infer_model
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

KERAS_1, KERAS_2, TF_215, KERAS_3 = "1.2.2", "2.2.4", "2.15.0", "3.15.1"
STEPS, IMAGE = [None, 13, 3], [None, 5, 13, 3]


def sequential_config(
    class_name: str, config: Mapping[str, Any], shape: list[int | None]
) -> dict[str, Any]:
    """Return the config of a Sequential of an input and one layer, as Keras writes it."""
    first = {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": shape}}
    own = {"class_name": class_name, "config": {"name": "own", **config}}
    return {"class_name": "Sequential", "config": {"name": "m", "layers": [first, own]}}


def parse(
    class_name: str,
    config: Mapping[str, Any],
    shape: list[int | None] = STEPS,
    version: str = TF_215,
) -> tuple[LayerSpec, list[K2TError]]:
    """Parse a Sequential of one layer: the layer, and the problems found."""
    root, parsing = parse_config(sequential_config(class_name, config, shape), version)
    assert root.graph is not None
    return root.graph.layer("own"), parsing.problems


def with_random_weights(spec: LayerSpec) -> LayerSpec:
    """Add random weights by the layer's own input shape; an unknown size is 3."""
    weights: dict[str, Any] = {}
    for seed, (name, shape) in enumerate(expected_weights(spec).items()):
        sizes = [3 if size is None else size for size in shape]
        weights[name] = values(*sizes, seed=seed)
        if name == "variance":
            weights[name] = np.abs(weights[name])
    return replace(spec, weights=weights)


def model_of(root: LayerSpec, version: str = KERAS_3) -> ModelSpec:
    """Infer the shapes of a model that has no problems."""
    problems: list[K2TError] = []
    root = infer_model(root, problems)
    assert not problems, problems
    return ModelSpec(root, generation_of(version))


def agree(spec: ModelSpec, *inputs: Any) -> tuple[Array, ...]:
    """Assert that torch and the reference agree in float64; return the outputs."""
    wanted = compute(spec, inputs).outputs
    with torch.no_grad():
        found = build(spec, dtype="float64")(*map(torch.from_numpy, inputs))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    for got, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)
    return wanted


def assert_gives(spec: ModelSpec, inputs: Sequence[Array], expected: Any) -> None:
    """Assert that torch and the reference both give just these numbers."""
    np.testing.assert_array_equal(compute(spec, inputs).outputs[0], expected)
    found = build(spec)(*map(torch.from_numpy, inputs))
    np.testing.assert_array_equal(found.detach().numpy(), expected)


def agree_alone(spec: LayerSpec, shape: tuple[int, ...], version: str = KERAS_3) -> None:
    """Assert that a layer agrees in a model of its own, and that the schema tells its shape.

    shape: of the input, with the rows. Its weights are random.
    """
    sizes = (None, *shape[1:])
    spec = with_random_weights(replace(spec, input_shape=sizes))
    (found,) = agree(model_of(chain(spec, shape=sizes), version), values(*shape))
    output: Any = SCHEMA[spec.class_name].output(spec.config, sizes)
    assert found.shape[1:] == output[1:]
