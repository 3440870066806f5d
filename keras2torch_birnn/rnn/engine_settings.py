"""``explain`` and ``set_engine``: the engines of a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, overload, runtime_checkable

from torch import nn

from keras2torch_birnn.errors import check_module
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.engines import Choice, EngineRequest, check_request
from keras2torch_birnn.rnn.engines.select import explain_layer
from keras2torch_birnn.rnn.modules import RecurrentModule


@runtime_checkable
class FrozenCalls(Protocol):
    """A frozen model: the result of ``freeze``."""

    def explain_calls(self) -> Mapping[str, str]:
        """Tell of each set of sizes so far: "one call", or why its modules are called."""
        ...


@overload
def explain(model: FrozenCalls) -> Mapping[str, str]: ...


@overload
def explain(
    model: nn.Module, batch: int = 1, *, masked: bool = False
) -> Mapping[str, tuple[Choice, ...]]: ...


def explain(
    model: nn.Module | FrozenCalls, batch: int = 1, *, masked: bool = False
) -> Mapping[str, str] | Mapping[str, tuple[Choice, ...]]:
    """Map the name of every recurrent module to engine and reason, one for each of its layers.

    It is the choice for the modules' current device, dtype, mode and engine, gradients or not.

    Args:
        model: Any module, or what ``freeze`` returned.
        batch: Rows of the call.
        masked: Whether the call has a mask.

    Returns:
        Names of modules, and for each layer the engine that would run and why. Of a frozen model
        each set of sizes that was called so far, and "one call", or why its modules are called.

    Raises:
        UsageError: The engine that was set cannot run.
    """
    if isinstance(model, FrozenCalls):
        return model.explain_calls()
    check_module(model)
    return {
        name: choices
        for name, module in model.named_modules()
        if (choices := _explain(module, batch, masked=masked))
    }


def _explain(module: nn.Module, batch: int, *, masked: bool) -> tuple[Choice, ...]:
    """Return the engine and reason of each layer of one module, none of other modules."""
    if isinstance(module, BidirectionalStack):
        return module.explain(batch, masked=masked)
    if isinstance(module, RecurrentModule):
        return (explain_layer(module.rnn_layer(), batch, masked=masked),)
    if isinstance(module, CustomRNN):
        return (Choice("loop", "custom cell"),)
    return ()


def set_engine(model: nn.Module, engine: EngineRequest | None) -> None:
    """Choose the engine of every recurrent module in a model.

    Args:
        model: Any module.
        engine: A name of the table in docs/performance.md, "auto" or "torch"; None for that of
            ``K2T_ENGINE``.

    Raises:
        UsageError: There is no such engine.
    """
    check_module(model)
    chosen = None if engine is None else check_request(engine)
    for module in model.modules():
        if isinstance(module, RecurrentModule | BidirectionalStack):
            module.engine = chosen
