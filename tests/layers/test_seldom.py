"""Layers that seldom stand beside sequence models: what is refused, what no file of Keras has."""

from __future__ import annotations

import itertools
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from specs import FIXTURES, B, T, chain, fixture, functional, layer, values

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build, flat
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, UnsupportedOptionError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema import SCHEMA, BadOptionError, ShapeError
from keras2torch_birnn.schema.shape_inference import infer_model
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


# ---- EinsumDense -------------------------------------------------------------------------------


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
        ("abc,cde->abd", "letters of kernel and output are expected to stand elsewhere"),
        ("abc,cd->abe", "letters of kernel and output are expected to stand elsewhere"),
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


def einsum(equation: str, output_shape: Any, bias_axes: str | None = None) -> LayerSpec:
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
    config = einsum(equation, output_shape, bias_axes).config
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
    spec = einsum(equation, output_shape, bias_axes)
    found = SCHEMA["EinsumDense"].weights(spec.config, shape)
    assert found == ({"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias})
    assert SCHEMA["EinsumDense"].output(spec.config, shape) == output
    weights = {name: values(*sizes, seed=i) for i, (name, sizes) in enumerate(found.items())}
    sizes = [T if size is None else size for size in shape[1:]]
    agree(model_of(chain(replace(spec, weights=weights), shape=shape)), values(B, *sizes))


def test_without_an_input_shape_an_equation_tells_how_many_axes_there_are() -> None:
    """As in a Sequential that was built by its first call."""
    for equation, axes, kernel, bias in (
        ("abc,cde->abde", "de", 3, 2),
        ("...c,cd->...d", "d", 2, 1),
        ("ab...,bc->ac...", "c", 2, 2),
    ):
        count = len(equation.split(">")[1].replace(".", "")) - (not equation.startswith("."))
        spec = einsum(equation, (5,) * count, axes)
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
        spec = replace(einsum(equation, (7, 5), axes), weights=weights)
        if equation == "abc,dc->abd":
            spec = replace(spec, weights={**weights, "kernel": values(5, 3)})
        module = convert_layer(spec)
        assert isinstance(module, torch.nn.Linear) is plain, equation
        assert repr(module)


# ---- Attention of more than three dimensions ---------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        ([(None, 3), (None, 3)], "3 dimensions at least are expected"),
        ([(None, 2, 7, 3), (None, 7, 3)], "differ in their number of dimensions"),
        ([(None, 2, 7, 3), (None, 5, 7, 3)], "axis 1 is not attended over, but its sizes differ"),
        ([(None, 2, 7, 3), (None, 2, 7, 3), (None, 5, 7, 3)], "axis 1 is not attended over"),
    ],
)
def test_shapes_that_do_not_attend_are_refused(shapes: Any, match: str) -> None:
    for name in ("Attention", "AdditiveAttention"):
        with pytest.raises(ShapeError, match=match):
            SCHEMA[name].output({}, tuple(shapes))


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


# ---- LocallyConnected --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shape", "match"),
    [
        ({}, (None, None, 3), "the number of its steps has to be known"),
        ({}, (None, 7, None), "the number of its channels has to be known"),
        ({}, None, "the shape of its input has to be known"),
        ({}, (None, 7), "an input of 3 dimensions is expected"),
        ({"kernel_size": 15, "padding": "same", "implementation": 2}, (None, 7, 3),
         "a window of 15 over 7 steps"),
        ({"kernel_size": 11}, (None, 7, 3), "a window of 11 does not fit the 7 steps"),
    ],
)  # fmt: skip
def test_windows_of_their_own_that_do_not_fit_are_refused(
    options: Any, shape: Any, match: str
) -> None:
    spec = layer("LocallyConnected1D", **{"filters": 5, "kernel_size": 2, **options})
    with pytest.raises(ShapeError, match=match):
        SCHEMA["LocallyConnected1D"].weights(spec.config, shape)


