"""Converted models of consecutive recurrent layers, and how to call their layers one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from specs import TF_KERAS, bi, chain, rnn

from keras2torch_birnn.building import build
from keras2torch_birnn.layers.one_call import OneCall
from keras2torch_birnn.rnn.at_once import AtOnce
from keras2torch_birnn.rnn.chain import Chain
from keras2torch_birnn.spec import LayerSpec, ModelSpec


def two(cell: str, features: int, merge: str | None = "concat", **options: Any) -> LayerSpec:
    """A Bidirectional of random weights."""
    halves = (rnn(cell, features=features, seed=features + i, **options) for i in range(2))
    return replace(bi(*halves, merge), name=f"bi_{features}_{merge}")


def model_of(*specs: LayerSpec) -> Any:
    return build(ModelSpec(chain(*specs), TF_KERAS), dtype="float32")


@contextmanager
def without_programs() -> Iterator[None]:
    """Call a model's layers, not its program."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OneCall, "run", lambda *_: None)
        yield


@contextmanager
def one_by_one() -> Iterator[None]:
    """Run the layers of a stack or a chain one after the other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AtOnce, "run", lambda *_: None)
        patched.setattr(Chain, "_call_at_once", lambda *_: None)
        yield
