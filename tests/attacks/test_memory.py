"""A small file never needs much memory, whatever sizes its options ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specs import KERAS3, chain, dense, layer

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.limits import MAX_FREE_VALUES
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.rounding import difference
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema.shape_inference import check_batch_memory, limit_rows
from keras2torch_birnn.spec import ModelSpec

CHILD = Path(__file__).with_name("memory_child.py")
MIB = 1 << 20
# On top of what the process has after a model of three units: a few arrays of the largest batch.
MOST = 192 * MIB


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Convert every model of the table in one process: what was said, and its peak memory."""
    done = subprocess.run([sys.executable, str(CHILD)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.thorough
def test_no_size_of_an_option_makes_a_small_file_need_much_memory(measured: dict[str, Any]) -> None:
    assert measured["peak"] - measured["start"] < MOST, measured
    refused = {name: said for name, said in measured["said"].items() if said != "converted"}
    few = {"half", "small"}
    assert refused.keys() == measured["said"].keys() - few
    words = ("a small batch makes ", "numbers, more than ")
    for said in refused.values():
        assert any(one in said for one in words) or "the configuration implies" in said, said


def test_each_id_is_compared_with_every_token() -> None:
    """The rows of a sample are one row in the end, which is all that its output shows."""
    encoding = layer("CategoryEncoding", "encoding", num_tokens=MAX_FREE_VALUES // 100)
    model = ModelSpec(chain(encoding, shape=(None, 997)), KERAS3)
    with pytest.raises(UnsupportedOptionError, match="that its weights allow"):
        check_batch_memory(model, [(1, 997)])
    check_batch_memory(model, [(1, 7)])


def test_the_reference_encodes_ids_without_a_row_for_each_token() -> None:
    tokens = 200_003  # a matrix of all rows has 320 GB
    encoding = layer("CategoryEncoding", "encoding", num_tokens=tokens, output_mode="count")
    model = ModelSpec(chain(encoding, shape=(None, 3)), KERAS3)
    (rows,) = compute(model, [np.array([[7, 200_002, 7]])]).outputs
    assert rows.shape == (1, tokens)
    assert (rows[0, 7], rows[0, 200_002], rows.sum()) == (2, 1, 3)


def repeated(steps: int, units: int = 3) -> ModelSpec:
    layers = [layer("RepeatVector", "repeat", n=steps), dense(units, 1, seed=1)]
    return ModelSpec(chain(*layers, shape=(None, 1)), KERAS3)


def test_a_batch_may_grow_with_the_weights() -> None:
    """A layer of a million weights allows for its values."""
    steps, units = MAX_FREE_VALUES // 2000, 1021
    with pytest.raises(UnsupportedOptionError, match="that its weights allow"):
        check_batch_memory(repeated(steps, units), [(1, 1)])
    idle = dense(units, units, seed=2)
    layers = [layer("RepeatVector", "repeat", n=steps), dense(units, 1, seed=1), idle]
    enough = ModelSpec(chain(*layers, shape=(None, 1)), KERAS3)
    check_batch_memory(enough, [(1, 1)])
    with pytest.raises(UnsupportedOptionError, match="that its weights allow"):
        check_batch_memory(enough, [(3, 1)])
    assert limit_rows(enough, [(1, 1)], 3) == 1


def test_a_large_batch_has_fewer_rows() -> None:
    assert draw_inputs(repeated(MAX_FREE_VALUES // 18), steps=7, seed=0)[0].shape == (2, 1)
    assert draw_inputs(repeated(7), steps=7, seed=0)[0].shape == (3, 1)


def test_the_reference_keeps_outputs_of_layers_only_where_they_are_wanted() -> None:
    model = repeated(5)
    x = np.ones((2, 1))
    kept, gone = compute(model, [x]), compute(model, [x], keep=False)
    assert set(kept.layers) == {"chain_input", "repeat", "dense_1"}
    assert (dict(gone.layers), dict(gone.masks)) == ({}, {})
    np.testing.assert_array_equal(kept.outputs[0], gone.outputs[0])


def test_large_outputs_are_compared_in_blocks_with_the_same_result() -> None:
    a = np.zeros((3, 1 << 20), np.float32)
    b = a.copy()
    b[2, -1], a[0, 5], b[0, 5] = 0.5, np.nan, np.nan
    assert difference(a, b) == 0.5
    b[1, 7] = np.nan
    assert difference(a, b) == np.inf
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
