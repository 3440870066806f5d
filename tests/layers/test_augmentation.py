"""Layers that change images at random in training: identities, with what a user must know."""

from __future__ import annotations

import pytest
import torch
from spec_parity import IMAGE, KERAS_3, TF_215, parse
from specs import fixture, layer

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.graphs import _normalize_call
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import AUGMENTATION, LAYERS, ShapeError
from keras2torch_birnn.spec import TensorRef

FILE = "keras-3.15.1/augmented.keras"


def test_a_note_says_that_keras_changes_the_images_in_training() -> None:
    notes = [note for note in fixture(FILE).spec.notes if "in training Keras" in note]
    assert len(notes) == 1
    assert "RandomFlip, RandomRotation" in notes[0]
    assert "the converted model never does" in notes[0]


def test_a_model_without_such_layers_has_no_note_on_them() -> None:
    notes = fixture("keras-3.15.1/around_conv2.keras").spec.notes
    assert not any("in training Keras" in note for note in notes)


def test_the_converted_model_leaves_images_alone_in_training_too() -> None:
    model = build(fixture(FILE).spec).train()
    x = torch.rand(2, 5, 11, 3)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", AUGMENTATION)
@pytest.mark.parametrize("version", [TF_215, "3.0.5", KERAS_3])
def test_every_option_of_them_is_known_and_without_effect(name: str, version: str) -> None:
    options = dict.fromkeys(("factor", "seed", "value_range", "data_format", "fill_mode"), 0.5)
    spec, problems = parse(name, options, IMAGE, version)
    assert not problems
    assert spec.output_shape == tuple(IMAGE)


@pytest.mark.parametrize("keras3", [False, True])
def test_training_true_is_the_default_in_keras_3_and_a_wish_in_tf_keras(keras3: bool) -> None:
    """Keras 3 stores the default of its ``call``; ``predict`` overrules it there alone."""
    parsing = Parsing(generation_of(KERAS_3))
    args = (TensorRef("x", 0, 0),)
    _normalize_call(layer("RandomFlip"), 0, args, {"training": True}, keras3, parsing)
    told = [str(problem).count("training=True") for problem in parsing.problems]
    assert told == [1] * (not keras3)
    parsing.problems.clear()
    _normalize_call(layer("Dropout", rate=0.5), 0, args, {"training": True}, keras3, parsing)
    assert len(parsing.problems) == 1


def test_labels_beside_the_images_are_refused() -> None:
    output = LAYERS["MixUp"].output
    for tensors in (((None, 5, 7, 3), (None, 11)), {"images": (None, 5, 7, 3)}):
        with pytest.raises(ShapeError, match="images alone are expected, found several tensors"):
            output({}, tensors)


@pytest.mark.parametrize(
    ("name", "version", "keeps"),
    [
        ("RandomWidth", "2.11.0", False),
        ("RandomWidth", "2.12.0", True),
        ("RandomFlip", "2.15.0", False),
        ("RandomContrast", "2.15.0", False),
        ("RandomContrast", "3.5.0", False),
        ("RandomContrast", "3.6.0", True),
        ("RandomFlip", "3.15.1", False),
        ("MixUp", "3.15.1", True),
    ],
)
def test_whole_numbers_stay_whole_where_keras_does_not_cast(
    name: str, version: str, keeps: bool
) -> None:
    spec, _ = parse(name, {}, IMAGE, version)
    assert spec.semantics["keeps_integers"] is keeps
