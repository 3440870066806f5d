"""``explain`` and ``set_engine``: the engines of a whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias, overload, runtime_checkable

from torch import nn

from keras2torch_birnn.errors import ArgumentValueError, UsageError, check_module, printable
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.engines import Choice, EngineRequest, check_request
from keras2torch_birnn.rnn.engines.reduced import Refusal, why_not_layer
from keras2torch_birnn.rnn.engines.select import explain_layer
from keras2torch_birnn.rnn.modules import RecurrentModule
from keras2torch_birnn.rnn.native.codes import PRECISIONS, REDUCED, Precision, ReducedPrecision
from keras2torch_birnn.suggestions import unknown_value


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


# ---- Precision ----------------------------------------------------------------------------------

# A module with ``rnn_layers``.
Layered: TypeAlias = RecurrentModule | BidirectionalStack


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Choose the precision of the recurrent layers of a model, for inference on the CPU.

    The parameters stay as they are, whatever is chosen. It is no part of a ``state_dict`` or a
    saved file. What it costs on your data: "Reduced precision" in docs/performance.md.

    Args:
        model: Any module with recurrent layers of this package.
        precision: "bfloat16" and "int8" (weights per output channel, inputs and states per row and
            step) reduce the factors of all products of LSTM, GRU and SimpleRNN layers; sums,
            states, gates, biases and every other layer stay float32. "float32" goes back.

    Raises:
        ArgumentValueError: There is no such precision.
        UsageError: This processor has no instructions for it (AMX, AVX512-BF16, AVX512-VNNI,
            AVX-VNNI), the model has no recurrent layer, or some that the native kernel cannot run;
            all of them are named, and nothing is changed.
    """
    check_module(model)
    modules = dict(recurrent_modules(model))
    taken = next((one for one in REDUCED if one == precision), None)
    if taken is None and precision != "float32":
        found = f"precision={printable(precision)}"
        raise unknown_value(found, PRECISIONS, precision, ArgumentValueError)
    if taken is not None and (refusal := _why_refused(model, modules, taken)) is not None:
        raise UsageError(f"precision {taken}: {refusal.message}", refusal.advice)
    for module in modules.values():
        module.precision = taken


def check_float32(model: nn.Module, what: str) -> None:
    """Refuse a model in reduced precision for ``what``, which computes float32.

    Raises:
        UsageError: the precision of a module was set.
    """
    for name, module in recurrent_modules(model):
        if module.precision is not None:
            raise UsageError(
                f"{what} computes float32, and the precision of {printable(name) or 'the model'} "
                f"is {module.precision}",
                'use k2t.set_precision(model, "float32") before',
            )


def recurrent_modules(model: nn.Module) -> list[tuple[str, Layered]]:
    """Return the modules that have a precision, with their names in the model."""
    return [(name, one) for name, one in model.named_modules() if isinstance(one, Layered)]


def _why_refused(
    model: nn.Module, modules: Mapping[str, Layered], precision: ReducedPrecision
) -> Refusal | None:
    """Return why a model cannot run in a precision, with the names of all such layers."""
    refused = [
        (name, refusal)
        for name, module in modules.items()
        for layer in module.rnn_layers()[:1]
        if (refusal := why_not_layer(layer, precision)) is not None
    ]
    custom = Refusal("custom cells run in a loop of float32", "set the precision of other modules")
    for name, module in model.named_modules():
        if isinstance(module, CustomRNN):
            refused.append((name, custom))
    if refused:
        reasons = "; ".join(
            f"{printable(name)}: {refusal.message}" if name else refusal.message
            for name, refusal in refused
        )
        return Refusal(reasons, "; ".join(dict.fromkeys(refusal.advice for _, refusal in refused)))
    if not modules:
        return Refusal(
            "the model has no LSTM, GRU or SimpleRNN of this package",
            "only these have a reduced precision",
        )
    return None
