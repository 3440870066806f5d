"""``set_precision``: the precision in which a model's recurrent layers compute."""

from __future__ import annotations

from torch import nn

from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.engines.reduced import Refusal, why_not_layer
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.modules import RecurrentModule
from keras2torch_birnn.rnn.native.codes import Precision, ReducedPrecision
from keras2torch_birnn.rnn.native.precision import check_precision


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Choose the precision of the recurrent layers of a model, for inference on the CPU.

    "bfloat16" and "int8" (weights per output channel, inputs and states per row and step) reduce
    the factors of all products of LSTM, GRU and SimpleRNN layers; sums, states, gates, biases and
    every other layer stay float32. "float32" goes back: the parameters stay as they are, whatever
    is chosen. It is no part of a ``state_dict`` or a saved file.

    Raises:
        ArgumentValueError: there is no such precision.
        UsageError: the model has no recurrent layer, or some that the native kernel cannot run; all
            of them are named, and nothing is changed.
    """
    reduced = check_precision(precision)
    found = dict(recurrent_modules(model))
    if reduced is not None:
        _check(model, found, reduced)
    for module in found.values():
        module.precision = reduced


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


def recurrent_modules(
    model: nn.Module,
) -> list[tuple[str, RecurrentModule | BidirectionalStack]]:
    """Return the modules that have a precision, with their names in the model."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, RecurrentModule | BidirectionalStack)
    ]


def _check(
    model: nn.Module,
    found: dict[str, RecurrentModule | BidirectionalStack],
    precision: ReducedPrecision,
) -> None:
    refused = [
        (name, refusal)
        for name, module in found.items()
        for layer in _layers(module)[:1]
        if (refusal := why_not_layer(layer, precision)) is not None
    ]
    custom = Refusal("custom cells run in a loop of float32", "set the precision of other modules")
    for name, module in model.named_modules():
        if isinstance(module, CustomRNN):
            refused.append((name, custom))
    if refused:
        reasons = "; ".join(
            f"{printable(name)}: {refusal.found}" if name else refusal.found
            for name, refusal in refused
        )
        advice = "; ".join(dict.fromkeys(refusal.advice for _, refusal in refused))
        raise UsageError(f"precision {precision}: {reasons}", advice)
    if not found:
        raise UsageError(
            f"precision {precision}: the model has no LSTM, GRU or SimpleRNN of this package",
            "only these have a reduced precision",
        )


def _layers(module: RecurrentModule | BidirectionalStack) -> tuple[RnnLayer, ...]:
    if isinstance(module, BidirectionalStack):
        return module.rnn_layers()
    return (module.rnn_layer(),)
