"""An Input of text is refused by name in TensorFlow's containers, never taken for ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import MASKED
from tensorflow_files import model_tree, write_checkpoint, write_saved_model, write_tfjs

import keras2torch_birnn as k2t

# The model begins with an Embedding.
WORDS = "Embedding computes with an input of dtype string; not supported"


def of_text(model: dict[str, Any]) -> dict[str, Any]:
    """Return the architecture with an Input of text."""
    first, *others = model["config"]["layers"]
    first = {**first, "config": {**first["config"], "dtype": "string"}}
    return {**model, "config": {**model["config"], "layers": [first, *others]}}


def test_a_saved_model_of_text_is_refused(tmp_path: Path) -> None:
    root, _ = model_tree(MASKED)
    assert root.metadata is not None
    root.metadata = of_text(root.metadata)
    with pytest.raises(k2t.UnsupportedOptionError, match=WORDS):
        k2t.convert(write_saved_model(tmp_path / "m", root))


def test_a_checkpoint_with_the_architecture_of_a_model_of_text_is_refused(tmp_path: Path) -> None:
    root, model = model_tree(MASKED)
    write_checkpoint(tmp_path / "ckpt", root)
    config = tmp_path / "arch.json"
    config.write_text(json.dumps(of_text(model)), encoding="utf-8")
    with pytest.raises(k2t.UnsupportedOptionError, match=WORDS):
        k2t.convert(tmp_path / "ckpt", config=config)


LOOK = {"name": "look", "trainable": True, "vocabulary": ["a", "b"]}


@pytest.mark.parametrize(
    ("lookup", "words"),
    [
        (None, WORDS),
        (
            {"class_name": "Hashing", "config": {"name": "look", "num_bins": 17}},
            "layer class Hashing is not supported",
        ),
        ({"class_name": "StringLookup", "config": LOOK}, "StringLookup layer looks up text"),
        ({"class_name": "TextVectorization", "config": LOOK}, "TextVectorization layer"),
    ],
)
def test_a_model_of_text_of_javascript_is_refused(
    lookup: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    def change(model: dict[str, Any]) -> None:
        topology = model["modelTopology"]
        topology["model_config"] = changed = of_text(topology["model_config"])
        if lookup is not None:
            changed["config"]["layers"].insert(1, lookup)

    file = write_tfjs(tmp_path / "m", MASKED, change=change)
    with pytest.raises(k2t.K2TError, match=words):
        k2t.convert(file)
