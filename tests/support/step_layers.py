"""Stacks with activations that torch's own kernels lack: what the engines of a GPU are for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.rnn.call import RnnResult

CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (k2t.BiLSTM, {"recurrent_activation": "hard_sigmoid_0.2"}),
    "GRU": (k2t.BiGRU, {"activation": "softsign"}),
    "GRU before": (k2t.BiGRU, {"reset_after": False, "recurrent_activation": "hard_sigmoid_1/6"}),
    "SimpleRNN": (k2t.BiRNN, {"activation": "relu6"}),
}


def stack_of(cell: str, features: int, units: int, **options: Any) -> Any:
    made, special = CELLS[cell]
    return made(features, units, batch_first=True, **{**special, **options})


def numbers(result: RnnResult) -> list[Tensor]:
    """Outputs and states of a call."""
    return [*result[0], *(s for state in result[1] for s in state)]
