"""Converted models of consecutive recurrent layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from specs import TF_KERAS, bi, chain, rnn

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.spec import LayerSpec, ModelSpec


def two(cell: str, features: int, merge: str | None = "concat", **options: Any) -> LayerSpec:
    """A Bidirectional of random weights."""
    halves = (rnn(cell, features=features, seed=features + i, **options) for i in range(2))
    return replace(bi(*halves, merge), name=f"bi_{features}_{merge}")


def model_of(*specs: LayerSpec) -> Any:
    return build(ModelSpec(chain(*specs), TF_KERAS), dtype="float32")
