"""A note on one layer of Keras in several places of a file, which becomes several modules."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import changed_config
from specs import FIXTURES

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.weights.repeated_layers import repeated_note

ONCE = FIXTURES / "keras-3.5.0/twice_wrapped_first.keras"
TWICE = FIXTURES / "tf.keras-2.15.0/twice_wrapped_first.h5"
PROVED = "one layer of Keras in several places: shared_dense, time_distributed; each place is"
ALIKE = "the same name and weights in several places: shared_dense, time_distributed; if that"


def notes(path: Path, *, values: bool = True) -> list[str]:
    spec, _ = read_with_problems(path, values=values)
    return [note for note in spec.notes if "several places" in note]


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [(ONCE, True, PROVED), (ONCE, False, PROVED), (TWICE, True, ALIKE)],
)
def test_one_layer_in_two_places_is_noted(path: Path, values: bool, words: str) -> None:
    (note,) = notes(path, values=values)
    assert note.startswith(words)
    assert note.endswith("trains apart unless you share it (docs/training.md)")


def test_weights_that_were_not_read_are_not_called_the_same() -> None:
    assert not notes(TWICE, values=False)


def test_layers_of_one_name_and_other_or_fresh_weights_are_not_one(tmp_path: Path) -> None:
    path = Path(shutil.copy(TWICE, tmp_path))
    with h5py.File(path, "r+") as file:
        place = file["model_weights/time_distributed"]
        kernel = next(place[name] for name in place.attrs["weight_names"] if "kernel" in name)
        kernel[2, 3] += 1
    assert not notes(path)
    with h5py.File(path, "r+") as file:
        for place in ("shared_dense", "time_distributed"):
            group = file["model_weights"][place]
            for name in group.attrs["weight_names"]:
                group[name][...] = np.float32(0.5)
    assert not notes(path)


def test_many_places_are_counted() -> None:
    spec, _ = read_with_problems(ONCE)
    dense = next(one for one in spec.root.walk() if one.name == "shared_dense")
    layers = {(f"model_{n}", "layer", "shared_dense"): dense for n in range(5)}
    (note,) = repeated_note(layers, {key: {} for key in layers})
    assert (
        "places: model_0/shared_dense, model_1/shared_dense, model_2/shared_dense and 2 more"
        in note
    )


def test_a_branch_of_keras_1_is_one_only_where_all_of_it_is_repeated(tmp_path: Path) -> None:
    source = FIXTURES / "keras-1.2.2" / "merge_first_memory.h5"
    spec, problems = read_with_problems(source)
    assert problems == []
    assert [layer.name for layer in spec.root.walk()].count("embedding_2") == 1

    def change(model: dict[str, Any]) -> None:
        question = model["config"][0]["config"]["layers"][1]["config"]
        assert question[0]["config"]["name"] == "embedding_2"
        question[0]["config"]["output_dim"] = 7

    other = changed_config(source, tmp_path / "other.h5", change)
    with pytest.raises(InvalidModelFileError, match="2 layers are called embedding_2_input"):
        read_with_problems(other)
