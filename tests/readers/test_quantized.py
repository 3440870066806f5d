"""Files of ``model.quantize("int8")``: what is computed as Keras does, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from specs import fixture, layer, read_entry, values

from keras2torch_birnn.building import build
from keras2torch_birnn.layers.dense import QuantizedDense, QuantizedEinsumDense
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config.policies import read_policy
from keras2torch_birnn.readers.weights.quantized import parse_quantization, source_policy
from keras2torch_birnn.schema import ShapeError, einsum
from keras2torch_birnn.spec import LayerSpec

POLICY: Mapping[str, Any] = {
    "class_name": "QuantizedDTypePolicy",
    "config": {"mode": "int8", "source_name": "float32"},
}
ROUNDING: Mapping[str, Any] = {
    "class_name": "AbsMaxQuantizer",
    "config": {"value_range": [-127, 127], "epsilon": 1e-07, "output_dtype": "int8"},
}


def config(rounding: Any = ROUNDING, mode: str = "int8") -> dict[str, Any]:
    policy = {**POLICY, "config": {"mode": mode, "source_name": "float32"}}
    inner = {"weight_quantizer": None, "activation_quantizer": rounding}
    return {
        "dtype": policy,
        "quantization_config": {"class_name": "Int8QuantizationConfig", "config": inner},
    }


def quantized_dense(units: int = 5, features: int = 7) -> LayerSpec:
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.integers(-127, 128, (features, units)).astype(np.float64),
        "bias": rng.normal(size=units),
        "kernel_scale": rng.uniform(20, 200, units),
    }
    return layer("Dense", "dense", weights, units=units, quantized="inputs and weights")


@pytest.mark.parametrize(
    ("class_name", "given", "meaning"),
    [
        ("Dense", config(), "inputs and weights"),
        ("Dense", {"dtype": POLICY}, "inputs and weights"),
        ("Dense", config(rounding=None), "weights"),
        ("Embedding", config(), "weights"),
        ("EinsumDense", config(), "inputs and weights"),
        ("EinsumDense", config(rounding=None), "weights"),
        ("Dense", {"dtype": "float32"}, None),
        ("LSTM", {}, None),
    ],
)
def test_how_a_layer_is_quantized(
    class_name: str, given: Mapping[str, Any], meaning: str | None
) -> None:
    assert parse_quantization(class_name, given) == (meaning, "")


@pytest.mark.parametrize(
    ("class_name", "given", "words"),
    [
        ("Dense", config(mode="int4"), "quantized weights (int4) of Dense"),
        ("Dense", config(mode="float8"), "quantized weights (float8) of Dense"),
        ("Embedding", config(mode="int4"), "quantized weights (int4) of Embedding"),
        ("Dense", config(mode="gptq/4/128"), "quantized weights (gptq/4/128) of Dense"),
        ("LSTM", config(), "quantized weights (int8) of LSTM"),
        ("Dense", config({"class_name": "Mine", "config": {}}), "inputs quantized by"),
        (
            "Dense",
            config({**ROUNDING, "config": {"value_range": [-8, 7]}}),
            "AbsMaxQuantizer of 8 bits is expected",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    class_name: str, given: Mapping[str, Any], words: str
) -> None:
    meaning, refusal = parse_quantization(class_name, given)
    assert meaning is None
    assert words in refusal
    assert "quantize()" not in refusal  # which the advice of all of them says


@pytest.mark.parametrize(
    ("equation", "output"),
    [("...x,xy->...y", (5,)), ("ab...,bc->ac...", (5,)), ("abc,cd->abcd", (7, 3, 5))],
)
def test_an_equation_that_keras_does_not_quantize_is_refused(
    equation: str, output: tuple[int, ...]
) -> None:
    given = {"equation": equation, "output_shape": output, "bias_axes": None}
    with pytest.raises(ShapeError, match="has no form with int8 weights"):
        einsum.weights({**given, "quantized": "weights"}, (None, 7, 3))


def test_a_quantized_einsum_does_not_learn_and_gradients_ignore_its_rounding() -> None:
    spec = read_entry("keras-3.15.1/quantized_einsum.keras")
    found = [m for m in build(spec).modules() if isinstance(m, QuantizedEinsumDense)]
    assert len(found) == 3
    one = found[0].double()
    assert not (one.weight.requires_grad or one.scale.requires_grad)
    assert "rounds=True" in repr(one)
    x = torch.linspace(-1, 1, 5 * 7 * 14, dtype=torch.float64).reshape(5, 7, 14).requires_grad_()
    one(x).sum().backward()
    rounded, one.rounds = x.grad, False
    again = x.detach().requires_grad_()
    one(again).sum().backward()
    torch.testing.assert_close(rounded, again.grad)


def test_the_policy_below_a_quantized_one_counts() -> None:
    half = {**POLICY, "config": {"mode": "int8", "source_name": "mixed_float16"}}
    assert "mixed_float16" in read_policy(source_policy(half)).note
    assert source_policy("float64") == "float64"


def test_a_quantized_dense_says_so_and_does_not_learn() -> None:
    spec = read_entry("keras-3.15.1/quantized.keras")
    dense = [m for m in build(spec).modules() if isinstance(m, QuantizedDense)]
    assert len(dense) == 2
    for module in dense:
        assert not module.weight.requires_grad
        assert not module.scale.requires_grad
        assert torch.equal(module.weight, module.weight.round())


def test_rounded_inputs_keep_their_largest_number() -> None:
    """One input of a row alone is no approximation: 127 / 127."""
    spec = quantized_dense()
    module = convert_layer(spec)
    x = torch.zeros(3, 7, dtype=torch.float64)
    x[0, 2], x[1, 4] = 5.0, -0.25
    kernel = torch.from_numpy(spec.weights["kernel"] / spec.weights["kernel_scale"])
    wanted = x @ kernel + torch.from_numpy(spec.weights["bias"])
    torch.testing.assert_close(module(x), wanted, atol=1e-6, rtol=1e-6)


def test_gradients_pass_the_rounding_by() -> None:
    """Keras' own gradient: that of the kernel divided by its scale."""
    spec = quantized_dense()
    x = torch.from_numpy(values(3, 7)).requires_grad_()
    module = convert_layer(spec)
    with torch.no_grad():
        calm = module(x)
    y = module(x)
    torch.testing.assert_close(y, calm)
    y.sum().backward()
    kernel = torch.from_numpy(spec.weights["kernel"] / spec.weights["kernel_scale"])
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kernel.sum(dim=1).expand(3, -1))


@pytest.mark.parametrize("kind", ["quantized.h5", "quantized.keras", "quantized.weights.h5"])
def test_every_kind_of_file_holds_whole_kernels(kind: str) -> None:
    spec = fixture(f"keras-3.15.1/{kind}").spec
    embedding = next(x for x in spec.root.walk() if x.class_name == "Embedding")
    assert embedding.semantics["quantized"] == "weights"
    table = embedding.weights["embeddings"]
    assert np.array_equal(table, np.round(table))
    assert table.dtype == np.float32
