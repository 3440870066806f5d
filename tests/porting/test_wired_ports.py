"""Mistakes between layers are named, and nothing is blamed that only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_hand_ports import BI, BI1, Row, check, identify, show_ports
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from wired_ports import Comments, Connected, Normalized, Residual, Sounds

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.observing import observe

ROWS: tuple[Row, ...] = (
    (Residual, ("normalized before",), (("batch_normalization", "order"),)),
    (Residual, ("no skip",), (("add", "left out"),)),
    (Sounds, ("channels first",), (("reshape", "axes"),)),
    (Sounds, ("average",), (("max_pooling2d", "other operation"),)),
    (Sounds, ("relu first",), (("batch_normalization", "order"),)),
    (Sounds, ("kernel turned",), (("conv2d", "axes"),)),
    # two readings give the same numbers at the first layer; what follows tells which it is
    (
        Sounds,
        ("channels first", "forward half twice"),
        (("reshape", "axes"), (BI, "half taken twice"), (BI1, "half taken twice")),
    ),
    # the same function serves both layers, and makes the same two mistakes in them
    (
        Sounds,
        ("not turned", "relu between"),
        ((BI, "direction"), (BI, "extra"), (BI1, "direction"), (BI1, "extra")),
    ),
    (Connected, ("second first",), (("concatenate", "order"),)),
    (Connected, ("last step",), (("global_max_pooling1d", "other operation"),)),
    (Residual, ("padding at the end",), ((BI, "padding side"), (BI1, "padding side"))),
    (Comments, ("ids too low",), (("embedding", "ids"),)),
    (Comments, ("leaky",), (("conv1d", "activation"),)),
    (
        Comments,
        ("kernel reversed", "sum"),
        (("conv1d", "direction"), ("global_average_pooling1d", "other operation")),
    ),
    (Normalized, ("input added",), (("batch_normalization", "extra"),)),
    (Normalized, ("variance",), (("batch_normalization", "formula"),)),
    (Normalized, ("kept by dropout",), (("bidirectional", "extra"),)),
    (Normalized, ("layer norm",), (("bidirectional", "extra"),)),
    # not known, and no reason to blame the layers behind it, nor to forget what is before it
    (Normalized, ("peephole",), (("bidirectional", "unexplained"),)),
    (
        Normalized,
        ("f and g exchanged", "rnn one step late"),
        (("bidirectional", "gate order"), ("simple_rnn", "steps")),
    ),
)


@pytest.mark.sampled(show_ports(ROWS))
@pytest.mark.parametrize("row", ROWS, ids=identify)
def test_a_mistake_is_named_and_nothing_else(row: Row) -> None:
    check(row)


@pytest.mark.parametrize(
    "kind", (Residual, Sounds, Comments, Connected, Normalized), ids=lambda kind: kind.__name__
)
def test_a_right_port_is_equal(kind: Any) -> None:
    report = k2t.compare(kind.source, kind())
    assert report.ok, "\n".join(report.lines())
    assert report.findings == ()


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
    valid = np.array([[True] * 7, [True] * 2 + [False] * 5]) if packed else None
    run = observe(port, [x], torch.float64, 1e-9)
    if packed:
        rows = pack_padded_sequence(torch.tensor(x), torch.tensor([7, 2]), batch_first=True)
        wanted, _ = nn.utils.rnn.pad_packed_sequence(first(rows)[0], batch_first=True)
    else:
        wanted, _ = first(torch.tensor(x))
    assert run.has(wanted.detach().numpy(), valid)
    assert not run.has(1.01 * wanted.detach().numpy(), valid)


def test_numbers_that_overflow_are_no_evidence() -> None:
    run = observe(nn.Identity(), [np.ones((2, 3))], torch.float64, 1e-9)
    assert run.has(np.ones((2, 3)))
    assert not run.has(np.full((2, 3), np.inf))