def test_same_padding_of_the_first_implementation_is_refused() -> None:
    spec = layer("LocallyConnected1D", filters=5, kernel_size=2, padding="same")
    with pytest.raises(ShapeError, match="padding='same' with implementation=1"):
        SCHEMA["LocallyConnected1D"].output(spec.config, (None, 7, 3))
    assert SCHEMA["LocallyConnected1D"].output({**spec.config, "padding": "valid"}, None) is None
    with pytest.raises(BadOptionError, match="one of 1, 2, 3 is expected"):
        SCHEMA["LocallyConnected1D"].options["implementation"].parse(4)


@pytest.mark.parametrize("rank", [1, 2])
def test_every_window_of_its_own_agrees_with_the_reference(rank: int) -> None:
    tried = 0
    for size, stride, mode, padding, form in itertools.product(
        (1, 2, 3, 5, 12), (1, 2, 3), (1, 2, 3), ("valid", "same"),
        ("channels_last", "channels_first"),
    ):  # fmt: skip
        if (mode == 1 and padding == "same") or (size > 11 and padding == "valid"):
            continue
        spec = layer(
            f"LocallyConnected{rank}D", "own", filters=5, kernel_size=(size, 2)[:rank],
            strides=(stride, 1)[:rank], padding=padding, data_format=form, implementation=mode,
        )  # fmt: skip
        between = (11, 3)[:rank]
        shape = (*between, 2) if form == "channels_last" else (2, *between)
        expected = SCHEMA[spec.class_name].weights(spec.config, (None, *shape))
        weights = {name: values(*sizes, seed=i) for i, (name, sizes) in enumerate(expected.items())}
        spec = replace(spec, weights=weights)
        agree(model_of(chain(spec, shape=(None, *shape)), TF_215), values(B, *shape))
        tried += 1
    assert tried == 132


def test_a_kernel_of_its_own_for_every_place_is_shown() -> None:
    weights = {"kernel": values(6, 4, 5), "bias": values(6, 5)}
    spec = layer("LocallyConnected1D", "own", weights, filters=5, kernel_size=2)
    module = convert_layer(replace(spec, input_shape=(None, 7, 2)))
    assert "(6, 4, 5), kernel_size=(2,), stride=(1,), bias=True, activation=linear" in repr(module)


# ---- windows over three axes -------------------------------------------------------------------


def weighted(spec: LayerSpec, shape: tuple[int, ...]) -> LayerSpec:
    expected = SCHEMA[spec.class_name].weights(spec.config, (None, *shape))
    weights = {
        name: values(*[size or 1 for size in sizes], seed=i)
        for i, (name, sizes) in enumerate(expected.items())
    }
    return replace(spec, weights=weights)


@pytest.mark.parametrize("class_name", ["Conv3D", "Conv3DTranspose", "MaxPooling3D",
                                        "AveragePooling3D"])  # fmt: skip
def test_every_window_over_three_axes_agrees_with_the_reference(class_name: str) -> None:
    key = "pool_size" if "Pooling" in class_name else "kernel_size"
    for size, stride, padding, form in itertools.product(
        (1, 2, 3), (1, 2), ("valid", "same"), ("channels_last", "channels_first")
    ):
        options: dict[str, Any] = {key: (size, 2, 3), "strides": (stride, 1, 2)}
        if key == "kernel_size":
            options |= {"filters": 5, "dilation_rate": (1, 2, 1) if stride == 1 else 1}
        if class_name == "Conv3D" and stride == 1:
            options |= {"strides": 1}
        shape = (5, 7, 11, 2) if form == "channels_last" else (2, 5, 7, 11)
        spec = layer(class_name, "own", padding=padding, data_format=form, **options)
        spec = weighted(spec, shape)
        agree(model_of(chain(spec, shape=(None, *shape))), values(B, *shape))
        output = SCHEMA[class_name].output(spec.config, (None, *shape))
        model = build(model_of(chain(spec, shape=(None, *shape))), dtype="float64")
        assert model(torch.from_numpy(values(B, *shape))).shape[1:] == output[1:]


