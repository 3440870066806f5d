"""The rows of drawn inputs: a number that an operation demands, where no input declares it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from specs import FIXTURES, TF_KERAS, chain, fixture

import keras2torch_birnn as k2t
from keras2torch_birnn.reference import compute, sample_inputs
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.spec import LayerSpec, ModelSpec

# Each broadcasts a tensor to five rows.
FIXED = (
    "tf-2.2.3/ops_node_shapes.h5",
    "tf.keras-2.15.0/ops_tf_shapes.keras",
    "keras-3.15.1/ops_shapes.keras",
)


@pytest.mark.parametrize("name", FIXED)
def test_rows_are_those_that_an_operation_demands(name: str) -> None:
    spec = fixture(name).spec
    drawn = draw_inputs(spec, steps=7, seed=0)
    assert {len(x) for x in drawn} == {5}
    compute(spec, drawn)  # fails for other rows


def test_rows_reach_the_index_of_a_slice() -> None:
    """``x[4]`` of a batch, where no option is the number of rows."""
    fifth = LayerSpec("ops.GetItem", "fifth", {"key": (4,)})
    (drawn,) = draw_inputs(ModelSpec(chain(fifth, shape=(None, 7, 3)), TF_KERAS), steps=7, seed=0)
    assert drawn.shape == (5, 7, 3)


def test_other_models_keep_the_usual_rows() -> None:
    """Their operations name sizes, too, but fit any batch."""
    spec = fixture("tf.keras-2.15.0/ops_tf_reduce.keras").spec
    assert {len(x) for x in draw_inputs(spec, steps=7, seed=0)} == {3}


def test_not_more_sizes_are_tried_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_inputs, "MAX_TRIED_BATCHES", 0)
    spec = fixture(FIXED[1]).spec
    assert {len(x) for x in draw_inputs(spec, steps=7, seed=0)} == {3}


def test_a_model_of_one_batch_is_converted_and_verified(tmp_path: Path) -> None:
    source, out = FIXTURES / FIXED[1], tmp_path / "out.pt"
    model = k2t.convert(source)
    k2t.save(model, out)
    assert k2t.verify(source, out).ok
    inputs = [torch.from_numpy(x) for x in draw_inputs(fixture(FIXED[1]).spec, steps=7, seed=1)]
    assert len(model(*inputs)) > 1
