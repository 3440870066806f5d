"""Ports with tensors and modules that cannot be looked at are refused by name, or compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graph_specs import spec_of
from hand_ports import Sentiment
from test_hidden_mistakes import FLOATS, compare_spec, comparison_of, told
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.function_port import FunctionPort

DENSE = {"inputs": FLOATS, "steps": [("y", ("Dense", {"units": 3}), "x")], "outputs": "y"}


class _Held(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("inner", [nn.LazyLinear(3), nn.Linear(5, 3, device="meta")])
def test_a_port_without_values_is_refused_by_name(inner: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"inner\.weight of the port has no values yet"):
        k2t.compare(Sentiment.source, _Held(inner))


def test_modules_without_values_in_the_file_of_a_function_are_left_alone() -> None:
    unused = nn.Linear(5, 3, device="meta")
    spec = spec_of(DENSE, "3.15.1")
    right = build_model(spec)

    def port(x: Tensor) -> Any:
        assert unused is not None
        return right(x)

    assert compare_spec(spec, FunctionPort(port)).ok


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_scripted_part_of_a_port_is_run() -> None:
    spec = spec_of(DENSE, "3.15.1")
    linear = nn.Linear(5, 3)
    linear.load_state_dict(build_model(spec).get_submodule("layer_0").state_dict())
    script: Any = torch.jit.script
    assert compare_spec(spec, _Held(script(linear))).ok


def test_weights_that_are_infinite_are_told_as_other_values() -> None:
    spec = spec_of(DENSE, "3.15.1")
    linear = nn.Linear(5, 3)
    nn.init.constant_(linear.weight, float("inf"))
    assert told(compare_spec(spec, _Held(linear))) == [("layer_0", "weights: other values")]


def test_a_port_that_cannot_be_copied_is_refused() -> None:
    """Copies of tensors that were computed from parameters are not possible."""
    spec = spec_of(DENSE, "3.15.1")
    port = _Held(nn.Linear(5, 3))
    vars(port)["computed"] = 2 * nn.Parameter(torch.ones(3))
    comparison = comparison_of(spec, port)
    with pytest.raises(UsageError, match="the port fails on inputs of shapes"):
        comparison.report(batches(spec, None), None)