@pytest.mark.parametrize(
    ("class_name", "options", "match"),
    [
        ("Conv3D", {"filters": 5, "kernel_size": (2, 3)}, "a list of 3 is expected"),
        ("Conv3D", {"filters": 5, "kernel_size": 2, "padding": "causal"}, "one of 'valid', 'same'"),
        ("ZeroPadding3D", {"padding": [[1, 2], [0, 1]]}, "a list of 3 pairs is expected"),
    ],
)
def test_sizes_of_three_axes_are_three(class_name: str, options: Any, match: str) -> None:
    with pytest.raises(BadOptionError, match=match):
        layer(class_name, "own", **options)


def test_a_window_of_three_axes_needs_five_dimensions() -> None:
    spec = layer("Conv3D", "own", filters=5, kernel_size=2)
    with pytest.raises(ShapeError, match="an input of 5 dimensions is expected"):
        SCHEMA["Conv3D"].output(spec.config, (None, 7, 5, 3))


def test_cubes_of_keras_1_have_the_words_of_keras_2() -> None:
    config = {"nb_filter": 5, "kernel_dim1": 2, "kernel_dim2": 3, "kernel_dim3": 1}
    entry = {"class_name": "Convolution3D", "config": {**config, "dim_ordering": "th"}}
    assert keras1.modernize(entry) == {
        "class_name": "Conv3D",
        "config": {"filters": 5, "kernel_size": [2, 3, 1], "data_format": "channels_first"},
    }


# ---- Hashing -----------------------------------------------------------------------------------

# ``to_hash_bucket_fast`` and ``to_hash_bucket_strong`` (key [133, -7]) of TensorFlow 2.21 for the
# texts of these numbers and 2^31 - 1 bins.
NUMBERS = (0, -7, 123, -4567, 1234567, -12345678, 10**15 - 1, -(10**15), 10**16, -(10**17),
           2**63 - 1, -(2**63))  # fmt: skip
FAST = (1633463888, 1094273164, 1786308055, 295515267, 2014225347, 557182415, 805459837, 1374815589,
        1630504064, 390971216, 1686013924, 379302079)  # fmt: skip
STRONG = (1607114708, 914337291, 949230436, 644476995, 2050700690, 1552204072, 1976221851,
          1222672802, 68879210, 1129232613, 2090987597, 143652844)  # fmt: skip


def of_numbers(one: LayerSpec, count: int) -> ModelSpec:
    """A model of one layer that takes whole numbers of 64 bits."""
    first = layer("InputLayer", "x", shape=(None, count), dtype="int64")
    call = Call(one.name, 0, (TensorRef("x"),))
    return model_of(functional([first, one], [call], (TensorRef("x"),), TensorRef(one.name)))


@pytest.mark.parametrize(("salt", "expected"), [(None, FAST), ((133, -7), STRONG)])
def test_numbers_of_every_length_hash_as_in_tensorflow(salt: Any, expected: Any) -> None:
    spec = of_numbers(layer("Hashing", num_bins=2**31 - 1, salt=salt), 12)
    x = np.array([NUMBERS])
    np.testing.assert_array_equal(compute(spec, [x]).outputs[0], [expected])
    np.testing.assert_array_equal(build(spec)(torch.from_numpy(x)), [expected])


def test_thousands_of_numbers_hash_alike_in_torch_and_python() -> None:
    """Between zero and all 64 bits, in bins of many counts, with a salt and without."""
    rng = np.random.default_rng(0)
    wide = rng.integers(-(2**63), 2**63 - 1, 3000) >> rng.integers(0, 63, 3000)
    for bins, salt in ((1, None), (2, None), (97, (5, 2**62)), (65537, None), (10**9, (-1, 0))):
        spec = of_numbers(layer("Hashing", num_bins=bins, salt=salt), 3000)
        expected = compute(spec, [wide[np.newaxis]]).outputs[0]
        np.testing.assert_array_equal(build(spec)(torch.from_numpy(wide)[None]), expected)
        assert expected.max() < bins


