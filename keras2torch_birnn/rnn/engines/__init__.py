"""The engines of recurrent layers in order of preference, and the choice from a spec. No torch.

An engine is one row of ``ENGINES`` and one module of this package, whose ``ENGINE`` computes.
``static_engine`` chooses from a layer's options, for ``k2t inspect``; ``select`` chooses for one
call and runs it. Both take the first engine that has no reason against it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from keras2torch_birnn.errors import ArgumentValueError, UsageError
from keras2torch_birnn.rnn.engines import static
from keras2torch_birnn.spec import LayerSpec

EngineName = Literal["native", "fused", "loop"]
EngineRequest = Literal["auto", "torch", "fused", "loop", "native"]
"""auto: the first of all engines. torch: the first of those within torch. Others force one."""
REQUESTS: tuple[EngineRequest, ...] = get_args(EngineRequest)

VARIABLE = "K2T_ENGINE"
# Read once: a short call would feel it. It is checked where an engine is selected.
REQUESTED = os.environ.get(VARIABLE) or "auto"


@dataclass(frozen=True)
class Choice:
    """An engine and the reason in words."""

    engine: EngineName
    reason: str


@dataclass(frozen=True)
class EngineRow:
    """Facts about one engine.

    module: of this package, with its ``ENGINE``. description, use: what it is and when it is used,
    for the documentation. why_not: why it cannot run a layer in float32 on CPU, empty if it can.
    reason: why it is chosen, from the layer and the next engine with its reason in words.
    torch_class: the name of torch's layer that it runs. advice: the alternative where it cannot
    run. within_torch: it needs only torch.
    """

    name: EngineName
    module: str
    description: str
    use: str
    why_not: Callable[[LayerSpec], str] = static.no_reason
    reason: Callable[[LayerSpec, str], str] = static.no_reason
    torch_class: Callable[[LayerSpec], str] = static.no_reason
    advice: str = "use auto"
    within_torch: bool = True


# In order of preference. The last one runs everything.
ENGINES: tuple[EngineRow, ...] = (
    EngineRow(
        "native",
        "native",
        "our own kernel for float32 on the CPU: LSTM, both GRUs, SimpleRNN, 14 activations, any "
        "mask; merges inside the kernel; runs on torch's threads; forward and backward",
        "wherever it can run, unless torch's kernel is faster (LSTM of more than 512 units, from 4 "
        "rows on, unless it drops). Dropout inside the layer, too; not in graphs of torch.compile",
        why_not=static.why_not_native,
        reason=static.native_reason,
        within_torch=False,
    ),
    EngineRow(
        "fused",
        "torch_kernel",
        "torch's own kernel: the layer IS an `nn.LSTM`, `nn.GRU` or `nn.RNN` with "
        "`bidirectional=True` and torch's parameter names",
        "the activations must be those of torch (tanh and sigmoid; `nn.RNN`: tanh or relu), and a "
        "GRU needs `reset_after=True`",
        why_not=static.why_not_torch_kernel,
        reason=static.torch_class,
        torch_class=static.torch_class,
    ),
    EngineRow(
        "loop",
        "loop",
        "a loop over the steps; the product with the inputs is computed once, outside it",
        "layers that torch has no kernel for (hard_sigmoid, the default before Keras 2.3; "
        "`reset_after=False`; other activations)",
        reason=static.why_not_torch_kernel,
    ),
)


def check_request(
    name: str, source: str = "engine", error: type[UsageError] = ArgumentValueError
) -> EngineRequest:
    """Return the name of an engine, "auto" or "torch".

    Raises:
        UsageError: it is another name; ``source``: the option or variable it comes from, and
            ``error``: the class for it.
    """
    for known in REQUESTS:
        if name == known:
            return known
    from keras2torch_birnn.suggestions import unknown_value

    raise unknown_value(f"{source}={name}", REQUESTS, name, error)


def requested_engine(chosen: str | None = None) -> EngineRequest:
    """Return the chosen engine, else that of ``K2T_ENGINE``, else "auto".

    Raises:
        UsageError: there is no such engine; of an argument: ArgumentValueError.
    """
    return check_request(chosen) if chosen else check_request(REQUESTED, VARIABLE, UsageError)


def candidates(requested: EngineRequest) -> tuple[EngineRow, ...]:
    """Return the rows from which the first is taken: all, those within torch, or the forced one."""
    return tuple(
        row
        for row in ENGINES
        if requested in ("auto", row.name) or (requested == "torch" and row.within_torch)
    )


def refusal(row: EngineRow, reason: str, *, advice: str = "", place: str = "") -> UsageError:
    """Return the error of a forced engine that cannot run."""
    return UsageError(f"{VARIABLE}={row.name}: {reason}", advice or row.advice, place=place)


def check_no_kernel(layer: LayerSpec, what: str) -> None:
    """Refuse the request of a kernel for what runs in a loop of its own.

    Raises:
        UsageError: ``K2T_ENGINE`` asks for one.
    """
    requested = requested_engine()
    if requested in ("fused", "native"):
        raise UsageError(
            f"{VARIABLE}={requested}: there is no kernel of {what}", "use auto", place=layer.place
        )


def static_engine(layer: LayerSpec, requested: EngineRequest | None = None) -> Choice:
    """Choose the engine of one LSTM, GRU or SimpleRNN in float32 on CPU.

    requested: None for ``K2T_ENGINE``.

    Raises:
        UsageError: the forced engine cannot run this layer.
    """
    requested = requested or requested_engine()
    rows = candidates(requested)
    if len(rows) > 1:
        return _first(layer, rows)
    (row,) = rows
    if reason := row.why_not(layer):
        raise refusal(row, reason, place=layer.place)
    forced = f"{VARIABLE}={row.name}"
    return Choice(row.name, ": ".join(filter(None, (forced, row.torch_class(layer)))))


def torch_engine(layer: LayerSpec) -> Choice:
    """Choose the engine of one LSTM, GRU or SimpleRNN within torch, on CPU."""
    return static_engine(layer, "torch")


def _first(layer: LayerSpec, rows: Sequence[EngineRow]) -> Choice:
    row, *rest = rows
    if rest and row.why_not(layer):
        return _first(layer, rest)
    other = _first(layer, rest) if rest else None
    return Choice(row.name, row.reason(layer, f"{other.engine}: {other.reason}" if other else ""))
