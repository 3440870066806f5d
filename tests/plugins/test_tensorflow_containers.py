"""Layers of a plugin in models that are in TensorFlow's own containers, and names of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from plugin_files import (
    ATOL,
    ENTRIES,
    FIXTURES,
    RTOL,
    USERS,
    converter,
    differ,
    gives_what_keras_gave,
    read,
    unregister_all,
    write_plugin,
)
from tensorflow_files import write_named_tfjs
from tensorflow_fixtures import ENTRIES as PACKED
from tensorflow_fixtures import files, recorded, unpack
from torch_runs import outputs_of

import keras2torch_birnn
from keras2torch_birnn.errors import WeightMismatchError
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.weights.paths import layer_entries
from keras2torch_birnn.readers.weights.slots import KERAS2
from keras2torch_birnn.schema.custom_layers import converts
from keras2torch_birnn.spec import Array, LayerSpec

TWICE = (
    "import torch\n\n@k2t.supplies('twice')\ndef twice(x: torch.Tensor) -> torch.Tensor:\n    {}\n"
)
LAMBDAS = [file for file in files("plugin") if PACKED[file]["case"] == "lambda"]


def agrees(file: str, folder: Path, plugin: Path) -> bool:
    found, case = unpack(file, folder), recorded(file)
    model = keras2torch_birnn.convert(found.model, config=found.config, plugins=[plugin])
    return all(
        not differ(outputs_of(model, *inputs), list(wanted), ATOL, RTOL)
        for inputs, wanted in zip(case.inputs, case.outputs, strict=True)
    )


@pytest.mark.every(3)
@pytest.mark.parametrize("file", [f for f in files("plugin") if f not in LAMBDAS])
def test_layers_and_cells_of_users_are_converted(file: str, tmp_path: Path) -> None:
    assert agrees(file, tmp_path, USERS)


@pytest.mark.every(3)
@pytest.mark.parametrize("file", LAMBDAS)
def test_a_supplied_lambda_gives_what_keras_gave(file: str, tmp_path: Path) -> None:
    """And another function does not."""
    assert agrees(file, tmp_path, write_plugin(tmp_path, TWICE.format("return x * 2")))
    unregister_all()
    assert not agrees(file, tmp_path, write_plugin(tmp_path, TWICE.format("return x * 3")))


# ---- names of weights inside a layer -----------------------------------------------------------


def weights_of(layer: LayerSpec) -> Mapping[str, Mapping[str, Array]]:
    """Return the weights of every custom layer, as the converter sees them."""
    return {
        part.name: part.weights
        for part in layer.walk()
        if part.class_name in ("NestedSteps", "GatedCell")
    }


@pytest.mark.parametrize("label", ["keras-3.15.1", "tf.keras-2.15.0", "tf_keras-2.21.0"])
@pytest.mark.parametrize("case", ["nested", "cell_chain"])
def test_nested_weights_have_one_name_in_every_container(
    label: str, case: str, tmp_path: Path
) -> None:
    """One layer with one set of weights: h5, .keras, weights, SavedModel, checkpoint."""
    load_plugins([USERS])
    found = {
        file: weights_of(read(file).root)
        for file in ENTRIES
        if file.startswith(f"{label}/{case}") and ENTRIES[file]["case"] == case
    }
    for file, entry in PACKED.items():
        if entry["case"] == case and file.startswith(f"{label}/"):
            folder = tmp_path / entry["kind"]
            unpacked = unpack(file, folder)
            found[file] = weights_of(read_model(unpacked.model, config=unpacked.config).root)
    kinds = 6 if label == "tf.keras-2.15.0" and case == "nested" else 3
    assert len(found) >= kinds
    first, *others = found.values()
    assert first
    for other in others:
        assert [list(w) for w in other.values()] == [list(w) for w in first.values()]
        for one, twin in zip(first.values(), other.values(), strict=True):
            for name, array in one.items():
                np.testing.assert_array_equal(array, twin[name])


TFJS = ("nested", "cell_chain", "gated", "cell_start")


def as_tfjs(file: Path, folder: Path, *, turned: bool = False) -> Path:
    """Write a model of an ``.h5`` file as TensorFlow.js' converter does, with its names.

    By the names of the layers; inside a layer in the order of ``weight_names``, or (``turned``)
    from the last to the first, as no program writes them.
    """
    named: dict[str, Array] = {}
    with h5py.File(file) as source:
        text = json.loads(source.attrs["model_config"])
        version = str(source.attrs["keras_version"])
        for group in source["model_weights"].values():
            names = list(group.attrs.get("weight_names", ()))
            for name in names[::-1] if turned else names:
                named[name.removesuffix(":0")] = group[name][()]
    return write_named_tfjs(folder, named, {**text, "keras_version": version})


@pytest.mark.parametrize("case", TFJS)
def test_layers_and_cells_of_users_are_converted_from_tfjs(case: str, tmp_path: Path) -> None:
    file = f"tf.keras-2.15.0/{case}.h5"
    model = keras2torch_birnn.convert(as_tfjs(FIXTURES / file, tmp_path / "web"), plugins=[USERS])
    assert gives_what_keras_gave(model, file)


@pytest.mark.parametrize("case", ["nested", "cell_chain"])
def test_weights_of_tfjs_in_another_order_are_refused(case: str, tmp_path: Path) -> None:
    """Inside a plugin's layer, where the order alone tells which is which."""
    load_plugins([USERS])
    model = as_tfjs(FIXTURES / f"tf.keras-2.15.0/{case}.h5", tmp_path / "web", turned=True)
    with pytest.raises(WeightMismatchError, match=r"is where .* is expected"):
        read_model(model)


