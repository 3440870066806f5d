"""Only what the outputs of a port were computed from tells where it goes wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keras2torch_birnn.porting.observing import PortRun, observe

X = np.random.default_rng(3).normal(size=(5, 7))


class _Port(nn.Module):
    """A port that computes 3 x, which it does not use, and returns something else."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7))
        self.kept = {"of": torch.arange(7.0)}
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        unused = 3 * x * self.weight
        return self.returned(2 * x + self.kept["of"] - self.kept["of"], unused)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


def _run(returned: Any) -> PortRun:
    return observe(_Port(returned), [X], torch.float64, 1e-9)


def _filled(used: Tensor, value: Tensor) -> Tensor:
    out = torch.zeros(5, 2, 7)
    out[:, 1] = value
    return out + used[:, None]


USED = {
    "in a sum": lambda used, other: used + other,
    "in a view that is written into": _filled,
    "as numbers of Python": lambda used, other: used + torch.tensor(other.tolist()),
    "by a function that torch does not show": lambda used, other: used + _Doubled.apply(other),
    "as another output": lambda used, other: (used, {"other": other}),
}


def test_a_tensor_that_no_output_depends_on_is_left_out() -> None:
    run = _run(lambda used, _: used + 1)
    assert run.has(2 * X)
    assert run.has(2 * X + 1)
    assert not run.has(3 * X)


@pytest.mark.parametrize("how", USED)
def test_a_tensor_that_is_used_is_kept(how: str) -> None:
    assert _run(USED[how]).has(3 * X)


def test_all_is_kept_where_the_outputs_come_from_nowhere() -> None:
    assert _run(lambda *_: torch.ones(5)).has(3 * X)
