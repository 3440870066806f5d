"""Observations of ports: layers inside of one module, random numbers, infinite ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masked_ports import Marked
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.observing import observe


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_inside_of_one_module_are_seen(kind: type[nn.RNNBase], packed: bool) -> None:
    """Two layers in one module are noted as if they were two modules."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 5, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if packed:
                rows = pack_padded_sequence(x, torch.tensor([7, 2]), batch_first=True)
                return self.rnn(rows)[0].data
            return self.rnn(x)[0]

    torch.manual_seed(2)
    port = Stack().double()
    first = kind(3, 5, batch_first=True, bidirectional=True).double()
    first.load_state_dict({k: v for k, v in port.rnn.state_dict().items() if "_l0" in k})
    x = np.random.default_rng(3).normal(size=(2, 7, 3))
    run = observe(port, [x], torch.float64, 1e-9)
    if packed:
        rows = pack_padded_sequence(torch.tensor(x), torch.tensor([7, 2]), batch_first=True)
        wanted, _ = nn.utils.rnn.pad_packed_sequence(first(rows)[0], batch_first=True)
    else:
        wanted, _ = first(torch.tensor(x))
    found = wanted.detach().numpy()
    for part in (found[0], found[1, :2]) if packed else (found, *np.split(found, 2, axis=-1)):
        assert run.has(part)
        assert not run.has(1.01 * part)


def test_numbers_that_overflow_are_no_evidence() -> None:
    run = observe(nn.Identity(), [np.ones((2, 3))], torch.float64, 1e-9)
    assert run.has(np.ones((2, 3)))
    assert not run.has(np.full((2, 3), np.inf))


class _Random(nn.Module):
    """A module that draws random numbers in every way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x, 0.5)
        x = torch.nn.functional.dropout(x, 0.0) + torch.randn(3) + torch.rand_like(x)
        return x + torch.empty(3).normal_()


def test_nothing_is_random_in_a_settled_run() -> None:
    x = np.arange(6.0).reshape(2, 3)
    run = observe(_Random(), [x], torch.float64, 1e-9)
    assert np.array_equal(run.outputs[0], x)
    assert {one.name for one in run.drawn} == {"dropout", "randn", "rand_like", "normal_"}
    free = observe(_Random(), [x], torch.float64, 1e-9, settled=False)
    assert not np.array_equal(free.outputs[0], x)


def test_random_numbers_that_change_nothing_are_no_mistake() -> None:
    class Port(Marked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * torch.randn(22)

    assert k2t.compare(Port.source, Port()).ok
