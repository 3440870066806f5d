"""Large models: work that grows as the model does, no recursion over layers, bounded sharing."""

from __future__ import annotations

import cProfile
import gc
import pstats
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import synthetic
import torch
from same_models import assert_same_outputs
from sampling import rest_thorough

import keras2torch_birnn as birnn
from keras2torch_birnn import limits
from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.layers.model_graph import attribute_names
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.saving.content import parse_spec, read_content


def convert_save_load_verify(path: Path, out: Path) -> torch.nn.Module:
    model = birnn.convert(path)
    birnn.save(model, out)
    loaded = birnn.load(out)
    x = torch.randn(2, 3)
    assert_same_outputs(loaded(x), model(x))
    report = birnn.verify(path, out, against="reference")
    assert report.ok
    return model


# Nested calls that a test may make, and more layers than that.
DEPTH, LAYERS = 400, 500


@pytest.fixture
def shallow_stack(tmp_path: Path) -> Iterator[None]:
    """Allow fewer nested calls than Python does, 1,000: so fewer layers show a recursion."""
    synthetic.chain(tmp_path / "first.h5", 2)
    convert_save_load_verify(tmp_path / "first.h5", tmp_path / "first.pt")  # imports are nested
    allowed, here = sys.getrecursionlimit(), sys._getframe()
    sys.setrecursionlimit(DEPTH + sum(1 for _ in traceback.walk_stack(here)))
    yield
    sys.setrecursionlimit(allowed)


@pytest.mark.thorough
@pytest.mark.usefixtures("shallow_stack")
@pytest.mark.parametrize(
    ("kind", "suffix", "tensors"),
    [("functional", ".safetensors", LAYERS), ("chain", ".pt", 2 * LAYERS)],
)
def test_a_model_larger_than_the_stack_goes_all_the_way(
    kind: str, suffix: str, tensors: int, tmp_path: Path
) -> None:
    synthetic.KINDS[kind](tmp_path / "m.h5", LAYERS)
    model = convert_save_load_verify(tmp_path / "m.h5", tmp_path / f"m{suffix}")
    assert len(model.state_dict()) == tensors


def calls(function: Callable[[], Any]) -> int:
    """Calls of Python and C functions: the same on every machine, unlike seconds.

    Not those of the garbage collector, which other tests have left work to.
    """
    profile = cProfile.Profile()
    gc.collect()
    gc.disable()
    try:
        profile.runcall(function)
    finally:
        gc.enable()
    return int(vars(pstats.Stats(profile))["total_calls"])


# The least number of layers; "functional" has a layer and a merge for each two.
KINDS = [("chain", 3), ("functional", 4), ("recurrent", 2), ("inner", 3)]


@pytest.mark.parametrize(("kind", "least"), rest_thorough(KINDS, KINDS[:1]))
def test_twice_the_layers_are_twice_the_work(kind: str, least: int, tmp_path: Path) -> None:
    """At most a 590th of what one layer takes may grow with the square of their number."""

    def everything(layers: int) -> None:
        path, out = tmp_path / f"{layers}.h5", tmp_path / f"{layers}.pt"
        birnn.save(birnn.convert(path), out)
        birnn.load(out)
        birnn.verify(path, out, against="reference")
        birnn.inspect(path)

    sizes = (least, 2 * least, 4 * least)
    for layers in sizes:
        synthetic.KINDS[kind](tmp_path / f"{layers}.h5", layers)
    everything(least)  # what is imported and kept once
    (tmp_path / f"{least}.pt").unlink()  # to write over a file takes more
    # What is not per layer falls out of the differences.
    work = [calls(partial(everything, layers)) for layers in sizes]
    assert work[2] - work[1] < 2.02 * (work[1] - work[0])


@pytest.mark.parametrize(
    ("depth", "calls"), rest_thorough([(48, 1), (4, 3)], [(4, 3)]), ids=["50 deep", "shared"]
)
def test_models_in_models_convert(depth: int, calls: int, tmp_path: Path) -> None:
    synthetic.nested(tmp_path / "m.h5", depth, calls)
    convert_save_load_verify(tmp_path / "m.h5", tmp_path / "m.pt")


def test_a_billion_calls_in_a_small_file_are_refused(tmp_path: Path) -> None:
    synthetic.nested(tmp_path / "m.h5", 30, 2)
    with pytest.raises(InvalidModelFileError, match=r"make \d+ calls of layers, more than 50000"):
        read_model(tmp_path / "m.h5")


def test_a_billion_calls_in_the_text_of_out_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.nested(tmp_path / "m.h5", 6, 2)
    birnn.save(birnn.convert(tmp_path / "m.h5"), tmp_path / "m.pt")
    content = read_content(tmp_path / "m.pt")
    parse_spec(content)
    monkeypatch.setattr("keras2torch_birnn.readers.config.checks.MAX_CALLS", 100)
    with pytest.raises(InvalidModelFileError, match="calls of layers, more than 100"):
        parse_spec(content)
    assert limits.MAX_CALLS == 50_000


def test_names_that_collide_stay_short_and_unique() -> None:
    names = ["layer_2", *(chr(0x4E00 + i) for i in range(20_000)), "layer_3"]
    found = attribute_names(names)
    assert len(set(found.values())) == len(names)
    assert max(map(len, found.values())) < 16


def test_a_name_that_is_taken_gets_an_underscore() -> None:
    found = attribute_names(["forward", "forward_", "a b", "a-b", "a_b", "class", "1", "", "Self"])
    assert found == {
        "forward": "forward_",
        "forward_": "forward__",
        "a b": "a_b",
        "a-b": "a_b_",
        "a_b": "a_b_2",
        "class": "class_",
        "1": "layer_1",
        "": "layer_",
        "Self": "Self_",
    }
