"""Layers with one input around sequence models: what is refused, masks, windows of every kind."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from specs import B, chain, layer, values, with_options

from keras2torch_birnn.conversion import build
from keras2torch_birnn.errors import K2TError, UnsupportedOptionError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema import CLASS_NAMES, SCHEMA, BadOptionError
from keras2torch_birnn.schema.options import margins, window
from keras2torch_birnn.schema.shape_inference import expected_weights, infer_model
from keras2torch_birnn.spec import LayerSpec, ModelSpec, Shape

KERAS_1, KERAS_2, TF, K3 = "1.2.2", "2.2.4", "2.15.0", "3.15.1"
STEPS, IMAGE = [None, 13, 3], [None, 5, 13, 3]


def entries(class_name: str, config: Mapping[str, Any], shape: list[int | None]) -> dict[str, Any]:
    """A Sequential of an input and one layer, as Keras writes it."""
    first = {"class_name": "InputLayer", "config": {"name": "x", "batch_input_shape": shape}}
    own = {"class_name": class_name, "config": {"name": "own", **config}}
    return {"class_name": "Sequential", "config": {"name": "m", "layers": [first, own]}}


def parsed(
    class_name: str,
    config: Mapping[str, Any],
    shape: list[int | None] = STEPS,
    version: str = TF,
) -> tuple[LayerSpec, list[K2TError]]:
    parsing = Parsing(generation_of(version))
    root = parse_architecture(entries(class_name, config, shape), parsing)
    if not parsing.problems:
        root = infer_model(root, parsing.problems)
    assert root.graph is not None
    return root.graph.layer("own"), parsing.problems


def with_random_weights(spec: LayerSpec) -> LayerSpec:
    weights: dict[str, Any] = {}
    for seed, (name, shape) in enumerate(expected_weights(spec).items()):
        sizes = [3 if size is None else size for size in shape]
        weights[name] = values(*sizes, seed=seed)
        if name == "variance":
            weights[name] = np.abs(weights[name])
    return replace(spec, weights=weights)


# ---- refusals ----------------------------------------------------------------------------------

CONV = {"filters": 6, "kernel_size": 3}
BOUNDS = {"bin_boundaries": [0.0, 1.0]}
WORDS = {"vocabulary": [5, 7, 2]}
REFUSED: list[tuple[str, Mapping[str, Any], list[int | None], str, str]] = [
    ("Hashing", {"num_bins": 3, "mask_value": ""}, STEPS, TF, "a whole number of 64 bits is"),
    ("Hashing", {"num_bins": 3, "mask_value": 2**63}, STEPS, TF, "a whole number of 64 bits is"),
    ("Hashing", {"num_bins": 3, "salt": [1, 2, 3]}, STEPS, TF, "a whole number or two are"),
    ("Hashing", {"num_bins": 3, "salt": 0xDECAFCAFFE}, STEPS, TF, "TensorFlow up to 2.5 writes"),
    ("Hashing", {"num_bins": 3, "sparse": True}, STEPS, TF, "option sparse=True"),
    ("HashedCrossing", {"num_bins": 3}, STEPS, TF, "HashedCrossing layer hashes pairs"),
    ("SpectralNormalization", {}, STEPS, K3, "SpectralNormalization layer rewrites the kernel"),
    ("StringLookup", {}, STEPS, TF, "StringLookup layer looks up text"),
    ("IntegerLookup", {"vocabulary": []}, STEPS, TF, "a list of whole numbers is expected"),
    ("IntegerLookup", {"vocabulary": [1.5]}, STEPS, TF, "a whole number of 64 bits is expected"),
    ("IntegerLookup", {**WORDS, "output_mode": "tf_idf"}, STEPS, TF, "output_mode='tf_idf'"),
    ("IntegerLookup", {**WORDS, "invert": True}, STEPS, TF, "option invert=True"),
    ("IntegerLookup", {**WORDS, "oov_method": "farmhash"}, STEPS, K3, "oov_method='farmhash'"),
    ("IntegerLookup", {**WORDS, "idf_weights": [1.0]}, STEPS, TF, "option idf_weights="),
    ("IntegerLookup", {**WORDS, "mask_token": 7}, STEPS, TF, "a number twice, or the mask_token"),
    ("IntegerLookup", {"vocabulary": [2, 3, 2]}, STEPS, TF, "vocabulary holds a number twice"),
    (
        "IntegerLookup",
        {**WORDS, "output_mode": "count", "pad_to_max_tokens": True, "max_tokens": 3},
        [None, 7],
        TF,
        "pad_to_max_tokens with fewer max_tokens",
    ),
    ("TextVectorization", {}, STEPS, TF, "TextVectorization layer turns text into ids"),
    ("UpSampling2D", {"size": [2, 2]}, IMAGE, KERAS_1, "does not say where the channels stand"),
    ("Conv2D", {**CONV, "padding": "causal"}, IMAGE, TF, "Conv2D option padding='causal'"),
    ("Conv2D", {**CONV, "kernel_size": [3]}, IMAGE, TF, "a whole number or a list of 2"),
    ("Conv2D", CONV, STEPS, TF, "Conv2D: an input of 4 dimensions is expected"),
    ("Conv2D", {**CONV, "groups": 2}, IMAGE, TF, "groups=2 does not divide the channels"),
    ("SeparableConv1D", {**CONV, "groups": 3}, STEPS, TF, "SeparableConv1D option groups=3"),
    ("DepthwiseConv1D", {"kernel_size": 2, "padding": "causal"}, STEPS, TF, "padding='causal'"),
    ("DepthwiseConv2D", {"kernel_size": 7}, IMAGE, TF, "a window of 7 does not fit the 5 steps"),
    ("Conv1DTranspose", {**CONV, "padding": "causal"}, STEPS, TF, "padding='causal'"),
    (
        "Conv1DTranspose",
        {**CONV, "strides": 2, "output_padding": 2},
        STEPS,
        TF,
        "output_padding 2 is not below the stride 2",
    ),
    (
        "Conv2DTranspose",
        {**CONV, "kernel_size": [3, 4], "strides": 2, "padding": "same", "output_padding": [0, 0]},
        IMAGE,
        TF,
        "output_padding 0 does not fit a window of 4 with stride 2",
    ),
    ("MaxPooling2D", {"pool_size": [2, 7, 1]}, IMAGE, TF, "a whole number or a list of 2"),
    ("Cropping1D", {"cropping": [7, 6]}, STEPS, TF, r"cropping \[7, 6\] leaves nothing of 13"),
    ("Cropping2D", {"cropping": [1, 2, 3]}, IMAGE, TF, "a list of 2 pairs is expected"),
    ("ZeroPadding1D", {"padding": [1, -1]}, STEPS, TF, "a whole number from 0"),
    ("UpSampling2D", {"interpolation": "cubic"}, IMAGE, TF, "interpolation='cubic'"),
    (
        "UpSampling2D",
        {"interpolation": "gaussian", "size": [1, 1000]},
        [None, 2, 1000, 1],
        TF,
        "interpolation of 1000 steps, 1000 times as many",
    ),
    ("RMSNormalization", {"axis": [1]}, STEPS, K3, r"axis \[1\] is not at the end"),
    ("GroupNormalization", {"groups": 2}, STEPS, TF, "groups=2 does not divide 3 channels"),
    ("GroupNormalization", {"axis": 0}, STEPS, TF, "axis 0 holds the samples"),
    ("GroupNormalization", {"groups": 0}, STEPS, TF, "GroupNormalization option groups=0"),
    ("Normalization", {"mean": 1.0}, STEPS, TF, "mean without variance"),
    ("Normalization", {"axis": 3}, STEPS, TF, r"axis \[3\] does not fit an input of 3"),
    ("Normalization", {"mean": ["a"], "variance": [1]}, STEPS, TF, "a number is expected"),
    ("Rescaling", {"scale": [1.0, 2.0]}, STEPS, TF, r"scale of shape \[2\] does not fit"),
    (
        "Rescaling",
        {"scale": 1.0, "offset": [[[[0.5]]]]},
        STEPS,
        TF,
        r"offset of shape \[1, 1, 1, 1\]",
    ),
    ("Rescaling", {"scale": [[1.0], [1.0, 2.0]]}, STEPS, TF, "lists of equal lengths"),
    ("PReLU", {"shared_axes": [3]}, STEPS, TF, "shared_axes 3 of an input of 3 dimensions"),
    ("PReLU", {"shared_axes": [-2]}, STEPS, TF, "shared_axes -2 of an input of 3 dimensions"),
    ("CategoryEncoding", {"num_tokens": 5, "sparse": True}, STEPS, TF, "option sparse=True"),
    ("CategoryEncoding", {"num_tokens": 5}, STEPS, K3, "an input of 2 dimensions is expected"),
    ("Discretization", {"num_bins": 5}, STEPS, TF, "without bin_boundaries"),
    (
        "Discretization",
        {"num_bins": 5, "bin_boundaries": None},
        STEPS,
        TF,
        r"what adapt\(\) found is not in the configuration",
    ),
    ("Discretization", {"bin_boundaries": [1.0, 0.0]}, STEPS, TF, "rising numbers are expected"),
    ("Discretization", {**BOUNDS, "sparse": True}, STEPS, TF, "option sparse=True"),
    (
        "AlphaDropout",
        {"rate": 0.1, "noise_shape": 1},
        STEPS,
        TF,
        "a list of whole numbers and null",
    ),
]


@pytest.mark.parametrize(("class_name", "config", "shape", "version", "message"), REFUSED)
def test_what_cannot_be_computed_exactly_is_refused_by_name(
    class_name: str, config: Mapping[str, Any], shape: list[int | None], version: str, message: str
) -> None:
    _, problems = parsed(class_name, config, shape, version)
    assert len(problems) == 1, problems
    with pytest.raises(K2TError, match=message):
        raise problems[0]


@pytest.mark.parametrize(
    ("mode", "version", "reason"),
    [
        ("bilinear", KERAS_2, ""),
        ("bilinear", "2.2.4-tf", "interpolation='bilinear' of this Keras .* 2.0 their middles"),
        ("bilinear", TF, ""),
        ("bilinear", K3, ""),
        ("bicubic", TF, ""),
        ("bicubic", K3, "interpolation='bicubic' of this Keras .* every backend of Keras 3"),
        ("lanczos5", K3, ""),
    ],
)
def test_interpolation_that_the_file_does_not_tell_is_refused(
    mode: str, version: str, reason: str
) -> None:
    spec, problems = parsed("UpSampling2D", {"interpolation": mode}, IMAGE, version)
    assert not problems
    if reason:
        with pytest.raises(UnsupportedOptionError, match=reason):
            convert_layer(spec)
    else:
        assert convert_layer(spec)


def test_a_mask_into_group_normalization_of_tf_keras_is_refused() -> None:
    table = {"embeddings": values(7, 6)}
    ids = layer("Embedding", weights=table, input_dim=7, output_dim=6, mask_zero=True)
    norm = {"gamma": values(6), "beta": values(6)}
    for masking, version in (("weigh", TF), ("ignore", K3)):
        group = layer("GroupNormalization", weights=norm, groups=3, masking=masking)
        spec = ModelSpec(chain(ids, group), generation_of(version))
        if masking == "ignore":
            build(spec)
        else:
            with pytest.raises(UnsupportedOptionError, match="a mask into a GroupNormalization"):
                build(spec)


def test_keras_1_says_where_the_channels_are() -> None:
    for word, meaning in (("tf", "channels_last"), ("th", "channels_first")):
        config = {"pool_size": [2, 2], "strides": [2, 2], "border_mode": "valid"}
        config["dim_ordering"] = word
        spec, problems = parsed("MaxPooling2D", config, [None, 5, 13, 7], KERAS_1)
        assert not problems
        assert spec.config["data_format"] == meaning


# ---- options -----------------------------------------------------------------------------------


def test_windows_and_margins_have_one_form() -> None:
    assert window(rank=2).parse(3) == window(rank=2).parse([3, 3]) == (3, 3)
    assert window(2, 2).default == (2, 2)
    assert margins(1, 1).default == ((1, 1),)
    assert margins(1, 1).parse([0, 2]) == ((0, 2),)
    assert margins(0, 2).parse(3) == ((3, 3), (3, 3))
    assert margins(0, 2).parse([1, 2]) == ((1, 1), (2, 2))
    assert margins(0, 2).parse([[1, 0], [2, 3]]) == ((1, 0), (2, 3))
    for wrong in ("3", [1, 2, 3], [[1, 2, 3], 1], -1):
        with pytest.raises(BadOptionError):
            margins(0, 2).parse(wrong)


def test_old_names_mean_the_same_class() -> None:
    for alias, name in {
        "Convolution2D": "Conv2D",
        "SeparableConvolution1D": "SeparableConv1D",
        "Convolution2DTranspose": "Conv2DTranspose",
        "Deconvolution2D": "Conv2DTranspose",
        "MaxPool1D": "MaxPooling1D",
        "AvgPool2D": "AveragePooling2D",
        "GlobalAvgPool1D": "GlobalAveragePooling1D",
        "GlobalMaxPool2D": "GlobalMaxPooling2D",
    }.items():
        assert CLASS_NAMES[alias] == name


def test_old_options_mean_the_same() -> None:
    config = {"max_tokens": 5, "output_mode": "binary", "sparse": False}
    spec, problems = parsed("CategoryEncoding", config, [None, 3], "2.4.0")
    assert not problems
    assert (spec.config["num_tokens"], spec.config["output_mode"]) == (5, "multi_hot")


@pytest.mark.parametrize(("version", "passes"), [(TF, False), (K3, True), ("3.0.5", True)])
@pytest.mark.parametrize("class_name", ["Identity", "Rescaling", "Normalization"])
def test_masks_pass_preprocessing_in_keras_3_only(
    class_name: str, version: str, passes: bool
) -> None:
    spec, problems = parsed(class_name, {"scale": 2.0} if class_name == "Rescaling" else {}, STEPS,
                            version)  # fmt: skip
    assert not problems
    assert spec.semantics["passes_mask"] is passes


def test_unit_normalization_has_the_smallest_norm_of_its_version() -> None:
    x = np.full((1, 2, 2), 1e-8)
    for version, expected in ((TF, 1e-2), ("3.5.0", 1e-2), (K3, 0.5**0.5)):
        spec, _ = parsed("UnitNormalization", {}, [None, 2, 2], version)
        model = ModelSpec(chain(spec), generation_of(version))
        for y in (compute(model, [x]).outputs[0], build(model)(torch.from_numpy(x)).numpy()):
            np.testing.assert_allclose(y, expected)


# ---- torch and the reference, window after window ----------------------------------------------


def agree(spec: LayerSpec, shape: Shape) -> None:
    spec = with_random_weights(replace(spec, input_shape=(None, *shape[1:])))
    model = ModelSpec(chain(spec, shape=(None, *shape[1:])), generation_of(K3))
    x = values(*(size or 1 for size in shape))
    expected = compute(model, [x]).outputs[0]
    with torch.no_grad():
        found = build(model, dtype="float64")(torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    output = SCHEMA[spec.class_name].output(spec.config, spec.input_shape)
    assert output is not None
    assert found.shape[1:] == tuple(output[1:])


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["Conv", "DepthwiseConv", "SeparableConv"])
def test_every_window_agrees_with_the_reference(kind: str, rank: int) -> None:
    for size, stride, dilation, padding, form in itertools.product(
        (1, 2, 3), (1, 2), (1, 3), ("valid", "same", "causal"), ("channels_last", "channels_first")
    ):
        if padding == "causal" and (rank, kind) not in ((1, "Conv"), (1, "SeparableConv")):
            continue
        config = {"filters": 5, "depth_multiplier": 2}
        config = {k: v for k, v in config.items() if k in SCHEMA[f"{kind}{rank}D"].options}
        spec = layer(
            f"{kind}{rank}D", kernel_size=(size, 3)[:rank], strides=(stride, 1)[:rank],
            dilation_rate=(dilation, 2)[:rank], padding=padding, data_format=form, **config,
        )  # fmt: skip
        agree(spec, (B, 13, 11, 7)[: rank + 2] if rank == 2 else (B, 13, 7))


@pytest.mark.parametrize("rank", [1, 2])
def test_every_transposed_window_agrees_with_the_reference(rank: int) -> None:
    tried = 0
    for size, stride, dilation, padding, extra, form in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (1, 2), ("valid", "same"), (None, 0, 1),
        ("channels_last", "channels_first"),
    ):  # fmt: skip
        spec = layer(
            f"Conv{rank}DTranspose", kernel_size=(size, 2)[:rank], strides=(stride, 3)[:rank],
            dilation_rate=(dilation, 1)[:rank], padding=padding, data_format=form, filters=5,
            output_padding=None if extra is None else (extra, 1)[:rank],
        )  # fmt: skip
        shape = (B, 5, 7, 3) if rank == 2 else (B, 5, 3)
        problems: list[K2TError] = []
        infer_model(chain(spec, shape=shape), problems)
        if not problems:
            tried += 1
            agree(spec, shape)
    assert tried > 50


def test_the_steps_of_a_transposed_convolution_by_hand() -> None:
    """Kernel 100 10 1 over 1 2 3, every second step: each input leaves its three digits."""
    kernel = np.array([100.0, 10.0, 1.0]).reshape(3, 1, 1)
    weights = {"kernel": kernel, "bias": np.zeros(1)}
    spec = layer("Conv1DTranspose", weights=weights, filters=1, kernel_size=(3,), strides=(2,))
    x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    for options, expected in (
        ({}, [100, 10, 201, 20, 302, 30, 3]),
        ({"output_padding": (1,)}, [100, 10, 201, 20, 302, 30, 3, 0]),
        ({"padding": "same"}, [100, 10, 201, 20, 302, 30]),  # nothing in front: TensorFlow's SAME
        ({"padding": "same", "output_padding": (0,)}, [10, 201, 20, 302, 30]),
    ):
        model = ModelSpec(chain(with_options(spec, **options)), generation_of(K3))
        np.testing.assert_array_equal(compute(model, [x]).outputs[0][0, :, 0], expected)
        found = build(model)(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_array_equal(found[0, :, 0], expected)


# ---- ids, dropout ------------------------------------------------------------------------------


def test_an_input_declared_as_integers_is_cut() -> None:
    """tf.keras declares int64 before a Discretization, so that 1.9 is 1 there."""
    bins = layer("Discretization", bin_boundaries=(1.5,))
    root = chain(bins, shape=(None, 3))
    x = np.array([[1.9, 2.0, -0.5]], dtype=np.float32)
    for dtype, expected in (("int64", [[0, 1, 0]]), ("float32", [[1, 1, 0]])):
        assert root.graph is not None
        first = with_options(root.graph.layer("chain_input"), dtype=dtype)
        graph = replace(root.graph, layers=(first, bins))
        model = ModelSpec(replace(root, graph=graph), generation_of(TF))
        np.testing.assert_array_equal(compute(model, [x]).outputs[0], expected)
        np.testing.assert_array_equal(build(model)(torch.from_numpy(x)), expected)


def test_a_value_on_a_boundary_has_reached_it() -> None:
    """The example in the documentation of ``tf.raw_ops.Bucketize``; 0.1 is compared in float32."""
    bins = layer("Discretization", bin_boundaries=(0.0, 10.0, 100.0))
    x = np.array([[-5.0, 10000.0], [150.0, 10.0], [5.0, 100.0]])
    model = ModelSpec(chain(bins), generation_of(K3))
    for y in (compute(model, [x]).outputs[0], build(model)(torch.from_numpy(x))):
        np.testing.assert_array_equal(y, [[0, 3], [3, 2], [1, 3]])
    tenth = ModelSpec(chain(layer("Discretization", bin_boundaries=(0.1,))), generation_of(K3))
    single = np.array([[0.1]], dtype=np.float32)
    assert compute(tenth, [single]).outputs[0].item() == 1
    assert build(tenth)(torch.from_numpy(single)).item() == 1


def test_category_encoding_is_drawn_ids_of_its_tokens() -> None:
    spec = ModelSpec(
        chain(layer("CategoryEncoding", num_tokens=3), shape=(None, 50)), generation_of(K3)
    )
    (drawn,) = draw_inputs(spec, steps=7, seed=0)
    assert drawn.dtype == np.int32
    assert set(np.unique(drawn)) == {0, 1, 2}


@pytest.mark.parametrize("rank", [2, 3])
def test_spatial_dropout_drops_whole_channels_in_training(rank: int) -> None:
    x = torch.ones(2, *(3, 5, 7)[:rank], 64)
    between = tuple(range(1, rank + 1))
    for form, axes in (
        ("channels_last", between),
        ("channels_first", tuple(axis + 1 for axis in between)),
    ):
        module = convert_layer(layer(f"SpatialDropout{rank}D", rate=0.5, data_format=form)).train()
        torch.manual_seed(0)
        y = module(x if form == "channels_last" else x.movedim(-1, 1))
        assert set(y.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(y.amin(dim=axes), y.amax(dim=axes))
