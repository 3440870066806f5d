"""Mistakes that hide behind a right tensor or behind each other, and those without an effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from graph_specs import spec_of
from test_replaced_modules import Instead
from torch import Tensor, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.changes import Change, followed_by, in_one_call
from keras2torch_birnn.porting.comparing import _Comparison
from keras2torch_birnn.porting.matching import find_units, match_units
from keras2torch_birnn.porting.report import PortReport
from keras2torch_birnn.porting.right_tensors import find_leaves
from keras2torch_birnn.spec import ModelSpec

FLOATS = [("x", "float", (7, 5))]


def compare_spec(spec: ModelSpec, port: nn.Module) -> PortReport:
    """Compare a port with a model that no file holds."""
    comparison = comparison_of(spec, port)
    return comparison.report(batches(spec, None), None)


def comparison_of(spec: ModelSpec, port: nn.Module) -> _Comparison:
    known, units = find_leaves(spec), find_units(port)
    return _Comparison(spec, port, known, units, match_units(units, known, []))


def port_of(spec: ModelSpec, **wrong: Callable[..., Any]) -> nn.Module:
    port = build_model(spec)
    for name, instead in wrong.items():
        port.set_submodule(name, Instead(port.get_submodule(name), instead))
    return port


def told(report: PortReport) -> list[tuple[str, str]]:
    return [(one.layer, one.kind) for one in report.findings]


def halved(right: Any, x: Tensor, **given: Any) -> Tensor:
    y: Tensor = right(x, **given)
    return y / 2


def with_bias_twice(right: Any, x: Tensor, **given: Any) -> Any:
    twice = {name: 2 * p for name, p in right.named_parameters() if name.startswith("bias_ih")}
    return torch.func.functional_call(right, twice, (x,), given)


@pytest.mark.thorough
def test_an_average_for_a_sum_is_named_beside_a_mistake_of_the_layer_that_reads_it() -> None:
    """The port has the sum as well: it divides it by two."""
    half = "LSTM", {"units": 3, "return_sequences": True}
    steps = [
        ("b", ("Bidirectional", {"layer": half, "merge_mode": "sum"}), "x"),
        ("m", ("LSTM", {"units": 2, "return_sequences": True}), "b"),
        ("p", ("GlobalAveragePooling1D", {}), "m"),
        ("y", ("Dense", {"units": 11}), "p"),
    ]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_0=halved, layer_1=with_bias_twice))
    found = told(report)
    assert found == [("layer_0", "merge mode"), ("layer_1", "bias doubled")], report.lines()


def test_two_changes_that_undo_each_other_are_dropped() -> None:
    """So are found what a port leaves out here and adds later, such as a bias."""
    steps = [
        ("d", ("Dense", {"units": 5}), "x"),
        ("a", ("Add", {}), ["d", "x"]),
        ("e", ("Dense", {"units": 3, "activation": "relu"}), "a"),
    ]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "e"}, "3.15.1")
    keys = ("layer_0", "Dense"), ("layer_1", "Add"), ("layer_2", "Dense")
    changes = [
        Change("", layer, "", {(layer, name): followed_by(partial(_plus, more))})
        for (layer, name), more in zip(keys, (1.5, -1.5, 0.5), strict=True)
    ]
    port = nn.Sequential(build_model(spec), Plus(0.5))
    comparison = comparison_of(spec, port)
    (batch, *_) = batches(spec, None)
    run: Any = comparison._run(batch, first=True)
    search = comparison._search(batch, run)
    search.found += changes
    assert search.explained_by(changes)
    search._drop_needless()
    assert search.found == changes[2:]


class Plus(nn.Module):
    def __init__(self, more: float) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return x + self.more


def test_a_change_that_alters_masked_steps_alone_changes_nothing() -> None:
    steps = [
        ("m", ("Masking", {}), "x"),
        ("d", ("Dense", {"units": 3}), "m"),
        ("y", ("GlobalAveragePooling1D", {}), "d"),
    ]
    spec = spec_of({"inputs": FLOATS, "steps": steps, "outputs": "y"}, "3.15.1")
    comparison = comparison_of(spec, build_model(spec))
    padded = next(one for one in batches(spec, None) if one.name == "rows padded at the end")
    run: Any = comparison._run(padded, first=True)
    search = comparison._search(padded, run)
    (x,) = padded.arrays
    valid = np.any(x != 0, axis=-1, keepdims=True)
    for unlike, nothing in ((~valid, True), (valid, False)):
        key = "layer_1", "Dense"
        change = Change("", "layer_1", "", {key: followed_by(partial(_plus, 1.0 * unlike))})
        assert search.changes_nothing(change) is nothing


def _plus(more: Any, x: Any) -> Any:
    return x + more


@pytest.mark.thorough
def test_what_the_port_has_in_one_call_stands_in_that_call_alone() -> None:
    """The second call of a model has another first layer; the first one is right."""
    dense = ("Dense", {"units": 11}), ("Dense", {"units": 3, "activation": "tanh"})
    model = {
        "inputs": [("i", "float", (7, 5))],
        "steps": [("j", dense[0], "i"), ("k", dense[1], "j")],
        "outputs": "k",
    }
    graph = {
        "inputs": [*FLOATS, ("z", "float", (7, 5))],
        "shared": {"m": ("Functional", model)},
        "steps": [("a", "m", "x"), ("b", "m", "z")],
        "outputs": ["a", "b"],
    }
    spec = spec_of(graph, "3.15.1")
    inner: Any = build_model(spec).get_submodule("m")

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.d, self.e = inner.layer_0, inner.layer_1

        def forward(self, x: Tensor, z: Tensor) -> Sequence[Tensor]:
            other = torch.cos(z @ torch.arange(55.0).reshape(5, 11).to(z))
            return [torch.tanh(self.e(one)) for one in (self.d(x), other)]

    report = compare_spec(spec, Port())
    assert told(report) == [("m#1/layer_0", "unexplained")], report.lines()


@pytest.mark.parametrize("path", ["d#1", "encoder#1/d", "encoder/d#1"])
def test_a_change_in_one_call_names_it_inside_of_a_model_too(path: str) -> None:
    change = Change("bias", path, "the bias is not added", {})
    assert in_one_call(change, path).words == "in call 2 alone: the bias is not added"
