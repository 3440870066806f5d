"""``k2t.warm_up``: what the first requests would wait for is done before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from specs import FIXTURES
from torch import nn

import keras2torch_birnn as k2t

MASKED = FIXTURES / "tf.keras-2.15.0/mask_stack_bi_dense.h5"


def test_a_call_after_it_records_nothing() -> None:
    model = k2t.convert(MASKED)
    k2t.warm_up(model, [(5, 7), (2, 11)])
    known = dict(model._one_call._found)
    assert len(known) == 2
    with torch.no_grad():
        for sizes in ((5, 7), (2, 11)):
            model(torch.randint(0, 17, sizes, dtype=torch.int32))
    assert model._one_call._found == known


def test_states_and_modes_stay() -> None:
    model = k2t.convert(FIXTURES / "tf.keras-2.15.0/stateful_plain.h5")
    x = model.meta["keras2torch_birnn"].golden.inputs[0]
    with torch.no_grad():
        model(x)
        wanted = model(x)
        k2t.reset_states(model)
        model(x)
        model.train()
        frozen = next(m for m in model.modules() if m is not model)
        frozen.eval()
        k2t.warm_up(model, [tuple(x.shape)])
        assert model.training and not frozen.training
        model.eval()
        assert torch.equal(model(x), wanted)


def test_what_cannot_be_warmed_up_is_refused() -> None:
    with pytest.raises(k2t.UsageError, match=r"was not made by k2t\.convert"):
        k2t.warm_up(nn.Linear(3, 5), [(2, 3)])
    with pytest.raises(k2t.UsageError, match="shapes of 1 inputs are expected, found 2"):
        k2t.warm_up(k2t.convert(MASKED), [((5, 7), (5, 7))])
    wrong: Any = (5, 7)
    with pytest.raises(k2t.UsageError, match="a list of shapes is expected, found sizes"):
        k2t.warm_up(k2t.convert(MASKED), wrong)
    with pytest.raises(k2t.UsageError, match=r"shape \[5, -7\]: sizes of at least 1 are expected"):
        k2t.warm_up(k2t.convert(MASKED), [(5, -7)])
