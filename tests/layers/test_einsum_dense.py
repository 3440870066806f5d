"""EinsumDense: equations, the shapes they imply, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from spec_parity import agree, model_of
from specs import B, T, chain, layer, values

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.schema import SCHEMA, BadOptionError, ShapeError
from keras2torch_birnn.spec import LayerSpec


@pytest.mark.parametrize(
    ("equation", "match"),
    [
        ("abc,cd", "an equation such as 'abc,cd->abd'"),
        ("abc, cd -> abd", "an equation such as"),
        ("abc,cd->abd...", "three dots are expected on one side"),
        ("...c,cd->d...", "three dots are expected on one side"),
        ("...c...,cd->...d...", "three dots are expected on one side"),
        ("a...,ab->b...", "two letters at least are expected before three dots"),
        ("abb,bc->ac", "no letter is expected twice"),
        ("abc,cde->abd", "letters of kernel and output are expected elsewhere"),
        ("abc,cd->abe", "letters of kernel and output are expected elsewhere"),
        (7, "an equation such as"),
    ],
)
def test_an_equation_that_keras_has_not_is_refused(equation: Any, match: str) -> None:
    with pytest.raises(BadOptionError, match=match):
        SCHEMA["EinsumDense"].options["equation"].parse(equation)


@pytest.mark.parametrize("axes", ["", 3, "a b"])
def test_bias_axes_are_letters(axes: Any) -> None:
    with pytest.raises(BadOptionError, match="letters of the output are expected"):
        SCHEMA["EinsumDense"].options["bias_axes"].parse(axes)


def einsum_dense(equation: str, output_shape: Any, bias_axes: str | None = None) -> LayerSpec:
    options = {"equation": equation, "output_shape": output_shape, "bias_axes": bias_axes}
    return layer("EinsumDense", "own", **options)


@pytest.mark.parametrize(
    ("equation", "output_shape", "bias_axes", "shape", "match"),
    [
        ("abc,cd->abd", (7, 5), None, (None, 7), "equation 'abc,cd->abd' does not fit"),
        ("abc,cd->abd", (7, 5), None, (None, 7, 3, 2), "equation 'abc,cd->abd' does not fit"),
        ("...bc,cd->...bd", (5,), None, (3,), "does not fit"),
        ("abc,cd->abd", (5,), None, (None, 7, 3), r"output_shape \[5\] does not fit"),
        ("abc,cd->bad", (7, 5), None, (None, 7, 3), "moves the samples"),
        ("abc,cd->abd", (2, 5), None, (None, 7, 3), "axis 'b' has 7 and 2 places"),
        ("abc,cd->abd", (7, 5), "de", (None, 7, 3), "bias_axes 'de' are not among 'abd'"),
    ],
)
def test_shapes_that_an_equation_does_not_fit_are_refused(
    equation: str, output_shape: Any, bias_axes: str | None, shape: Any, match: str
) -> None:
    config = einsum_dense(equation, output_shape, bias_axes).config
    with pytest.raises(ShapeError, match=match):
        SCHEMA["EinsumDense"].weights(config, shape)


@pytest.mark.parametrize(
    ("equation", "output_shape", "bias_axes", "shape", "kernel", "bias", "output"),
    [
        ("abc,cd->abd", (None, 5), "d", (None, None, 3), (3, 5), (5,), (None, None, 5)),
        ("abc,cd->ad", (5,), "d", (None, 7, 3), (3, 5), (5,), (None, 5)),
        ("...c,cd->...d", 5, "d", (None, 7, 3), (3, 5), (5,), (None, 7, 5)),
        ("...bc,cd->...bd", (7, 5), "b", (None, 7, 3), (3, 5), (7, 1), (None, 7, 5)),
        ("ab...,bc->ac...", 5, "c", (None, 7, 3, 2), (7, 5), (5, 1, 1), (None, 5, 3, 2)),
        ("abc,cde->abde", (7, 5, 2), "e", (None, 7, 3), (3, 5, 2), (2,), (None, 7, 5, 2)),
        ("abc,dbc->ad", 5, None, (None, 7, 3), (5, 7, 3), None, (None, 5)),
    ],
)
def test_an_equation_tells_all_shapes(
    equation: str, output_shape: Any, bias_axes: str | None, shape: Any, kernel: Any, bias: Any,
    output: Any,
) -> None:  # fmt: skip
    spec = einsum_dense(equation, output_shape, bias_axes)
    found = SCHEMA["EinsumDense"].weights(spec.config, shape)
    assert found == ({"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias})
    assert SCHEMA["EinsumDense"].output(spec.config, shape) == output
    weights = {name: values(*sizes, seed=i) for i, (name, sizes) in enumerate(found.items())}
    sizes = [T if size is None else size for size in shape[1:]]
    agree(model_of(chain(replace(spec, weights=weights), shape=shape)), values(B, *sizes))


def test_without_an_input_shape_an_equation_tells_how_many_axes_there_are() -> None:
    """A Sequential that was built by its first call has none."""
    for equation, axes, kernel, bias in (
        ("abc,cde->abde", "de", 3, 2),
        ("...c,cd->...d", "d", 2, 1),
        ("ab...,bc->ac...", "c", 2, 2),
    ):
        count = len(equation.split(">")[1].replace(".", "")) - (not equation.startswith("."))
        spec = einsum_dense(equation, (5,) * count, axes)
        found = SCHEMA["EinsumDense"].weights(spec.config, None)
        assert found == {"kernel": (None,) * kernel, "bias": found["bias"]}
        assert len(found["bias"]) == bias
        assert SCHEMA["EinsumDense"].output(spec.config, None) is None


def test_an_equation_of_a_dense_is_one() -> None:
    """With torch's own names; any other is not."""
    weights = {"kernel": values(3, 5), "bias": values(5)}
    for equation, axes, plain in (
        ("abc,cd->abd", "d", True),
        ("...c,cd->...d", "d", True),
        ("abc,cd->abd", None, True),
        ("abc,dc->abd", "d", False),
        ("ac...,cd->ad...", "d", False),
        ("abc,cd->adb", "d", False),
        ("abc,cd->abd", "bd", False),
    ):
        spec = replace(einsum_dense(equation, (7, 5), axes), weights=weights)
        if equation == "abc,dc->abd":
            spec = replace(spec, weights={**weights, "kernel": values(5, 3)})
        module = convert_layer(spec)
        assert isinstance(module, torch.nn.Linear) is plain, equation
        assert repr(module)
