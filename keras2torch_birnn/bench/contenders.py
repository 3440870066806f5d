"""Implementations that can be timed: where each runs, what it needs, what it cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TypeAlias

from keras2torch_birnn.bench.case import Case, Model, Stack
from keras2torch_birnn.exporting.onnx_file import TARGET

OURS = "k2t"
PLAIN = "torch per layer"
UNFROZEN = "k2t not frozen"
COMPILED, LOOP = "k2t compiled", "naive loop"
# No peers of ours: our own, and what one writes by hand with torch alone.
NO_PEERS = (OURS, UNFROZEN, COMPILED, PLAIN, LOOP)


Against: TypeAlias = Callable[[Case], str]


def _anything(case: Case) -> str:
    return ""


def _stacks(case: Case) -> str:
    return "" if isinstance(case, Stack) else "made for stacks only"


def _torch_alone(case: Case) -> str:
    """Tell why nn.LSTM, nn.GRU or nn.RNN, with the merge by hand, cannot run a case."""
    if isinstance(case, Model):
        return ""
    if case.rnn != "rnn" and case.recurrent_activation != "sigmoid":
        return "torch has no kernel with this recurrent_activation"
    if case.rnn == "gru" and not case.reset_after:
        return "nn.GRU resets after the product only"
    if case.dropout:
        return "torch has no dropout of the state"
    return ""


def _unmasked_torch(case: Case) -> str:
    if isinstance(case, Stack) and case.masked:
        return "packing breaks the compiled graph"
    return _torch_alone(case) or _stacks(case)


def _calls(case: Case) -> str:
    return "does not train" if isinstance(case, Stack) and case.training else ""


def _frozen_calls(case: Case) -> str:
    return "nothing is frozen that trains" if _calls(case) else ""


def _calls_of_stacks(case: Case) -> str:
    return _stacks(case) or _calls(case)


def _written_in_onnx(case: Case) -> str:
    """Tell why a case cannot be written as ONNX; empty if it can."""
    return TARGET.why_cannot_write() if isinstance(case, Model) else _calls(case)


def _models_in_onnx(case: Case) -> str:
    return _written_in_onnx(case) if isinstance(case, Model) else "made for models only"


def _training(case: Case) -> str:
    if not (isinstance(case, Stack) and case.training):
        return "for training only"
    return "Keras draws other random numbers" if case.dropout else ""


@dataclass(frozen=True)
class Contender:
    """An implementation: ``prepare`` of a module, in a process of its own.

    ``how``: the function's second argument. ``needs``: packages that must be installed.
    ``against``: why it cannot run a case; empty if it can. ``tolerance``: of the largest output;
    None for that of the case.
    """

    module: str
    how: str
    needs: tuple[str, ...] = ("torch",)
    environment: Mapping[str, str] = field(default_factory=dict)
    against: Against = _anything
    devices: tuple[str, ...] = ("cpu", "cuda", "xpu", "mps")
    tolerance: float | None = None


BY_TORCH, BY_ONNX, BY_KERAS = (
    f"keras2torch_birnn.bench.{name}" for name in ("by_torch", "by_onnx", "by_keras")
)


def _by_onnx(how: str, *needs: str, against: Against = _written_in_onnx) -> Contender:
    return Contender(BY_ONNX, how, ("onnx", *needs), {}, against, ("cpu",))


def _by_keras(how: str, against: Against, backend: str = "tensorflow") -> Contender:
    environment = {"KERAS_BACKEND": backend}
    return Contender(BY_KERAS, how, ("keras", backend), environment, against, ("cpu",))


CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(BY_TORCH, "auto-frozen"),
    UNFROZEN: Contender(BY_TORCH, "auto", against=_frozen_calls),
    PLAIN: Contender(BY_TORCH, "torch", against=_torch_alone),
    "torch.compile": Contender(BY_TORCH, "compile", against=_unmasked_torch),
    COMPILED: Contender(BY_TORCH, "auto-compile"),
    LOOP: Contender(BY_TORCH, "loop"),
    "ONNX Runtime": _by_onnx("onnxruntime", "onnxruntime", "onnxscript"),
    "ONNX Runtime, torch's file": _by_onnx(
        "onnxruntime-by-torch", "onnxruntime", "onnxscript", against=_models_in_onnx
    ),
    "OpenVINO": _by_onnx("openvino", "openvino"),
    "Keras predict": _by_keras("predict", _calls),
    "Keras tf.function": _by_keras("function", _calls),
    "Keras XLA": _by_keras("xla", _calls),
    "Keras train_on_batch": _by_keras("train", _training),
    "Keras train_on_batch XLA": _by_keras("train-xla", _training),
    "Keras on torch": _by_keras("call", _calls_of_stacks, "torch"),
}


def reason_against(
    name: str, case: Case, device: str, table: Mapping[str, Contender] = CONTENDERS
) -> str:
    """Tell why a contender of a table cannot run this case; empty if it can."""
    contender = table[name]
    if device.partition(":")[0] not in contender.devices:
        return f"not timed on {device}"
    needs = contender.needs
    if isinstance(case, Model):
        if case.cut and "keras" in needs:
            return "Keras runs whole models only"
        needs = tuple(case.package if package == "keras" else package for package in needs)
    lacking = [package for package in needs if find_spec(package) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed"
    return contender.against(case)
