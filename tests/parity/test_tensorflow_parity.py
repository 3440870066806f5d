"""Models in the containers of real TensorFlow: converted, they compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorflow_fixtures import ENTRIES, FEATURES, files, names_of_arrays, recorded, unpack
from test_fixtures import check_model

from keras2torch_birnn.errors import K2TError
from keras2torch_birnn.readers import read_model

# What is recorded of these has outputs to compare with.
CONVERTED = [file for file in files("converts") if "y0" in names_of_arrays(file)]
# TF.js models that were made of .keras files, with the paths in these as names of weights.
CONVERTED += [file for file in files("open") if ENTRIES[file]["kind"] == "tfjs_keras"]


# What ``make test`` must meet: each kind of file of each writer.
@pytest.mark.sampled({file: features[1:] for file, features in FEATURES.items()})
@pytest.mark.parametrize("file", CONVERTED)
def test_torch_and_the_reference_agree_with_tensorflow(file: str, tmp_path: Path) -> None:
    found = unpack(file, tmp_path)
    spec = read_model(found.model, config=found.config)
    case = recorded(file)
    calls = [*zip(case.inputs, case.outputs, strict=True)]
    check_model(spec, calls, ENTRIES[file])


# What each refusal says.
REFUSALS = {
    "module.checkpoint": "weights of a model that its own Python code defines",
    "module.savedmodel": "without Keras' layers, as model.export()",
    "export.savedmodel": "without Keras' layers, as model.export()",
    "saved_model_save.savedmodel": "without Keras' layers, as model.export()",
    "subclassed.checkpoint": "weights of a model that its own Python code defines",
    "subclassed.weights": "weights of a model that its own Python code defines",
    "subclassed.savedmodel": "of class Tagger, which its own Python code defines",
    "subclassed.untraced": "of class Tagger, which its own Python code defines",
    "subclassed_inside.untraced": "layer class Tagger is not supported",
    "ragged.untraced": "ragged=True is not supported",
    "two_models.checkpoint": "a checkpoint of 2 models",
    "tf1.checkpoint": "a checkpoint of TensorFlow 1",
    "tf1_partitioned.checkpoint": "a checkpoint of TensorFlow 1",
    "tf1_old_format.checkpoint": "a checkpoint in the old format of TensorFlow 1",
    "export_keras3.savedmodel": "without Keras' layers, as model.export()",
    "tf1_frozen_graph.graph": "a graph of operations, without Keras' layers",
    "tf1_keras.savedmodel": "a SavedModel without objects, of TensorFlow 1",
    "tf1_saved_model.savedmodel": "a SavedModel without objects, of TensorFlow 1",
    "tf1_text.savedmodel": "a graph of operations, without Keras' layers",
    "tflite.tflite": "a graph of operations, without Keras' layers",
    "graph_model.tfjs_graph": "a TF.js graph model",
}


@pytest.mark.parametrize("file", files("refused"))
def test_what_holds_no_layers_is_refused_by_name(file: str, tmp_path: Path) -> None:
    found = unpack(file, tmp_path)
    kind = Path(file).name.removesuffix(".tar")
    with pytest.raises(K2TError) as caught:
        read_model(found.model, config=found.config)
    assert REFUSALS[kind] in str(caught.value)
    assert "\n" not in str(caught.value)
