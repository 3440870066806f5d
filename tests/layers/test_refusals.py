"""Options, shapes and masks that cannot be computed exactly are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from spec_parity import IMAGE, KERAS_1, KERAS_2, KERAS_3, STEPS, TF_215, parse
from specs import chain, layer, values

from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, UnsupportedOptionError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.spec import ModelSpec

CONV = {"filters": 6, "kernel_size": 3}
SIZE = {"height": 3, "width": 5}
Rows = list[tuple[str, Mapping[str, Any], str]]

# Class, options, and what the refusal says.
OF_STEPS: Rows = [
    ("HashedCrossing", {"num_bins": 3}, "HashedCrossing layer hashes pairs"),
    ("StringLookup", {}, "StringLookup layer looks up text"),
    ("IntegerLookup", {"vocabulary": [5, 7]}, "IntegerLookup layer looks numbers up"),
    ("TextVectorization", {}, "TextVectorization layer turns text into ids"),
    ("Conv2D", CONV, "Conv2D: an input of 4 dimensions is expected"),
    ("SeparableConv1D", {**CONV, "groups": 3}, "SeparableConv1D option groups=3"),
    ("DepthwiseConv1D", {"kernel_size": 2, "padding": "causal"}, "padding='causal'"),
    ("Conv1DTranspose", {**CONV, "padding": "causal"}, "padding='causal'"),
    (
        "Conv1DTranspose",
        {**CONV, "strides": 2, "output_padding": 2},
        "output_padding 2 is not below the stride 2",
    ),
    ("Cropping1D", {"cropping": [7, 6]}, r"cropping \[7, 6\] leaves nothing of 13"),
    ("ZeroPadding1D", {"padding": [1, -1]}, "a whole number from 0"),
    ("GroupNormalization", {"groups": 2}, "groups=2 does not divide 3 channels"),
    ("GroupNormalization", {"axis": 0}, "axis 0 holds the samples"),
    ("GroupNormalization", {"groups": 0}, "GroupNormalization option groups=0"),
    ("Normalization", {"mean": 1.0}, "mean without variance"),
    ("Normalization", {"axis": 3}, r"axis \[3\] does not fit an input of 3"),
    ("Normalization", {"mean": ["a"], "variance": [1]}, "a number is expected"),
    ("Rescaling", {"scale": [1.0, 2.0]}, r"scale of shape \[2\] does not fit"),
    ("Rescaling", {"scale": 1.0, "offset": [[[[0.5]]]]}, r"offset of shape \[1, 1, 1, 1\]"),
    ("Rescaling", {"scale": [[1.0], [1.0, 2.0]]}, "lists of equal lengths"),
    ("Dense", {"units": 5, "lora_rank": 2}, r"LoRA \(lora_rank=2\) of Dense is not supported"),
    ("PReLU", {"shared_axes": [3]}, "shared_axes 3 of an input of 3 dimensions"),
    ("PReLU", {"shared_axes": [-2]}, "shared_axes -2 of an input of 3 dimensions"),
    ("CategoryEncoding", {"num_tokens": 5, "sparse": True}, "option sparse=True"),
    ("AlphaDropout", {"rate": 0.1, "noise_shape": 1}, "a list of whole numbers and null"),
]

OF_STEPS_IN_KERAS_3: Rows = [
    ("Resizing", SIZE, "an input of 4 dimensions is expected"),
    ("RMSNormalization", {"axis": [1]}, r"axis \[1\] is not at the end"),
    ("CategoryEncoding", {"num_tokens": 5}, "an input of 2 dimensions is expected"),
]

OF_IMAGES: Rows = [
    ("Conv2D", {**CONV, "padding": "causal"}, "Conv2D option padding='causal'"),
    ("Conv2D", {**CONV, "kernel_size": [3]}, "a whole number or a list of 2"),
    ("Conv2D", {**CONV, "groups": 2}, "groups=2 does not divide the channels"),
    ("DepthwiseConv2D", {"kernel_size": 7}, "a window of 7 does not fit the 5 steps"),
    (
        "Conv2DTranspose",
        {**CONV, "kernel_size": [3, 4], "strides": 2, "padding": "same", "output_padding": [0, 0]},
        "output_padding 0 does not fit a window of 4 with stride 2",
    ),
    ("MaxPooling2D", {"pool_size": [2, 7, 1]}, "a whole number or a list of 2"),
    ("Cropping2D", {"cropping": [1, 2, 3]}, "a list of 2 pairs is expected"),
    *(
        (name, {**size, "interpolation": mode}, f"{name} option interpolation='{mode}'")
        for name, size in (("UpSampling2D", {}), ("Resizing", SIZE))
        for mode in ("area", "bicubic", "gaussian", "lanczos3", "mitchellcubic", "cubic")
    ),
]
REFUSED = [
    *((STEPS, TF_215, *row) for row in OF_STEPS),
    *((STEPS, KERAS_3, *row) for row in OF_STEPS_IN_KERAS_3),
    *((IMAGE, TF_215, *row) for row in OF_IMAGES),
    (IMAGE, KERAS_1, "UpSampling2D", {"size": [2, 2]}, "does not say where the channels are"),
    (IMAGE, KERAS_3, "Resizing", {**SIZE, "antialias": True}, "Resizing option antialias=True"),
    (IMAGE, KERAS_3, "Resizing", {**SIZE, "pad_to_aspect_ratio": True}, "pad_to_aspect_ratio=True"),
]


@pytest.mark.parametrize(
    ("shape", "version", "class_name", "config", "message"),
    REFUSED,
    ids=[f"{row[2]}: {row[4]}" for row in REFUSED],
)
def test_what_cannot_be_computed_exactly_is_refused_by_name(
    shape: list[int | None], version: str, class_name: str, config: Mapping[str, Any], message: str
) -> None:
    _, problems = parse(class_name, config, shape, version)
    assert len(problems) == 1, problems
    with pytest.raises(K2TError, match=message):
        raise problems[0]


# Layers of Keras that no recurrent model of the collections has.
NOT_SUPPORTED = (
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
    "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D AutoContrast CenterCrop "
    "Discretization GroupedQueryAttention GroupQueryAttention Hashing Highway LocallyConnected1D "
    "LocallyConnected2D MaxoutDense MelSpectrogram ParametricSoftplus Pipeline RandomCrop "
    "RandomFourierFeatures ReversibleEmbedding SReLU STFTSpectrogram SpectralNormalization"
)


@pytest.mark.parametrize("class_name", NOT_SUPPORTED.split())
def test_a_layer_that_is_not_supported_may_be_supplied_or_cut_off(class_name: str) -> None:
    _, (problem,) = parse(class_name, {"units": 3}, STEPS, KERAS_3)
    assert isinstance(problem, UnsupportedLayerError)
    assert problem.message == f"layer class {class_name} is not supported"
    assert "begin with k2t plugin new MODEL > my_layers.py" in problem.advice
    in_front = "AutoContrast CenterCrop Discretization Hashing MelSpectrogram RandomCrop STFT"
    prepares = any(class_name.startswith(one) for one in in_front.split())
    assert prepares == ("cut the layer off: --from" in problem.advice)


@pytest.mark.parametrize(
    ("mode", "version", "reason"),
    [
        ("bilinear", KERAS_2, ""),
        ("bilinear", "2.2.4-tf", "interpolation='bilinear' of this Keras .* 2.0 their middles"),
        ("bilinear", TF_215, ""),
        ("bilinear", KERAS_3, ""),
    ],
)
def test_interpolation_that_the_file_does_not_tell_is_refused(
    mode: str, version: str, reason: str
) -> None:
    spec, problems = parse("UpSampling2D", {"interpolation": mode}, IMAGE, version)
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
    for masking, version in (("weigh", TF_215), ("ignore", KERAS_3)):
        group = layer("GroupNormalization", weights=norm, groups=3, masking=masking)
        spec = ModelSpec(chain(ids, group), generation_of(version))
        if masking == "ignore":
            build(spec)
        else:
            with pytest.raises(UnsupportedOptionError, match="a mask into a GroupNormalization"):
                build(spec)