def test_a_masked_number_has_the_first_bin_to_itself() -> None:
    x = np.array([[5, 0, 7, 5]])
    for bins, expected in ((1, [0, 0, 0, 0]), (2, [0, 1, 1, 0])):
        spec = of_numbers(layer("Hashing", num_bins=bins, mask_value=5), 4)
        np.testing.assert_array_equal(compute(spec, [x]).outputs[0], [expected])
        np.testing.assert_array_equal(build(spec)(torch.from_numpy(x)), [expected])


def test_a_hashing_is_shown_and_drawn_numbers_of_every_length() -> None:
    one = layer("Hashing", "own", num_bins=7, salt=(1, 2), mask_value=0, output_mode="count")
    assert "7, mask_value=0, SipHash, salt=(1, 2), count" in repr(convert_layer(one))
    plain = layer("Hashing", "own", num_bins=7)
    assert "FarmHash64" in repr(convert_layer(plain))
    assert not convert_layer(plain).state_dict()
    (drawn,) = draw_inputs(of_numbers(plain, 200), steps=7, seed=0)
    assert drawn.dtype == np.int32
    assert drawn.max() > 10**6


def test_several_tensors_are_no_input_of_a_hashing() -> None:
    """tf.keras 2.4 crosses them."""
    for name, options in (
        ("Hashing", {"num_bins": 3}),
        ("Discretization", {"bin_boundaries": [0]}),
    ):
        with pytest.raises(ShapeError, match="one tensor is expected, found several"):
            SCHEMA[name].output(layer(name, **options).config, ((None, 3), (None, 3)))


# ---- IntegerLookup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3, 0, 0, 0]),
        ({"mask_token": 0}, [2, 3, 4, 1, 0, 1]),
        ({"mask_token": 0, "num_oov_indices": 3}, [4, 5, 6, 2, 0, 2]),
        ({"num_oov_indices": 0}, [0, 1, 2, -1, -1, -1]),
        ({"vocabulary": [0, -1, 5, 7, 2], "mask_token": 0}, [2, 3, 4, 1, 0, 1]),
        ({"vocabulary": [-1, 5, 7, 2]}, [1, 2, 3, 0, 0, 0]),
        ({"vocabulary": [4, 5, 7, 2], "oov_token": None}, [2, 3, 4, 0, 0, 1]),
    ],
)
def test_numbers_have_the_place_that_keras_gives_them(options: Any, expected: Any) -> None:
    """5, 7 and 2 are in the list; -2, 0 and 4 mostly not."""
    one = layer("IntegerLookup", "own", **{"vocabulary": [5, 7, 2], **options})
    if "oov_token" in options:
        one = replace(one, config={**one.config, "oov_token": None})
    spec = of_numbers(one, 6)
    x = np.array([[5, 7, 2, -2, 0, 4]])
    np.testing.assert_array_equal(compute(spec, [x]).outputs[0], [expected])
    np.testing.assert_array_equal(build(spec)(torch.from_numpy(x)), [expected])


def test_a_list_of_numbers_is_shown_and_its_numbers_are_drawn() -> None:
    one = layer("IntegerLookup", "own", vocabulary=[500, 7, 20000], num_oov_indices=2)
    assert "3 numbers, num_oov_indices=2, mask_token=None, int" in repr(convert_layer(one))
    (drawn,) = draw_inputs(of_numbers(one, 99), steps=7, seed=0)
    assert set(np.unique(drawn)) == {7, 500, 20000, 20001}
    agree(of_numbers(replace(one, config={**one.config, "output_mode": "count"}), 99), drawn)


# ---- OUT ---------------------------------------------------------------------------------------

