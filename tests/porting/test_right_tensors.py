"""The tensors of a right port: what is no copy of a weight is never written into one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from specs import FIXTURES
from torch import nn

from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.porting import right_tensors
from keras2torch_birnn.porting.right_tensors import find_leaves
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.spec import LayerSpec

DENSE = FIXTURES / "keras-2.2.4/dense_only.h5"


def with_buffers(layer: LayerSpec) -> nn.Module:
    module = convert_layer(layer)
    weight = module.weight.detach()
    module.register_buffer("ones", torch.ones(5, dtype=weight.dtype))
    module.register_buffer("sums", weight[0] + weight[1])
    return module


def test_fixed_and_computed_values_are_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_tensors, "convert_layer", with_buffers)
    spec = read_model(DENSE)
    leaf = find_leaves(spec)[0]
    assert leaf.tensors.keys() == {"weight", "bias", "ones"}
    assert leaf.tensors["ones"].tolist() == [1.0] * 5
    right = leaf.layer.weights
    np.testing.assert_array_equal(leaf.tensors["weight"], right["kernel"].T)
    same = leaf.with_tensors({"ones": np.zeros(5)})
    changed = leaf.with_tensors({"weight": leaf.tensors["weight"] + 1})
    np.testing.assert_array_equal(same["kernel"], right["kernel"])
    np.testing.assert_array_equal(changed["kernel"], np.add(right["kernel"], 1, dtype=np.float64))
