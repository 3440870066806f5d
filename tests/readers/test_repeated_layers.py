"""A note on one layer of Keras in several places of a file, which becomes several modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import changed_config
from specs import FIXTURES

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers import read_model, read_with_problems

ONCE = FIXTURES / "keras-3.5.0/twice_wrapped_first.keras"
TWICE = FIXTURES / "tf.keras-2.15.0/twice_wrapped_first.h5"
PROVED = "one layer of Keras in several places: shared_dense, time_distributed; each place is"


def test_one_layer_in_two_places_is_noted() -> None:
    (note,) = [note for note in read_model(ONCE).notes if "several places" in note]
    assert note.startswith(PROVED)
    assert note.endswith("trains apart unless you share it (docs/training.md)")


def test_a_file_that_holds_its_weights_twice_does_not_tell() -> None:
    assert not [note for note in read_model(TWICE).notes if "several places" in note]


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
