"""Ports with tensors and modules that cannot be looked at are refused by name, or compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_ports import Sentiment
from torch import Tensor, nn
from wrong_ports import IDS, chain_of, compare_spec, comparison_of, only_finding

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.porting.batches import batch_with_gaps, batches
from keras2torch_birnn.porting.function_port import FunctionPort

DENSE = ("Dense", {"units": 3})


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
    spec = chain_of(DENSE)
    right = build_model(spec)

    def port(x: Tensor) -> Any:
        assert unused is not None
        return right(x)

    assert compare_spec(spec, FunctionPort(port)).ok


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_scripted_part_of_a_port_is_run() -> None:
    spec = chain_of(DENSE)
    linear = nn.Linear(5, 3)
    linear.load_state_dict(build_model(spec).get_submodule("layer_0").state_dict())
    script: Any = torch.jit.script
    assert compare_spec(spec, _Held(script(linear))).ok


def test_weights_that_are_infinite_are_told_as_other_values() -> None:
    linear = nn.Linear(5, 3)
    nn.init.constant_(linear.weight, float("inf"))
    only_finding(compare_spec(chain_of(DENSE), _Held(linear)), "layer_0", "weights: other values")


def test_a_port_that_cannot_be_copied_is_refused() -> None:
    """Copies of tensors that were computed from parameters are not possible."""
    port = _Held(nn.Linear(5, 3))
    vars(port)["computed"] = 2 * nn.Parameter(torch.ones(3))
    spec = chain_of(DENSE)
    comparison = comparison_of(spec, port)
    with pytest.raises(UsageError, match="the port fails on inputs of shapes"):
        comparison.report(batches(spec, None), None)


TEXT = ("Embedding", {"input_dim": 11, "output_dim": 3, "mask_zero": True})


class _OtherWithGaps(_Held):
    """A port that differs in rows that have padding between words alone."""

    def forward(self, x: Tensor) -> Any:
        changes = (x != 0).int().diff(dim=1).abs().sum(dim=1, keepdim=True)
        return self.inner(x) + (changes > 1)


def test_a_note_tells_what_differs_where_rows_have_gaps() -> None:
    spec = chain_of(TEXT, ("GRU", {"units": 2}), inputs=IDS)
    right = build_model(spec)
    drawn, gaps = batches(spec, None), batch_with_gaps(spec, None)
    report = comparison_of(spec, _OtherWithGaps(right)).report(drawn, gaps)
    assert report.ok
    assert any("output 1 differs" in one and "rows with gaps" in one for one in report.notes)
    assert not comparison_of(spec, right).report(drawn, gaps).notes


class _MaskedMaximum(_Held):
    def forward(self, x: Tensor) -> Any:
        y = self.inner.get_submodule("layer_1")(self.inner.get_submodule("layer_0")(x))
        return y.masked_fill((x == 0)[..., None], -torch.inf).amax(dim=1)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_maximum_by_a_mask_that_keras_lost_is_named_without_a_warning() -> None:
    convolution = ("Conv1D", {"filters": 5, "kernel_size": 1})
    spec = chain_of(TEXT, convolution, ("GlobalMaxPooling1D", {}), inputs=IDS)
    report = compare_spec(spec, _MaskedMaximum(build_model(spec)))
    finding = only_finding(report, "layer_2", "other mask")
    assert finding.words.startswith("the maximum of the steps that count is taken, by the mask")