RIGHT = ("level", "mix/kernel", "mix/bias")
HALVES = tuple(
    f"read/{half}/{name}"
    for half in ("forward_layer", "backward_layer")
    for name in ("kernel", "recurrent_kernel", "bias")
)


def seen_by(names: tuple[str, ...], model: Path, folder: Path) -> LayerSpec:
    text = converter("return 1", f'mask="drops", weights={names!r}', "NestedSteps")
    load_plugins([write_plugin(folder, text)])
    root = read_model(model).root
    return next(part for part in root.walk() if part.class_name == "NestedSteps")


def a_model(kind: str, folder: Path) -> Path:
    if kind == "untraced":
        return unpack("tf.keras-2.15.0/nested.untraced.tar", folder).model
    return FIXTURES / f"tf.keras-2.15.0/nested.{kind}"


@pytest.mark.parametrize("kind", ["h5", "keras", "untraced"])
def test_the_cell_of_an_inner_layer_need_not_be_named(kind: str, tmp_path: Path) -> None:
    model = a_model(kind, tmp_path)
    assert tuple(seen_by((*RIGHT, *HALVES), model, tmp_path).weights) == (*RIGHT, *HALVES)


WRONG = {
    ("h5", "mixed"): "9 weights where the layer's plugin names 10 .*; name all .*: first/level:0, ",
    ("keras", "mixed"): "no weight mixed/kernel, which its plugin names; the file numbers the "
    "weights of this layer: 0, mix/0, mix/1, read/",
    ("untraced", "mixed"): "no weight mixed/kernel; the weights of this layer are .*mix/kernel",
    ("h5", ""): "9 weights where the layer's plugin names 3 .level, mix/kernel, mix/bias.",
    ("keras", ""): "weights that its plugin does not name: read/",
    ("untraced", ""): "has no place",
}


@pytest.mark.parametrize(("kind", "more"), WRONG)
def test_names_that_do_not_fit_are_refused_with_what_is_there(
    kind: str, more: str, tmp_path: Path
) -> None:
    names = (*RIGHT, *HALVES, f"{more}/kernel") if more else RIGHT
    with pytest.raises(WeightMismatchError, match=WRONG[kind, more]):
        seen_by(names, a_model(kind, tmp_path), tmp_path)


def test_names_in_another_order_than_the_file_shows_are_refused() -> None:
    """The attribute b holds the layer b, so its kernel cannot be that of another layer."""
    converts("Mine", weights=("a/kernel", "b/kernel"))(lambda layer: layer)
    entries = ("mine/b/kernel:0", "mine/dense/kernel:0")
    with pytest.raises(WeightMismatchError, match="is where b/kernel of its plugin is expected"):
        layer_entries(LayerSpec("Mine", "mine", {}, path=("mine",)), entries, "mine", KERAS2)
