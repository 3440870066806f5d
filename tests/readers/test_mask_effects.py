"""Effects of masks that are told without torch are those of the built models."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import MASKED
from fixture_files import FIXTURES
from package_source import nodes
from parsing_here import parsing_here
from specs import variants

import keras2torch_birnn.layers
from keras2torch_birnn.building import build
from keras2torch_birnn.layers.registry import mask_flow
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.config.mask_effects import HAND_ON, REFUSED_LATE, find_mask_effects
from keras2torch_birnn.schema import CLASSES

FILES = [
    one
    for one in sorted(FIXTURES.glob("*keras-*/*"))
    if one.suffix in (".h5", ".keras") and "weights" not in one.name
]


def agree(files: list[Path]) -> Iterator[bool]:
    """Compare both ways for each file that can be read; yield whether the short one answers."""
    for file in files:
        with parsing_here():
            spec, problems = read_with_problems(file, values=False)
        found = None if problems else find_mask_effects(spec.root)
        if found is not None:
            assert found == build(spec).meta["masks"], file
        yield found is not None


def test_masks_of_a_stack_are_told_without_torch() -> None:
    assert find_mask_effects(read_with_problems(MASKED)[0].root) == {
        "embedding": "makes it",
        "bidirectional": "uses it",
        "bidirectional_1": "uses it",
        "dense": "passes it on",
    }


def test_the_built_models_have_the_same_masks() -> None:
    masked = sorted((FIXTURES / "keras-3.15.1").glob("*mask*.keras"))
    answers = list(agree([*masked[::2], *FILES[::150]]))
    assert sum(answers) > len(answers) / 3


@pytest.mark.thorough
def test_the_built_models_of_all_generations_have_the_same_masks() -> None:
    answers = list(agree(FILES[::7]))
    assert sum(answers) > len(answers) / 3


@pytest.mark.parametrize("class_name", sorted(HAND_ON - {"InputLayer"}))
def test_a_layer_that_hands_on_a_mask_does_so_in_all_versions(class_name: str) -> None:
    for one in variants(class_name):
        flow = mask_flow(one)
        assert (flow.takes, flow.makes, flow.after, flow.every) == (False, False, "same", False)


def test_layers_that_are_refused_when_they_are_built_are_listed() -> None:
    """A page whose builders refuse more than masks is looked at only by building it."""
    pages = {
        module.stem
        for module in Path(keras2torch_birnn.layers.__file__).parent.glob("*.py")
        if any(
            isinstance(node, ast.Name) and node.id == "UnsupportedOptionError"
            for node in nodes(module)
        )
    }
    pages -= {"registry", "graph"}  # plugins, and masks
    assert pages == {"operations", "time_distributed", "normalization", "resizing"}
    plain = ("Cropping", "ZeroPadding")
    assert all(one.startswith(plain) for one in {*CLASSES["resizing"]} - REFUSED_LATE)
