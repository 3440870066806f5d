"""The derived way back: it follows the builders, and what is no copy is never taken for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from specs import FIXTURES
from torch import nn
from trained import differing, train, write_trained

import keras2torch_birnn as k2t
from keras2torch_birnn.layers import registry
from keras2torch_birnn.layers.core import dense
from keras2torch_birnn.layers.registry import Converter, MaskFlow
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.schema.recurrent import GATES, Gates
from keras2torch_birnn.trainers import new_values, writing_back

GRU = FIXTURES / "keras-2.3.1/mask_bi_gru_after_seq.h5"
DENSE = FIXTURES / "keras-2.2.4/dense_only.h5"


def test_the_way_back_follows_the_way_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another order of gates in the builder, that order is undone."""
    right = k2t.weights(GRU)
    h_first = GATES["GRU"]._replace(order=(2, 0, 1))
    monkeypatch.setitem(cast(dict[str, Gates], GATES), "GRU", h_first)
    model = k2t.convert(GRU)
    k2t.write_back(model, GRU, tmp_path / "same.h5")
    assert (tmp_path / "same.h5").read_bytes() == GRU.read_bytes()
    name = next(n for n in model.state_dict() if n.endswith("bias_ih_l0"))
    model.state_dict()[name][0] += 1  # the first of h
    k2t.write_back(model, GRU, tmp_path / "new.h5")
    new = k2t.weights(tmp_path / "new.h5")
    (changed,) = (n for n in right if right[n].tobytes() != new[n].tobytes())
    units = right[changed].shape[1] // 3
    assert np.argwhere(right[changed] != new[changed]).tolist() == [[0, 2 * units]]


@pytest.mark.parametrize("what", ["order", "half", "value", "skipped"])
def test_a_wrong_writer_is_noticed(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The written file is read again and compared, before it gets its name."""
    right = new_values.find_changed

    def wrong(*arguments: Any) -> dict[str, Any]:
        found = right(*arguments)
        path, values = next(iter(found.items()))
        if what == "order":
            found[path] = np.roll(values, 1)
        elif what == "half":
            values[: len(values) // 2] += 1
        elif what == "value":
            values.reshape(-1)[-1] = np.nextafter(values.reshape(-1)[-1], values.dtype.type(9))
        else:
            del found[path]
        return found

    monkeypatch.setattr(writing_back, "find_changed", wrong)
    model = train(k2t.convert(GRU))
    with pytest.raises(k2t.WeightMismatchError, match="would not be read back as it is in OUT"):
        k2t.write_back(model, GRU, tmp_path / "new.h5")
    assert not list(tmp_path.iterdir())


Build = Callable[[k2t.LayerSpec], nn.Module]


def with_builder(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    converters = {**registry.CONVERTERS, "Dense": Converter(build, MaskFlow())}
    monkeypatch.setattr(registry, "CONVERTERS", converters)


def linear(layer: k2t.LayerSpec, change: Callable[[Any, Any], tuple[Any, Any]]) -> nn.Module:
    if "bias" not in layer.weights:
        return dense(layer)
    kernel, bias = change(layer.weights["kernel"], layer.weights["bias"])
    module = nn.Linear(*kernel.shape, device="meta")
    module.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(kernel.T)))
    module.bias = nn.Parameter(torch.from_numpy(np.ascontiguousarray(bias)))
    return module


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel, bias: (kernel, bias + bias[::-1]),
        lambda kernel, bias: (kernel, bias * 2),
        lambda kernel, bias: (kernel, -bias),
        lambda kernel, bias: (kernel, bias + kernel.sum()),
        lambda kernel, bias: (kernel, np.sqrt(np.abs(bias))),
        lambda kernel, bias: (kernel * 1.5, bias),
    ],
)
def test_computed_values_are_no_copies(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untouched they may stay; changed there is no way back."""
    with_builder(monkeypatch, lambda layer: linear(layer, change))
    model = k2t.convert(DENSE)
    k2t.write_back(model, DENSE, tmp_path / "same.h5")
    assert (tmp_path / "same.h5").read_bytes() == DENSE.read_bytes()
    with pytest.raises(k2t.WeightMismatchError, match="is computed from the weights of the file"):
        k2t.write_back(train(model), DENSE, tmp_path / "new.h5")


@pytest.mark.parametrize(
    "change",
    [
        lambda kernel, bias: (kernel[::-1], bias),
        lambda kernel, bias: (np.roll(kernel, 3, axis=1), bias[::-1]),
    ],
)
def test_any_order_has_a_way_back(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_builder(monkeypatch, lambda layer: linear(layer, change))
    write_trained(DENSE, tmp_path / "new.h5")


def test_a_tensor_that_is_there_twice_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_builder(monkeypatch, lambda layer: linear(layer, lambda k, b: (k, b[:1].repeat(len(b)))))
    model = k2t.convert(DENSE)
    bias = next(t for n, t in model.state_dict().items() if n.endswith("bias") and len(t) > 1)
    bias[0] += 1
    with pytest.raises(k2t.WeightMismatchError, match="one weight in Keras, but differ; give both"):
        k2t.write_back(model, DENSE, tmp_path / "new.h5")
    bias.copy_(bias[0].clone())
    k2t.write_back(model, DENSE, tmp_path / "new.h5")
    assert differing(model, tmp_path / "new.h5") == []


def test_layers_of_plugins(tmp_path: Path) -> None:
    source = FIXTURES / "plugins" / "keras-2.2.4" / "contrib_viterbi.h5"
    model = k2t.convert(source, plugins=["keras-contrib-crf"])
    load_plugins(["keras-contrib-crf"])
    k2t.write_back(train(model), source, tmp_path / "new.h5", plugins=["keras-contrib-crf"])
    assert differing(model, tmp_path / "new.h5") == []


def test_changed_elements_are_counted_bit_by_bit() -> None:
    model = new_values.Trained({}, np.dtype(np.float32))
    values = np.array([0.0, -0.0, np.nan, 1.0], np.float32)
    now = torch.tensor([-0.0, -0.0, torch.nan, 1.0])
    assert model.differs(values, now).tolist() == [True, False, False, False]
