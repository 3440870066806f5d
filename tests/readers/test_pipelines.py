"""A Pipeline is the chain of its layers, and casts nothing; what differs from that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import FIXTURES, changed_config

from keras2torch_birnn import UnsupportedOptionError, convert
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.calls import resolve_masks
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.spec import TensorRef

LIVE = FIXTURES / "keras-3.15.1"
# Of ``pipeline_masked``: where a mask is passed to a first layer that takes one, and to another.
TAKES, TAKES_NONE = "pipeline_1", "pipeline_2"


def test_whole_numbers_stay_whole_in_a_pipeline_of_layers_that_keep_them() -> None:
    whole = torch.arange(5 * 30).reshape(5, 3, 5, 2)
    model = convert(LIVE / "pipeline_integers.keras")
    flipped, flat, scaled, _ = model(whole, torch.ones(5, 7, dtype=torch.long))
    assert flipped.is_floating_point()
    assert not flat.is_floating_point()
    assert scaled.is_floating_point()


def test_a_pipeline_called_with_whole_numbers_and_floats_takes_floats(tmp_path: Path) -> None:
    def call_again(model: dict[str, Any]) -> None:
        """Call the Pipeline that flattens whole numbers with the floats that the last one gives."""
        chain = {e["config"]["name"]: e for e in model["config"]["layers"]}
        last, flat = (chain[f"pipeline_{number}"] for number in (3, 2))
        node = {"args": [history(last["config"]["name"])], "kwargs": {}}
        flat["inbound_nodes"].append(node)
        model["config"]["output_layers"].append([flat["config"]["name"], 1, 0])

    def history(name: str) -> dict[str, Any]:
        config = {"shape": [None, 3, 5, 2], "dtype": "float32", "keras_history": [name, 0, 0]}
        return {"class_name": "__keras_tensor__", "config": config}

    path = changed_config(LIVE / "pipeline_integers.keras", tmp_path / "m.keras", call_again)
    model = convert(path)
    whole = torch.arange(5 * 30).reshape(5, 3, 5, 2)
    *_, again = model(whole, torch.ones(5, 7, dtype=torch.long))
    torch.testing.assert_close(again, whole.flatten(1) * 0.1)


def test_a_mask_reaches_the_first_layer_of_a_pipeline_alone() -> None:
    spec = read_model(LIVE / "pipeline_masked.keras")
    masks = {call.layer: call.kwargs.get("mask") for call in spec.graph.calls}
    assert masks[TAKES] == TensorRef("k")
    assert masks[TAKES_NONE] is None


def test_a_passed_mask_of_a_keras_that_hands_on_another_is_refused() -> None:
    spec, parsing = read_model(LIVE / "pipeline_masked.keras"), Parsing(generation_of("3.10.0"))
    resolve_masks(spec.graph, parsing)
    assert [problem.place for problem in parsing.problems] == [TAKES]
    with pytest.raises(UnsupportedOptionError, match="a mask into a Pipeline that begins with"):
        raise parsing.problems[0]


def with_two_tensors(model: dict[str, Any]) -> None:
    entry = next(e for e in model["config"]["layers"] if e["class_name"] == "Pipeline")
    entry["inbound_nodes"][0]["args"] *= 2


def with_a_mask_before(model: dict[str, Any]) -> None:
    mask = {"class_name": "Masking", "config": {"name": "m"}, "module": "keras.layers"}
    model["config"]["layers"].insert(1, mask)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("pipeline_shared", with_two_tensors, "a Pipeline that is called with several tensors"),
        ("pipeline_steps", with_a_mask_before, "a mask into TimeDistributed over a Pipeline"),
    ],
)
def test_what_a_pipeline_does_not_take_is_refused(
    file: str, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = changed_config(LIVE / f"{file}.keras", tmp_path / "m.keras", change)
    with pytest.raises(UnsupportedOptionError, match=message):
        convert(path)