SEVERAL = (
    "tf.keras-2.15.0/local_2_same.keras",  # Keras holds many more numbers than count
    "tf.keras-2.15.0/local2_3_valid.h5",
    "tf.keras-2.15.0/einsum.h5",
    "keras-3.15.1/lookup.keras",
    "keras-3.15.1/hashing.keras",
    "keras-3.15.1/rescaling_array.keras",
    "keras-3.15.1/dropout_noise.h5",
)


@pytest.mark.parametrize("file", SEVERAL)
def test_a_model_comes_back_from_its_file(file: str, tmp_path: Path) -> None:
    model = k2t.convert(FIXTURES / file)
    for name in ("out.pt", "out.safetensors"):
        k2t.save(model, tmp_path / name)
        again = k2t.load(tmp_path / name)
        assert str(again.code) == str(model.code)
    assert k2t.verify(FIXTURES / file, tmp_path / "out.pt", devices=["cpu"], against="reference").ok


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('"kernel_size": [3]', '"kernel_size": [34]', "values declared"),
        ('"input_shape": [null, 17, 3]', '"input_shape": [null, "a", 3]', "its shapes"),
        ('"input_shape": [null, 17, 3]', '"input_shape": [null, 1, 3]', "its shapes"),
    ],
)
def test_a_spec_with_more_windows_than_tensors_is_refused(
    old: str, new: str, match: str, tmp_path: Path
) -> None:
    path = tmp_path / "out.pt"
    k2t.save(k2t.convert(FIXTURES / SEVERAL[0]), path)
    content = torch.load(path, weights_only=True)
    assert old in content["spec"]
    torch.save({**content, "spec": content["spec"].replace(old, new)}, path)
    with pytest.raises(K2TError, match=match):
        k2t.load(path)


# ---- what adapt() found ------------------------------------------------------------------------

ADAPTED = FIXTURES / "keras-3.15.1" / "lookup_adapted.keras"
TEXT = "assets/layers/integer_lookup/vocabulary.txt"


def with_text(path: Path, text: str | None) -> Path:
    """The archive with another text in one of its vocabularies, or without it."""
    with zipfile.ZipFile(ADAPTED) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != TEXT:
                new.writestr(name, old.read(name))
            elif text is not None:
                new.writestr(name, text)
    return path


def test_a_vocabulary_of_the_archive_is_taken_from_its_place(tmp_path: Path) -> None:
    """Later Keras ends the text with a line that is empty; special tokens may be left out."""
    for text, expected in (("0\n-1\n5\n7\n", (0, -1, 5, 7)), ("5\n7\n-2", (5, 7, -2))):
        root = read_model(with_text(tmp_path / "m.keras", text)).root
        assert root.graph is not None
        found = {layer.name: layer.config.get("vocabulary") for layer in root.graph.layers}
        assert found["integer_lookup"] == expected
        assert found["integer_lookup_1"] == (-1, -1, 16, 11, 4)


def test_a_lookup_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"what adapt\(\) found is not in this file"):
        read_model(with_text(tmp_path / "m.keras", None))


@pytest.mark.parametrize("text", ["", "\n", "5\nseven", "5\n1.5", f"{2**63}", "5 7", "+5", "5\r\n"])
def test_a_vocabulary_that_holds_no_numbers_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="where whole numbers of 64 bits are expected"):
        read_model(with_text(tmp_path / "m.keras", text))


@pytest.mark.parametrize("file", SEVERAL)
def test_a_model_exports_with_any_number_of_rows(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    inputs = tuple(map(torch.from_numpy, case.inputs[0]))
    rows = torch.export.Dim("rows", min=2, max=64)
    free = tuple({0: rows} for _ in inputs)
    exported = torch.export.export(model, inputs, dynamic_shapes=free).module()
    twice = flat(exported(*(torch.cat([x, x]) for x in inputs)))
    for found, wanted in zip(twice, case.outputs[0], strict=True):
        expected = np.concatenate([wanted, wanted])
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=1e-4)
