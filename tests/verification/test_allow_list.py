"""Names that live Keras is allowed to look up: built-in ones only."""

from __future__ import annotations

from typing import Any

import pytest
from specs import FIXTURES

from keras2torch_birnn.readers import read_architecture
from keras2torch_birnn.readers.operations import translation
from keras2torch_birnn.verification.allow_list import foreign_name

MASKS_ADDED = "keras-3.15.1/merge_masks_add.keras"  # NotEqual, LogicalOr
WITH_OPERATIONS = (
    MASKS_ADDED,
    "keras-3.15.1/attention_masks.keras",
    "keras-3.15.1/chain_masked.keras",
    "keras-3.0.5/arch_crnn_permute.keras",
)


def architecture(class_name: Any, module: str | None, **config: Any) -> dict[str, Any]:
    """Make a model with one more entry after its input."""
    source = {"class_name": "InputLayer", "module": "keras.layers", "config": {"name": "x"}}
    entry = {"class_name": class_name, "module": module, "config": {"name": "y", **config}}
    if module is None:
        del entry["module"]
    layers = {"layers": [source, entry]}
    return {"class_name": "Functional", "module": "keras.src.models", "config": layers}


@pytest.mark.parametrize("file", WITH_OPERATIONS)
def test_a_file_with_operations_of_keras_names_nothing_foreign(file: str) -> None:
    assert foreign_name(read_architecture(FIXTURES / file)) is None


@pytest.mark.parametrize(
    "module",
    ["keras.src.ops.numpy", "keras.ops", "keras.src.activations.activations", "keras.activations"],
)
def test_every_operation_that_is_converted_is_known(module: str) -> None:
    for class_name in translation.KERAS3_FORMS:
        assert foreign_name(architecture(class_name, module)) is None, class_name


@pytest.mark.parametrize("value", ["__tensor__", "__slice__", "__ellipsis__"])
def test_plain_values_in_calls_of_operations_are_known(value: str) -> None:
    key = {"class_name": value, "config": {}}
    assert foreign_name(architecture("GetItem", "keras.src.ops.numpy", key=key)) is None


@pytest.mark.parametrize(
    ("class_name", "module", "wanted"),
    [
        # the right class in the wrong place
        ("NotEqual", "evil.ops", "evil.ops.NotEqual"),
        ("NotEqual", "k2t operation", "k2t operation.NotEqual"),
        ("NotEqual", "keras_evil.src.ops", "keras_evil.src.ops.NotEqual"),
        ("NotEqual", "keras.src.opsevil", "NotEqual"),
        ("NotEqual", "keras.src.utils", "NotEqual"),
        ("NotEqual", "tensorflow.keras.src.ops", "NotEqual"),
        ("NotEqual", "", ".NotEqual"),
        ("NotEqual", None, "NotEqual"),
        # another class in the right place; these three are given functions
        ("Map", "keras.src.ops.core", "Map"),
        ("Scan", "keras.src.ops.core", "Scan"),
        ("Cond", "keras.src.ops.core", "Cond"),
        ("ops.NotEqual2", "keras.src.ops.numpy", "ops.NotEqual2"),
        ("Lambda", "keras.layers", "Lambda"),
        ("TFOpLambda", "keras.layers", "TFOpLambda"),
        (["NotEqual"], "keras.src.ops.numpy", "keras.src.ops.numpy"),
    ],
)
def test_other_classes_stay_foreign(class_name: Any, module: str | None, wanted: str) -> None:
    found = foreign_name(architecture(class_name, module))
    assert found is not None
    assert wanted in found


def test_a_function_and_a_class_without_a_module_are_the_users() -> None:
    given = {"class_name": "function", "config": "zeros", "registered_name": "function"}
    found = foreign_name(architecture("Dense", "keras.layers", kernel_initializer=given))
    assert found == "the function zeros"
    own = architecture("Dense", "keras.layers")
    own["config"]["layers"][1]["module"] = None  # defined in a notebook
    assert foreign_name(own) == "Dense"


def test_a_foreign_class_inside_of_an_operation_is_found() -> None:
    inner = {"class_name": "Run", "module": "evil", "config": {}}
    found = foreign_name(architecture("GetItem", "keras.src.ops.numpy", key=[inner]))
    assert found == "evil.Run"
