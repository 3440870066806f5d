"""SpectralNormalization: read as the layer in it, whose kernel the file holds normalized."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import FIXTURES, changed_config, changed_h5, changed_layer, layer
from commands import k2t as run
from hdf5_files import datasets

import keras2torch_birnn as k2t
from keras2torch_birnn.readers import read_with_problems

SOURCE = FIXTURES / "keras-3.15.1" / "spectral.h5"
ARCHIVE = SOURCE.with_suffix(".keras")
OLD = FIXTURES / "tf.keras-2.15.0" / "spectral.h5"
NAMES = (
    "spectral_normalization",
    "time_distributed/spectral_normalization_1",
    "spectral_normalization_2",
)


@pytest.mark.parametrize("source", [SOURCE, ARCHIVE], ids=lambda path: path.suffix)
def test_it_becomes_the_layer_in_it_with_a_note_on_training(source: Path) -> None:
    spec, problems = read_with_problems(source)
    assert problems == []
    found = [note.partition(":")[0] for note in spec.notes if "SpectralNormalization" in note]
    assert tuple(found) == NAMES
    first = spec.graph.layer("spectral_normalization")
    assert (first.class_name, sorted(first.weights)) == ("Conv1D", ["bias", "kernel"])
    assert not any("spectral" in part.semantics for part in spec.root.walk())


def test_the_state_of_the_power_iteration_has_no_effect(tmp_path: Path) -> None:
    def clear(file: Any) -> None:
        for path, array in datasets(file).items():
            if path.endswith("vector_u"):
                array[...] = 7

    one = k2t.convert(SOURCE).state_dict()
    other = k2t.convert(changed_h5(SOURCE, tmp_path / "other.h5", clear)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_its_shape_is_checked_all_the_same(tmp_path: Path) -> None:
    def cut(file: Any) -> None:
        place = next(path for path in datasets(file) if path.endswith("vector_u"))
        del file[place]
        file[place] = np.ones((1, 3), np.float32)

    with pytest.raises(k2t.WeightMismatchError, match=r"vector_u \(1, 3\), the configuration"):
        k2t.convert(changed_h5(SOURCE, tmp_path / "cut.h5", cut))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layer": None}, k2t.InvalidModelFileError, "a wrapper without layer"),
        ({"layer": {"class_name": "Dense"}}, k2t.InvalidModelFileError, "a wrapper without layer"),
        (
            {"layer": {"class_name": "LSTM", "config": {"name": "lstm"}}},
            k2t.UnsupportedLayerError,
            "SpectralNormalization over LSTM is not supported; it takes Dense, EinsumDense",
        ),
        (
            {"layer": {"class_name": "Dense", "module": "mine", "config": {"name": "d"}}},
            k2t.UnsupportedLayerError,
            "SpectralNormalization over Dense is not supported",
        ),
        ({"power_iterations": 0}, k2t.UnsupportedOptionError, "power_iterations=0 is not that of"),
        ({"power_iterations": None}, k2t.UnsupportedOptionError, "with power_iterations=None is"),
        ({"dtype": "float64"}, k2t.UnsupportedOptionError, "of another dtype than the layer in it"),
        ({"axis": 3}, k2t.UnsupportedOptionError, "power_iterations=1, axis is not that of Keras"),
    ],
)
def test_what_is_not_that_of_keras_is_refused(
    options: Mapping[str, Any], error: type[k2t.K2TError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        k2t.convert(changed_layer(SOURCE, tmp_path / "other.h5", NAMES[0], **options))


def test_a_class_of_this_name_from_a_keras_that_has_none_is_the_users_own(tmp_path: Path) -> None:
    def age(file: Any) -> None:
        file.attrs["keras_version"] = "2.12.0"
        file["model_weights"].attrs["keras_version"] = "2.12.0"

    old = changed_h5(OLD, tmp_path / "old.h5", age)
    with pytest.raises(k2t.K2TError, match="layer class SpectralNormalization is not supported"):
        k2t.convert(old)


def test_a_class_of_this_name_from_another_module_is_the_users_own(tmp_path: Path) -> None:
    def move(model: dict[str, Any]) -> None:
        layer(model, "spectral_normalization")["module"] = "my_layers"

    file = changed_config(ARCHIVE, tmp_path / "own.keras", move)
    with pytest.raises(k2t.K2TError, match="layer class SpectralNormalization is not supported"):
        k2t.convert(file)


def test_keras_3_cuts_what_it_makes_of_whole_numbers_and_tf_keras_does_not(tmp_path: Path) -> None:
    def take_integers(model: dict[str, Any]) -> None:
        first = model["config"]["layers"][0]
        assert first["class_name"] == "InputLayer"
        first["config"]["dtype"] = "int32"

    new = changed_config(SOURCE, tmp_path / "new.h5", take_integers)
    with pytest.raises(k2t.UnsupportedOptionError, match="Keras 3 cuts the result to such again"):
        k2t.convert(new)
    k2t.convert(changed_config(OLD, tmp_path / "old.h5", take_integers))


@pytest.mark.parametrize("flags", [(False, True), (True, False), (False, False)])
def test_it_is_frozen_if_it_or_the_layer_in_it_is(flags: tuple[bool, bool], tmp_path: Path) -> None:
    def freeze(model: dict[str, Any]) -> None:
        config = layer(model, "spectral_normalization")["config"]
        config["trainable"], config["layer"]["config"]["trainable"] = flags

    model = k2t.convert(changed_config(ARCHIVE, tmp_path / "frozen.keras", freeze))
    learns = {name: value.requires_grad for name, value in model.named_parameters()}
    held = {name for name in learns if name.startswith("spectral_normalization.")}
    assert held == {name for name, flag in learns.items() if not flag}
    assert len(held) == 2


def test_it_is_not_trained_as_keras_trains_it() -> None:
    with pytest.raises(k2t.UnsupportedLayerError, match="is converted for inference alone: Keras"):
        k2t.training(SOURCE)


@pytest.mark.parametrize("source", [SOURCE, ARCHIVE], ids=lambda path: path.suffix)
def test_only_what_is_unchanged_is_written_back(source: Path, tmp_path: Path) -> None:
    out, new = tmp_path / "out.pt", tmp_path / f"new{source.suffix}"
    model = k2t.convert(source)
    k2t.save(model, out)
    assert run("write-back", out, source, new).code == 0
    assert new.read_bytes() == source.read_bytes()
    with torch.no_grad():
        model.get_submodule("spectral_normalization").weight.add_(0.5)
    with pytest.raises(k2t.WeightMismatchError, match="is computed from the weights"):
        k2t.write_back(model, source, tmp_path / f"other{source.suffix}")


def test_it_goes_through_out_and_is_verified(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    model = k2t.convert(SOURCE)
    k2t.save(model, out)
    before, after = model.state_dict(), k2t.load(out).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run("verify", SOURCE, out).code == 0
