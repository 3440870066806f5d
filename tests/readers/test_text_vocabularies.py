"""Vocabularies of layers that were cut off: found where a file has them, and enough for ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cut_fixtures import CUT, ROWS, cut_of, recorded, unpacked
from specs import FIXTURES

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.config.parsing import TextLayer, Whole, text_layer
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.steps import (
    Reading,
    infer_shapes,
    parse,
    read_vocabularies,
    read_weights,
)
from keras2torch_birnn.readers.weights.vocabularies import (
    Vocabulary,
    _as_numbers,
    find_vocabularies,
)
from keras2torch_birnn.spec import Cut, LayerSpec

PAGE = Path(__file__).parents[2] / "docs" / "cutting.md"
WITH_TEXT = [file for file, row in ROWS.items() if row["text"] is not None]
MISSING = "the vocabulary that adapt() found is not read from this file"


def read(model: Path, config: Path | None, cut: Cut) -> Reading:
    with open_container(model) as container:
        reading = infer_shapes(parse(container, config=config, cut=cut))
        return read_vocabularies(read_weights(reading, values=False))


def example() -> Any:
    """The function of the documentation."""
    source = re.search(
        r"```python\n(# text_to_ids\.py\n.*?)```", PAGE.read_text("utf-8"), re.DOTALL
    )
    assert source is not None
    names: dict[str, Any] = {}
    exec(compile(source[1], str(PAGE), "exec"), names)  # the page's own code
    return names["text_to_ids"]


def ids_of(layer: Vocabulary, lines: Any) -> Any:
    if layer.class_name == "TextVectorization":
        return example()(lines, layer.to_dict())
    assert layer.words is not None
    known = {word: number for number, word in enumerate(layer.words)}
    return [[known.get(letter, 0) for letter in row] for row in lines]


@pytest.mark.every(3)
@pytest.mark.parametrize("file", WITH_TEXT)
def test_the_vocabulary_makes_the_ids_of_keras(file: str, tmp_path: Path) -> None:
    row = ROWS[file]
    model, config = unpacked(file, tmp_path)
    reading = read(model, config, cut_of(file))
    found = {one.place: one for one in reading.vocabularies}
    text = [place for place in row["dropped"] if place in found]
    learned = row["case"] not in ("given_vocabulary", "letters")
    if learned and row["container"] != "keras":
        assert all(found[place].words is None for place in text)
        assert any(MISSING in note for note in reading.notes)
        return
    assert not any(MISSING in note for note in reading.notes)
    inputs, _ = recorded(file)
    if row["case"] in ("bags", "behind_a_users_layer"):  # no ids enter the part
        assert all(found[place].words for place in text)
        return
    for place, lines, wanted in zip(text * 2, row["text"], inputs, strict=False):
        np.testing.assert_array_equal(ids_of(found[place], lines), wanted)


def test_all_options_are_written() -> None:
    file = "keras-3.15.1/classify.keras"
    (layer,) = read(CUT / file, None, cut_of(file)).vocabularies
    written = json.loads(json.dumps(layer.to_dict()))
    assert written["layer"] == "vectorize"
    assert written["class"] == "TextVectorization"
    assert written["output_sequence_length"] == 7
    assert written["vocabulary"][:3] == ["", "[UNK]", "the"]
    assert written.keys() == {
        *("layer", "class", "vocabulary", "standardize", "split", "ngrams", "output_mode"),
        *("output_sequence_length", "max_tokens", "num_oov_indices", "oov_token", "mask_token"),
        *("ragged", "sparse", "encoding", "idf_weights", "pad_to_max_tokens"),
    }


# ---- by hand ------------------------------------------------------------------------------------


class _Texts:
    """A container without arrays."""

    vocabularies: Mapping[str, str] = {}


def of(layer: TextLayer) -> tuple[Vocabulary, tuple[str, ...]]:
    whole = Whole(LayerSpec("Sequential", "m", {}), frozenset(), {"it": layer})
    generation: Any = None
    container: Any = _Texts()
    (found,), notes = find_vocabularies(whole, container, generation)
    return found, notes


def test_special_words_come_first_and_once() -> None:
    two = {"num_oov_indices": 2, "oov_token": "?", "mask_token": "-"}
    words, _ = of(text_layer("StringLookup", {"vocabulary": ["a", "b"], **two}))
    assert words.words == ("-", "?", "?", "a", "b")
    again, _ = of(text_layer("StringLookup", {"vocabulary": ["-", "?", "?", "a"], **two}))
    assert again.words == ("-", "?", "?", "a")
    hot = {"vocabulary": ["a"], "output_mode": "multi_hot", **two}
    assert of(text_layer("StringLookup", hot))[0].words == ("?", "?", "a")


def test_numbers_are_looked_up_too() -> None:
    found, _ = of(text_layer("IntegerLookup", {"vocabulary": [7, 5], "mask_token": 0}))
    assert found.words == (0, -1, 7, 5)


def test_a_text_of_something_else_than_numbers_is_refused() -> None:
    layer = text_layer("IntegerLookup", {})
    with pytest.raises(InvalidModelFileError, match="something else than numbers"):
        _as_numbers(["", "-1", "x"], layer, "assets/vocabulary.txt")
    assert _as_numbers(["", "-1", "7"], layer, "") == [-1, 7]


def test_a_vocabulary_in_a_file_elsewhere_is_not_read() -> None:
    found, notes = of(text_layer("StringLookup", {"vocabulary": "/etc/passwd"}))
    assert found.words is None
    assert MISSING in notes[0]


def test_learned_weights_of_words_are_noted() -> None:
    _, notes = of(text_layer("TextVectorization", {"output_mode": "tf_idf", "vocabulary": ["a"]}))
    assert notes == ("it: its weights of words (tf_idf) are not read",)


def test_an_absurd_number_of_unknown_words_is_refused() -> None:
    with pytest.raises(InvalidModelFileError, match="num_oov_indices 1000000000000"):
        of(text_layer("StringLookup", {"vocabulary": ["a"], "num_oov_indices": 10**12}))


def test_the_fixtures_are_those_of_the_manifest() -> None:
    there = {str(path.relative_to(CUT)) for path in CUT.rglob("*") if path.is_file()}
    named = {*ROWS, *(row["arrays"] for row in ROWS.values()), "manifest.json"}
    more = {name for name in there - named if not name.endswith((".arch.json", ".prediction.json"))}
    assert more == set()
    assert named <= there
    assert FIXTURES in CUT.parents
