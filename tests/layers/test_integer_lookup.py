"""IntegerLookup: indices, vocabularies in the file, and what adapt() computed."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import changed_config
from spec_parity import agree, assert_gives, integer_model
from specs import FIXTURES, layer

from keras2torch_birnn.building import build
from keras2torch_birnn.errors import InvalidModelFileError, UnsupportedOptionError
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.running import flat
from keras2torch_birnn.spec import Cut

# ---- IntegerLookup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3, 0, 0, 0]),
        ({"mask_token": 0}, [2, 3, 4, 1, 0, 1]),
        ({"mask_token": 0, "num_oov_indices": 3}, [4, 5, 6, 2, 0, 2]),
        ({"num_oov_indices": 0}, [0, 1, 2, -1, -1, -1]),
        ({"vocabulary": [0, -1, 5, 7, 2], "mask_token": 0}, [2, 3, 4, 1, 0, 1]),
        ({"vocabulary": [-1, 5, 7, 2]}, [1, 2, 3, 0, 0, 0]),
        ({"vocabulary": [4, 5, 7, 2], "oov_token": None}, [2, 3, 4, 0, 0, 1]),
    ],
)
def test_numbers_have_the_place_that_keras_gives_them(options: Any, expected: Any) -> None:
    """5, 7 and 2 are in the list; -2, 0 and 4 mostly not."""
    one = layer("IntegerLookup", "own", **{"vocabulary": [5, 7, 2], **options})
    if "oov_token" in options:
        one = replace(one, config={**one.config, "oov_token": None})
    assert_gives(integer_model(one, 6), [np.array([[5, 7, 2, -2, 0, 4]])], [expected])


def test_a_list_of_numbers_is_shown_and_its_numbers_are_drawn() -> None:
    one = layer("IntegerLookup", "own", vocabulary=[500, 7, 20000], num_oov_indices=2)
    assert "keys=(3,), places=(3,), mode='int', depth=5, others=2" in repr(convert_layer(one))
    (drawn,) = draw_inputs(integer_model(one, 99), steps=7, seed=0)
    assert set(np.unique(drawn)) == {7, 500, 20000, 20001}
    agree(integer_model(replace(one, config={**one.config, "output_mode": "count"}), 99), drawn)


# ---- what adapt() found ------------------------------------------------------------------------

ADAPTED = FIXTURES / "keras-3.15.1" / "lookup_adapted.keras"


TEXT = "assets/layers/integer_lookup/vocabulary.txt"


def replace_vocabulary(path: Path, text: str | None) -> Path:
    """The archive with another text in one of its vocabularies, or without it."""
    with zipfile.ZipFile(ADAPTED) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != TEXT:
                new.writestr(name, old.read(name))
            elif text is not None:
                new.writestr(name, text)
    return path


def test_a_vocabulary_of_the_archive_is_taken_from_its_place(tmp_path: Path) -> None:
    """Later Keras ends the text with a line that is empty; special tokens may be left out."""
    for text, expected in (("0\n-1\n5\n7\n", (0, -1, 5, 7)), ("5\n7\n-2", (5, 7, -2))):
        root = read_model(replace_vocabulary(tmp_path / "m.keras", text)).root
        assert root.graph is not None
        found = {layer.name: layer.config.get("vocabulary") for layer in root.graph.layers}
        assert found["integer_lookup"] == expected
        assert found["integer_lookup_1"] == (-1, -1, 16, 11, 4)


def test_a_lookup_without_its_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"what adapt\(\) found is not in this file"):
        read_model(replace_vocabulary(tmp_path / "m.keras", None))


@pytest.mark.parametrize("text", ["", "\n", "5\nseven", "5\n1.5", f"{2**63}", "5 7", "+5", "5\r\n"])
def test_a_vocabulary_that_holds_no_numbers_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="where whole numbers of 64 bits are expected"):
        read_model(replace_vocabulary(tmp_path / "m.keras", text))


def keep_the_first_branch(model: dict[str, Any]) -> None:
    """Leave one lookup, the layers behind it, and one output."""
    config = model["config"]
    kept = ("a", "integer_lookup", "embedding", "bidirectional")
    config["layers"] = [one for one in config["layers"] if one["name"] in kept]
    config["input_layers"] = [["a", 0, 0]]
    config["output_layers"] = [["bidirectional", 0, 0]]


def test_a_lookup_without_its_vocabulary_can_be_cut_off(tmp_path: Path) -> None:
    """By the command in the refusal; the part is what Keras computed behind the lookup."""
    file = tmp_path / "m.keras"
    changed_config(replace_vocabulary(tmp_path / "all.keras", None), file, keep_the_first_branch)
    words = (
        rf"vocabulary=layer.get_vocabulary\(\), or cut it off: k2t convert {re.escape(str(file))} "
        "OUT --from embedding$"
    )
    with pytest.raises(UnsupportedOptionError, match=words):
        read_model(file)
    part = read_model(file, cut=Cut(("embedding",)))
    with np.load(ADAPTED.with_suffix(".npz")) as recorded:
        ids, wanted = recorded["out_0"], recorded["out_1"]
    np.testing.assert_allclose(compute(part, [ids]).outputs[0], wanted, atol=1e-5, rtol=1e-4)
    (got,) = flat(build(part)(torch.from_numpy(ids)))
    np.testing.assert_allclose(got.detach().numpy(), wanted, atol=1e-5, rtol=1e-4)


def test_a_lookup_that_is_an_output_gets_no_such_advice(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOptionError, match=r"vocabulary=layer.get_vocabulary\(\)$"):
        read_model(replace_vocabulary(tmp_path / "m.keras", None))
