"""The engines of recurrent layers by name, and the choice from a spec. No torch.

``static_engine`` chooses from a layer's options, for ``k2t inspect``; ``select.choose`` chooses for
one call. Both say why. An engine is a module of this package with its reasons and ``run``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from keras2torch_birnn.errors import ArgumentValueError, UsageError
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, GRU_BEFORE, kind_of
from keras2torch_birnn.rnn.native.library import find_codes, why_missing
from keras2torch_birnn.schema.core import activation_label
from keras2torch_birnn.spec import LayerSpec

EngineName = Literal["native", "fused", "loop"]
EngineRequest = Literal["auto", "torch", "fused", "loop", "native"]
"""auto: the first of all engines. torch: the first of those within torch. Others force one."""
REQUESTS: tuple[EngineRequest, ...] = get_args(EngineRequest)

VARIABLE = "K2T_ENGINE"
# Read once: a short call would feel it. It is checked where an engine is selected.
REQUESTED = os.environ.get(VARIABLE) or "auto"


class Choice(NamedTuple):
    """An engine and the reason in words."""

    engine: EngineName
    reason: str


# What each engine is and when it is used, for the documentation, in order of preference. The last
# one runs everything.
DESCRIPTIONS: Mapping[EngineName, tuple[str, str]] = {
    "native": (
        "our own kernel for float32 on the CPU: LSTM, both GRUs, SimpleRNN, 13 activations, any "
        "mask; merges inside the kernel; runs on torch's threads; forward and backward "
        "(backward by the loop where an activation falls somewhere, such as silu)",
        "wherever it can run, unless torch's kernel is faster (LSTM of more than 512 units, from 4 "
        "rows on, unless it drops). Dropout inside the layer, too; not in graphs of torch.compile",
    ),
    "fused": (
        "torch's own kernel: the layer IS an `nn.LSTM`, `nn.GRU` or `nn.RNN` with "
        "`bidirectional=True` and torch's parameter names",
        "the activations must be those of torch (tanh and sigmoid; `nn.RNN`: tanh or relu), and a "
        "GRU needs `reset_after=True`",
    ),
    "loop": (
        "a loop over the steps; the product with the inputs is computed once, outside it",
        "layers that torch has no kernel for (hard_sigmoid, the default before Keras 2.3; "
        "`reset_after=False`; other activations)",
    ),
}


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


def refusal(engine: EngineName, reason: str, place: str = "") -> UsageError:
    """Return the error of a forced engine that cannot run."""
    return UsageError(f"{VARIABLE}={engine}: {reason}", "use auto", place=place)


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


def static_engine(layer: LayerSpec) -> Choice:
    """Choose the engine of one LSTM, GRU or SimpleRNN in float32 on CPU.

    Raises:
        UsageError: the engine of ``K2T_ENGINE`` cannot run this layer.
    """
    wanted = requested_engine()
    of_torch, lacks = _torch_class(layer), why_not_torch_kernel(layer)
    by_torch = Choice("loop", lacks) if lacks else Choice("fused", of_torch)
    match wanted:
        case "loop":
            return Choice("loop", f"{VARIABLE}=loop")
        case "fused" if lacks:
            raise refusal("fused", lacks, layer.place)
        case "fused":
            return Choice("fused", f"{VARIABLE}=fused: {of_torch}")
        case "torch":
            return by_torch
    kind, config = kind_of(layer), layer.config
    missing = why_missing() and f"there is no native kernel: {why_missing()}"
    gate = config.get("recurrent_activation", "linear")
    if not find_codes(kind, config["activation"], gate)[0]:
        missing = "the native kernel lacks an activation of this layer"
    if wanted == "native":
        if missing:
            raise refusal("native", missing, layer.place)
        return Choice("native", f"{VARIABLE}=native")
    if missing:
        return by_torch
    reason = f"float32 on CPU; else {by_torch.engine}: {by_torch.reason}"
    weights = CELL_KINDS[kind].gates * config["units"] ** 2
    if not (lacks or native_pays(kind, SEVERAL, weights)):
        reason += f", also for {SEVERAL} rows and more without mask"
    return Choice("native", reason)


# From this many rows on, and above this many recurrent weights of one direction, torch's LSTM
# (oneDNN) is faster than the native kernel; its GRU never is.
SEVERAL, MANY_WEIGHTS = 4, 2**20


def native_pays(kind: str, rows: int, weights: int) -> bool:
    """Return whether native is faster than torch's kernel for a kind of cell.

    Measured by `python -m benchmarks layers`. weights: recurrent ones of a direction.
    """
    return kind != "LSTM" or weights <= MANY_WEIGHTS or rows < SEVERAL


def why_not_torch_kernel(layer: LayerSpec) -> str:
    """Return why torch's layer does not compute a layer; empty if it does."""
    config, kind = layer.config, kind_of(layer)
    standard = {"activation": CELL_KINDS[kind].torch_activations or ("tanh",)}
    if "recurrent_activation" in config:
        standard["recurrent_activation"] = ("sigmoid",)
    for option, allowed in standard.items():
        if config[option] not in allowed:
            return f"{_torch_class(layer)} has no {option} {activation_label(config[option])}"
    if kind == GRU_BEFORE:
        return "nn.GRU resets after the product, this GRU before (reset_after)"
    return ""


def _torch_class(layer: LayerSpec) -> str:
    """Return the name of torch's layer of the same cell."""
    return f"nn.{CELL_KINDS[kind_of(layer)].torch_name}"
