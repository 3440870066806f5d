"""Which engine runs the recurrent layers of a model, and how to choose another one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from keras2torch_birnn.rnn.bidirectional import BidirectionalStack, example
from keras2torch_birnn.rnn.engine_choice import Choice, Wish, wish
from keras2torch_birnn.rnn.engines import Recurrence, decide
from keras2torch_birnn.rnn.modules import GRU, LSTM, RNN, LoopRNN, recurrence

_Layer = (LSTM, GRU, RNN, LoopRNN)


def explain(
    model: nn.Module, batch: int = 1, *, masked: bool = False
) -> Mapping[str, tuple[Choice, ...]]:
    """Name of every recurrent module in a model -> engine and reason, one for each of its layers.

    For a batch of so many rows as things stand now: the device and dtype of the weights, training
    or not, gradients or not, ``K2T_ENGINE``. ``masked``: there is a mask.

    Raises:
        UsageError: the engine that was chosen cannot run.
    """
    return {
        name: tuple(decide(layer, example(layer, batch, masked=masked)) for layer in found)
        for name, module in model.named_modules()
        if (found := _recurrences(module))
    }


def _recurrences(module: nn.Module) -> tuple[Recurrence, ...]:
    if isinstance(module, BidirectionalStack):
        return module.recurrences()
    return (recurrence(module),) if isinstance(module, _Layer) else ()


def set_engine(model: nn.Module, engine: Wish | None) -> None:
    """Choose the engine of every recurrent module in a model; None: what ``K2T_ENGINE`` says.

    Raises:
        UsageError: there is no such engine.
    """
    chosen = None if engine is None else wish(engine)
    for module in model.modules():
        if isinstance(module, (*_Layer, BidirectionalStack)):
            module.engine = chosen
