"""Every layer of every Keras is converted, or named here with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from keras2torch_birnn.cli.listings import catalogue
from keras2torch_birnn.readers.config.graphs import TRAIN_BY_DEFAULT
from keras2torch_birnn.readers.config.keras1 import _CLASSES as KERAS_1
from keras2torch_birnn.schema import CELLS, CLASS_NAMES, OPS

ROOT = Path(__file__).parents[2]
# As ``fixtures/generate_layer_names.py`` found them.
RECORDED: Mapping[str, list[str]] = json.loads(
    (ROOT / "fixtures" / "layer_names.json").read_text("utf-8")
)
_ABSTRACT = "no layer of a file: others derive from it"
_ALIAS = "an alias that no file holds: its class is called AtrousConvolution"
_TEXT = "of text, which torch does not hold"
_CODE = "holds code or a model of another framework"
_BY_VALUE = "changes images at inference, by their values"
NOT_CONVERTED: Mapping[str, str] = {
    **dict.fromkeys(
        ("Layer", "Wrapper", "Recurrent", "ConvRecurrent2D", "ConvRNN2D", "AbstractRNNCell"),
        _ABSTRACT,
    ),
    "PreprocessingLayer": _ABSTRACT,
    **dict.fromkeys(("StringLookup", "TextVectorization", "HashedCrossing"), _TEXT),
    **dict.fromkeys(
        (
            "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D "
            "AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D AutoContrast "
            "CenterCrop Discretization GroupQueryAttention Hashing Highway IntegerLookup "
            "LocallyConnected1D LocallyConnected2D MaxoutDense MelSpectrogram ParametricSoftplus "
            "Pipeline RandomCrop RandomFourierFeatures ReversibleEmbedding SReLU STFTSpectrogram "
            "SpectralNormalization"
        ).split(),
        "of no recurrent model that was met",
    ),
    **dict.fromkeys(("DenseFeatures", "DynamicEmbedding", "DynamicLookup"), "of feature columns"),
    **dict.fromkeys(("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"), _CODE),
    **dict.fromkeys(("AtrousConv1D", "AtrousConv2D"), _ALIAS),
    "CategoryCrossing": _TEXT,
    "Lambda": "holds Python code; a plugin supplies it",
    "ContrastLimitedAdaptiveHistogramEqualization": _BY_VALUE,
    "Equalization": "no model of Keras 3.15 can be built with it",
    "ConvLSTM2DCell": "only inside ConvLSTM2D",
}


def test_every_layer_of_every_keras_is_converted_or_named() -> None:
    known = CLASS_NAMES.keys() | NOT_CONVERTED.keys()
    for label, names in RECORDED.items():
        assert {*names} <= known | (KERAS_1.keys() if label.startswith("keras-1") else set())


def test_layers_whose_calls_train_by_default_are_known() -> None:
    """Keras 3 saves that default with each call of a functional model."""
    training = {label: {*names} for label, names in RECORDED.items() if "training" in label}
    ((label, names),) = training.items()
    every = RECORDED[label.removesuffix(" training=True")]
    assert names & CLASS_NAMES.keys() == TRAIN_BY_DEFAULT.intersection(every)


def test_what_is_named_is_a_layer_that_is_not_converted() -> None:
    assert not NOT_CONVERTED.keys() & CLASS_NAMES
    assert NOT_CONVERTED.keys() <= set().union(*RECORDED.values())


def test_the_page_of_layers_names_what_is_not_converted() -> None:
    page = (ROOT / "docs" / "layers.md").read_text("utf-8")
    shown = [name for name, why in NOT_CONVERTED.items() if why not in (_ABSTRACT, _ALIAS)]
    assert not [name for name in shown if f"`{name}`" not in page]


def test_the_page_of_layers_calls_nothing_unsupported_that_is_converted() -> None:
    page = (ROOT / "docs" / "layers.md").read_text("utf-8")
    unsupported = page.split("## Not supported yet\n")[1].split("- Half precision")[0]
    named = {*re.findall(r"`(\w+)`", unsupported)}
    assert {"StringLookup", "inv"} <= named  # classes of layers, and functions
    functions = {f.name.lower() for row in OPS.values() for f in row.forms if f.dialect == "keras"}
    assert not named & (CLASS_NAMES.keys() - CELLS.keys())
    assert not {name.replace("_", "") for name in named} & functions


def test_the_list_of_layers_has_every_layer_that_is_converted() -> None:
    listed = {name for row in catalogue() for name in (row.class_name, *row.aliases)}
    assert {*CLASS_NAMES} - OPS.keys() - CELLS.keys() <= listed
