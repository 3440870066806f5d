"""Mistakes that hide behind a right tensor or behind each other, and those without an effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from wrong_ports import (
    TWO,
    Plus,
    adding,
    chain_of,
    compare_spec,
    compare_with,
    comparison_of,
    model_of,
    only_finding,
    told,
)

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.changes import Change, in_one_call


def halved(right: Any, x: Tensor, **given: Any) -> Tensor:
    y: Tensor = right(x, **given)
    return y / 2


def with_bias_twice(right: Any, x: Tensor, **given: Any) -> Any:
    twice = {name: 2 * p for name, p in right.named_parameters() if name.startswith("bias_ih")}
    return torch.func.functional_call(right, twice, (x,), given)


HALVES_ADDED = (
    "Bidirectional",
    {"layer": ("LSTM", {"units": 3, "return_sequences": True}), "merge_mode": "sum"},
)


def test_an_average_for_a_sum_is_not_told_at_the_layer_that_reads_it() -> None:
    """The port has the sum, too: half of its kernel would explain the layer behind it as well."""
    spec = chain_of(HALVES_ADDED, ("GRU", {"units": 2}))
    only_finding(compare_with(spec, layer_0=halved), "layer_0", "merge mode")


@pytest.mark.thorough
def test_an_average_for_a_sum_is_named_beside_a_mistake_of_the_layer_that_reads_it() -> None:
    """The port has the sum as well: it divides it by two."""
    spec = chain_of(
        HALVES_ADDED,
        ("LSTM", {"units": 2, "return_sequences": True}),
        ("GlobalAveragePooling1D", {}),
        ("Dense", {"units": 11}),
    )
    report = compare_with(spec, layer_0=halved, layer_1=with_bias_twice)
    found = told(report)
    assert found == [("layer_0", "merge mode"), ("layer_1", "bias doubled")], report.lines()


def test_two_changes_that_undo_each_other_are_dropped() -> None:
    """So are found what a port leaves out here and adds later, such as a bias."""
    spec = model_of(
        ("d", ("Dense", {"units": 5}), "x"),
        ("a", ("Add", {}), ["d", "x"]),
        ("e", ("Dense", {"units": 3, "activation": "relu"}), "a"),
    )
    changes = [
        adding("layer_0", "Dense", 1.5),
        adding("layer_1", "Add", -1.5),
        adding("layer_2", "Dense", 0.5),
    ]
    comparison = comparison_of(spec, nn.Sequential(build_model(spec), Plus(0.5)))
    (batch, *_) = batches(spec, None)
    run: Any = comparison._run(batch, first=True)
    search = comparison._search(batch, run)
    search.found += changes
    assert search.explained_by(changes)
    search._drop_needless()
    assert search.found == changes[2:]


def test_a_change_that_alters_masked_steps_alone_changes_nothing() -> None:
    spec = chain_of(("Masking", {}), ("Dense", {"units": 3}), ("GlobalAveragePooling1D", {}))
    comparison = comparison_of(spec, build_model(spec))
    padded = next(one for one in batches(spec, None) if one.name == "rows padded at the end")
    run: Any = comparison._run(padded, first=True)
    search = comparison._search(padded, run)
    (x,) = padded.arrays
    valid = np.any(x != 0, axis=-1, keepdims=True)
    for unlike, nothing in ((~valid, True), (valid, False)):
        assert search.changes_nothing(adding("layer_1", "Dense", 1.0 * unlike)) is nothing


@pytest.mark.thorough
def test_what_the_port_has_in_one_call_stands_in_that_call_alone() -> None:
    """The second call of a model has another first layer; the first one is right."""
    dense = ("Dense", {"units": 11}), ("Dense", {"units": 3, "activation": "tanh"})
    model = {
        "inputs": [("i", "float", (7, 5))],
        "steps": [("j", dense[0], "i"), ("k", dense[1], "j")],
        "outputs": "k",
    }
    calls = ("a", "m", "x"), ("b", "m", "z")
    spec = model_of(*calls, inputs=TWO, outputs=["a", "b"], m=("Functional", model))
    inner: Any = build_model(spec).get_submodule("m")

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.d, self.e = inner.layer_0, inner.layer_1

        def forward(self, x: Tensor, z: Tensor) -> Sequence[Tensor]:
            other = torch.cos(z @ torch.arange(55.0).reshape(5, 11).to(z))
            return [torch.tanh(self.e(one)) for one in (self.d(x), other)]

    only_finding(compare_spec(spec, Port()), "m#1/layer_0", "unexplained")


@pytest.mark.parametrize("path", ["d#1", "encoder#1/d", "encoder/d#1"])
def test_a_change_in_one_call_names_it_inside_of_a_model_too(path: str) -> None:
    change = Change("bias", path, "the bias is not added", {})
    assert in_one_call(change, path).words == "in call 2 alone: the bias is not added"
