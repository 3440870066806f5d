"""Options: old names, axes and windows have one form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from spec_parity import KERAS_1, KERAS_3, TF_215, agree_alone, parse
from specs import bi, chain, rnn, with_options

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.rnn.cell_kind import can_share_module
from keras2torch_birnn.schema import CLASS_NAMES, SCHEMA, BadOptionError, ShapeError
from keras2torch_birnn.schema.options import margins, window
from keras2torch_birnn.schema.training_rules import CONSTRAINTS, REGULARIZERS
from keras2torch_birnn.spec import ModelSpec


def test_keras_1_says_where_the_channels_are() -> None:
    config = {"pool_size": [2, 2], "strides": [2, 2], "border_mode": "valid", "dim_ordering": "tf"}
    spec, problems = parse("MaxPooling2D", config, [None, 5, 13, 7], KERAS_1)
    assert not problems
    assert spec.config["data_format"] == "channels_last"


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
    spec, problems = parse("CategoryEncoding", config, [None, 3], "2.4.0")
    assert not problems
    assert (spec.config["num_tokens"], spec.config["output_mode"]) == (5, "multi_hot")


def test_unit_normalization_has_the_smallest_norm_of_its_version() -> None:
    x = np.full((1, 2, 2), 1e-8)
    for version, expected in ((TF_215, 1e-2), ("3.5.0", 1e-2), (KERAS_3, 0.5**0.5)):
        spec, _ = parse("UnitNormalization", {}, [None, 2, 2], version)
        model = ModelSpec(chain(spec), generation_of(version))
        for y in (compute(model, [x]).outputs[0], build(model)(torch.from_numpy(x)).numpy()):
            np.testing.assert_allclose(y, expected)


def test_shared_axes_below_one_count_as_keras_counts_them() -> None:
    """Keras subtracts 1 first: 0 is the last axis, -1 the last but one."""
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


def test_a_bilinear_resizing_of_many_steps_needs_no_matrix() -> None:
    for class_name, config in (
        ("Resizing", {"height": 1511, "width": 3}),
        ("UpSampling2D", {"size": [3, 2], "interpolation": "bilinear"}),
    ):
        spec, problems = parse(class_name, config, [None, 1499, 5, 2], KERAS_3)
        assert not problems
        agree_alone(spec, (1, 1499, 5, 2))


@pytest.mark.parametrize(
    ("class_name", "config", "key"),
    [
        ("ReLU", {"passes_mask": False}, "passes_mask=False"),
        ("SimpleRNN", {"units": 5, "masked_output": "fails"}, "masked_output='fails'"),
    ],
)
def test_a_file_cannot_set_semantics(class_name: str, config: dict[str, Any], key: str) -> None:
    _, problems = parse(class_name, config, [None, 7, 3], TF_215)
    (problem,) = problems
    assert f"{class_name} option {key} is unknown" in str(problem)


def test_no_setting_is_both_an_option_and_semantics() -> None:
    for name, row in SCHEMA.items():
        assert not row.options.keys() & row.semantics.keys(), name


def test_halves_share_a_module_whatever_their_masked_steps_give() -> None:
    pair = bi(rnn("GRU", seed=1), rnn("GRU", seed=2, masked_output="previous_output"))
    halves = tuple(pair.parts.values())
    assert {half.semantics["masked_output"] for half in halves} == {"zeros", "previous_output"}
    assert can_share_module(*halves)
    assert not can_share_module(halves[0], with_options(halves[1], use_bias=False))
    one, other = (replace(half, semantics={"rule": i}) for i, half in enumerate(halves))
    assert not can_share_module(one, other)


# Values that a file may have in the place of an option.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 2**31, 2**63, -(2**63), 10**18),
    *(0.0, 0.5, -1.5, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", "relu", "@", "...", "a" * 3000, "\x00", "__import__('os') or x"),
    *([], {}, [None], [[]], [0, 0, 0], ["@"], ["...", "..."], [None, None, None]),
    *([[None, None, 0]], [["@", "@", "@"]], [1.5], [True], ["a"], [{}], {"a": {}}),
    *([[1, 2], [3]], [[1, 2], [3, "x"]]),
    *({"name": 7}, {"name": []}, {"name": "relu", "max_value": []}, {"name": "relu", "x": 1}),
)


def test_every_option_takes_or_refuses_every_value() -> None:
    tables = [
        (name, options)
        for name, row in SCHEMA.items()
        for options in (row.options, row.semantics, row.call_options)
    ] + [(name, row) for rows in (REGULARIZERS, CONSTRAINTS) for name, row in rows.items()]
    for name, options in tables:
        for key, one in options.items():
            for value in ODD:
                try:
                    parsed = one.parse(value)
                except BadOptionError:
                    continue
                assert one.parse(parsed) == parsed, (name, key, value)
