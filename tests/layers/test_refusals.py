"""Options, shapes and masks that cannot be computed exactly are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from spec_parity import IMAGE, KERAS_1, KERAS_2, KERAS_3, STEPS, TF_215, parse
from specs import chain, layer, values

from keras2torch_birnn.building import build
from keras2torch_birnn.errors import K2TError, UnsupportedOptionError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.spec import ModelSpec

CONV = {"filters": 6, "kernel_size": 3}
BOUNDS = {"bin_boundaries": [0.0, 1.0]}
WORDS = {"vocabulary": [5, 7, 2]}
SIZE = {"height": 3, "width": 5}
Rows = list[tuple[str, Mapping[str, Any], str]]

# Class, options, and what the refusal says.
OF_STEPS: Rows = [
    ("Hashing", {"num_bins": 3, "mask_value": ""}, "a whole number of 64 bits is"),
    ("Hashing", {"num_bins": 3, "mask_value": 2**63}, "a whole number of 64 bits is"),
    ("Hashing", {"num_bins": 3, "salt": [1, 2, 3]}, "a whole number or two are"),
    ("Hashing", {"num_bins": 3, "salt": 0xDECAFCAFFE}, "TensorFlow up to 2.5 writes"),
    ("Hashing", {"num_bins": 3, "sparse": True}, "option sparse=True"),
    ("HashedCrossing", {"num_bins": 3}, "HashedCrossing layer hashes pairs"),
    ("StringLookup", {}, "StringLookup layer looks up text"),
    ("IntegerLookup", {"vocabulary": []}, "a list of whole numbers is expected"),
    ("IntegerLookup", {"vocabulary": [1.5]}, "a whole number of 64 bits is expected"),
    ("IntegerLookup", {**WORDS, "output_mode": "tf_idf"}, "output_mode='tf_idf'"),
    ("IntegerLookup", {**WORDS, "invert": True}, "option invert=True"),
    ("IntegerLookup", {**WORDS, "idf_weights": [1.0]}, "option idf_weights="),
    ("IntegerLookup", {**WORDS, "mask_token": 7}, "a number twice, or the mask_token"),
    ("IntegerLookup", {"vocabulary": [2, 3, 2]}, "vocabulary holds a number twice"),
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
    ("PReLU", {"shared_axes": [3]}, "shared_axes 3 of an input of 3 dimensions"),
    ("PReLU", {"shared_axes": [-2]}, "shared_axes -2 of an input of 3 dimensions"),
    ("CategoryEncoding", {"num_tokens": 5, "sparse": True}, "option sparse=True"),
    ("Discretization", {"num_bins": 5}, "without bin_boundaries"),
    (
        "Discretization",
        {"num_bins": 5, "bin_boundaries": None},
        r"what adapt\(\) found is not in the configuration",
    ),
    ("Discretization", {"bin_boundaries": [1.0, 0.0]}, "rising numbers are expected"),
    ("Discretization", {**BOUNDS, "sparse": True}, "option sparse=True"),
    ("AlphaDropout", {"rate": 0.1, "noise_shape": 1}, "a list of whole numbers and null"),
]

OF_STEPS_IN_KERAS_3: Rows = [
    ("IntegerLookup", {**WORDS, "oov_method": "farmhash"}, "oov_method='farmhash'"),
    ("AdaptiveMaxPooling1D", {"output_size": 5000}, "5000 windows on an axis"),
    ("AdaptiveAveragePooling2D", {"output_size": 3}, "an input of 4 dimensions is"),
    ("STFTSpectrogram", {"data_format": "channels_first"}, "channels_first"),
    ("STFTSpectrogram", {"frame_length": 7, "fft_length": 5}, "fft_length below frame_length"),
    ("STFTSpectrogram", {"frame_length": 17}, "a window of 17 does not fit the 13"),
    ("Resizing", SIZE, "an input of 4 dimensions is expected"),
    ("RMSNormalization", {"axis": [1]}, r"axis \[1\] is not at the end"),
    ("AutoContrast", {"value_range": [1.0]}, "two numbers are expected"),
    ("AutoContrast", {}, "an input of 4 dimensions is expected"),
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
    ("UpSampling2D", {"interpolation": "cubic"}, "interpolation='cubic'"),
]
REFUSED = [
    *((STEPS, TF_215, *row) for row in OF_STEPS),
    *((STEPS, KERAS_3, *row) for row in OF_STEPS_IN_KERAS_3),
    *((IMAGE, TF_215, *row) for row in OF_IMAGES),
    (
        [None, 7],
        TF_215,
        "IntegerLookup",
        {**WORDS, "output_mode": "count", "pad_to_max_tokens": True, "max_tokens": 3},
        "pad_to_max_tokens with fewer max_tokens",
    ),
    (IMAGE, KERAS_1, "UpSampling2D", {"size": [2, 2]}, "does not say where the channels are"),
    (IMAGE, KERAS_3, "Resizing", {**SIZE, "antialias": True}, "Resizing option antialias=True"),
    (IMAGE, KERAS_3, "Resizing", {**SIZE, "pad_to_aspect_ratio": True}, "pad_to_aspect_ratio=True"),
    ([None, 13, None], KERAS_3, "STFTSpectrogram", {}, "the number of channels is not known"),
    ([None, 99], KERAS_3, "MelSpectrogram", {"window": [0.5, 1.0]}, "MelSpectrogram option window"),
    (
        [None, 99],
        KERAS_3,
        "MelSpectrogram",
        {"fft_length": 32, "sequence_length": 37},
        "fft_length below sequence_length",
    ),
    ([None, 1024], KERAS_3, "MelSpectrogram", {}, "1024 steps, which half of fft_length 2048"),
    (
        [None, 5000],
        KERAS_3,
        "MelSpectrogram",
        {"num_mel_bins": 1_000_000},
        "1000000 bins of 1025 frequencies",
    ),
    (
        [None, 1_000_000],
        KERAS_3,
        "MelSpectrogram",
        {"sequence_stride": 1},
        "1000001 frames of 2048 steps",
    ),
    (
        [None, 5, 1000, 1],
        KERAS_3,
        "Resizing",
        {"height": 5, "width": 1_000_000, "interpolation": "lanczos3"},
        "interpolation of 1000 steps to 1000000",
    ),
    (
        [None, 2, 1000, 1],
        TF_215,
        "UpSampling2D",
        {"interpolation": "gaussian", "size": [1, 1000]},
        "interpolation of 1000 steps, 1000 times as many",
    ),
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


@pytest.mark.parametrize(
    ("mode", "version", "reason"),
    [
        ("bilinear", KERAS_2, ""),
        ("bilinear", "2.2.4-tf", "interpolation='bilinear' of this Keras .* 2.0 their middles"),
        ("bilinear", TF_215, ""),
        ("bilinear", KERAS_3, ""),
        ("bicubic", TF_215, ""),
        ("bicubic", KERAS_3, "interpolation='bicubic' of this Keras .* every backend of Keras 3"),
        ("lanczos5", KERAS_3, ""),
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


@pytest.mark.parametrize("version", ["2.4.0", "2.9.0", "3.6.0", "3.7.0"])
def test_a_random_crop_that_resizes_in_a_way_of_its_own_is_refused(version: str) -> None:
    spec, problems = parse("RandomCrop", SIZE, IMAGE, version)
    assert not problems
    with pytest.raises(UnsupportedOptionError, match="RandomCrop of this Keras is not supp"):
        convert_layer(spec)


def test_bicubic_resizing_of_keras_3_is_refused() -> None:
    spec, _ = parse("Resizing", {**SIZE, "interpolation": "bicubic"}, IMAGE, KERAS_3)
    with pytest.raises(UnsupportedOptionError, match="Resizing option interpolation='bicubic'"):
        convert_layer(spec)


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
