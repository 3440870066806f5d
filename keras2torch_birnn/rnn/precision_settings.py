"""``set_precision``: the precision in which a model's recurrent layers compute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import ArgumentValueError, UsageError, check_module, printable
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.call import RnnCall
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.engines.native_gradient import native_cell_of
from keras2torch_birnn.rnn.engines.reduced import Refusal, why_not_layer
from keras2torch_birnn.rnn.layer import RnnLayer
from keras2torch_birnn.rnn.modules import RecurrentModule
from keras2torch_birnn.rnn.native.codes import REDUCED, Precision, ReducedPrecision
from keras2torch_birnn.rnn.native.op import run_native
from keras2torch_birnn.rnn.native.precision import check_precision, reduced_kernel

# A module with ``rnn_layers``.
Layered: TypeAlias = RecurrentModule | BidirectionalStack


def set_precision(
    model: nn.Module,
    precision: Precision | Literal["fastest"],
    *,
    max_error: float | None = None,
) -> Precision:
    """Choose the precision of the recurrent layers of a model, for inference on the CPU.

    The parameters stay as they are, whatever is chosen. It is no part of a ``state_dict`` or a
    saved file. What it costs on your data, ``k2t verify --precision --inputs`` says.

    Args:
        model: Any module with recurrent layers of this package.
        precision: "bfloat16" and "int8" (weights per output channel, inputs and states per row and
            step) reduce the factors of all products of LSTM, GRU and SimpleRNN layers; sums,
            states, gates, biases and every other layer stay float32. "float32" goes back. "fastest"
            measures all three on this processor, and takes the one in which the layers need the
            least time.
        max_error: The largest error that "fastest" allows, 0.01 if None: of any layer, on random
            inputs, the root mean square of the difference from float32 divided by that of the
            output.

    Returns:
        The precision that the layers have now.

    Raises:
        ArgumentValueError: There is no such precision, or the error is none to allow.
        UsageError: The model has no recurrent layer, or some that the native kernel cannot run; all
            of them are named, and nothing is changed.
    """
    check_module(model)
    modules = dict(recurrent_modules(model))
    if precision == "fastest":
        taken = _find_fastest(model, modules, 0.01 if max_error is None else max_error)
    elif max_error is not None:
        raise ArgumentValueError('max_error is for the precision "fastest" alone')
    else:
        taken = check_precision(precision)
        if taken is not None:
            if (refusal := _why_refused(model, modules, taken)) is not None:
                raise UsageError(f"precision {taken}: {refusal.message}", refusal.advice)
            reduced_kernel(taken)  # measured here, not within a call that is being prepared
    for module in modules.values():
        module.precision = taken
    return taken or "float32"


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


# Rows and steps of the random input by which "fastest" chooses, and how often each is timed.
_ROWS, _STEPS, _ROUNDS = 8, 11, 3


def _find_fastest(
    model: nn.Module, modules: Mapping[str, Layered], max_error: float
) -> ReducedPrecision | None:
    """Return the precision in which all layers take the least time, with errors that are allowed.

    Raises:
        ArgumentValueError: the error is no number above 0.
    """
    if not max_error > 0:
        raise ArgumentValueError(f"max_error={max_error}: a number above 0 is expected")
    allowed = [
        precision for precision in REDUCED if _why_refused(model, modules, precision) is None
    ]
    seconds: dict[ReducedPrecision | None, float] = dict.fromkeys((None, *allowed), 0.0)
    for layer in (one for module in modules.values() for one in module.rnn_layers()):
        if len(seconds) == 1:
            break
        trials = {precision: _Trial(layer, precision) for precision in seconds}
        exact = trials[None].compute().double()
        size = float(exact.square().mean().sqrt())
        for precision, trial in trials.items():
            error = float((trial.compute().double() - exact).square().mean().sqrt())
            if precision is not None and not error <= max_error * size:
                del seconds[precision]
        rounds = [{one: _time(trials[one]) for one in seconds} for _ in range(_ROUNDS)]
        for one in seconds:
            seconds[one] += min(times[one] for times in rounds)
    return min(seconds, key=lambda precision: seconds[precision])


class _Trial:
    """A layer on a random input in a precision."""

    def __init__(self, layer: RnnLayer, precision: ReducedPrecision | None) -> None:
        self.precision = precision
        features = layer.get_weight_ih().shape[1]
        x = torch.empty(_ROWS, _STEPS, features, dtype=torch.float32, device="cpu")
        x.normal_(generator=torch.Generator().manual_seed(1))
        self._call = RnnCall(x, merge="concat", return_state=False)
        self._cell = native_cell_of(layer)
        self._bit = 0 if precision is None else reduced_kernel(precision).bit
        self._parameters = [None if p is None else p.detach() for p in layer.parameters]

    def compute(self) -> Tensor:
        """Return the outputs."""
        (out,), _ = run_native(self._cell, self._parameters, self._call, self._bit)
        return out


def _time(trial: _Trial) -> float:
    begun = time.thread_time()
    trial.compute()
    return time.thread_time() - begun


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
