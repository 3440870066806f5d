"""Compare the whole model, in its own precision and on one device, with one baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.comparison.report import Comparison
from keras2torch_birnn.comparison.tolerance import Tolerance, all_close, max_errors
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.freezing import ONE_CALL, freeze
from keras2torch_birnn.layers.running import flat, move_inputs, run
from keras2torch_birnn.reference.rounding import UNJUDGEABLE, share_of
from keras2torch_birnn.spec import Array
from keras2torch_birnn.torch_import import lacks_memory

# A larger share than UNJUDGEABLE: a baseline in half precision is never more exact than this.
UNJUDGEABLE_HALF = 0.1
# Errors where a model does not fit its inputs, or its layers, of plugins too, each other.
FAILURES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Torch refuses questions in the older form (``allow_tf32``) once one of these is set. Those of
# cuDNN have values from the start, the others follow a setting above them.
_OWN = ("cudnn.rnn", "cudnn.conv")
_SETTINGS = (*_OWN, "cuda.matmul", "mkldnn.matmul", "mkldnn.rnn", "mkldnn.conv")


def compare(
    actual: Sequence[Array] | str,
    expected: Sequence[Array],
    roundings: Sequence[float],
    tolerance: Tolerance,
    *,
    device: str,
    against: str,
    inputs: str = "",
    coarseness: float = 1.0,
) -> Comparison:
    """Compare outputs with a baseline's.

    ``actual``: the outputs, or the reason why there are none. ``roundings``: float32's rounding
    error of each output. ``coarseness``: factor by which the baseline's arithmetic is coarser.
    """
    share = share_of(expected, roundings)
    judged = share <= UNJUDGEABLE and coarseness * share <= UNJUDGEABLE_HALF
    roundings = [coarseness * one for one in roundings]
    rounding = max(roundings, default=0.0)
    if isinstance(actual, str):
        far = float("inf")
        return Comparison(
            device, against, far, far, rounding, False, inputs=inputs, judged=True, failure=actual
        )
    absolute, relative = max_errors(actual, expected)
    ok = judged and all_close(actual, expected, roundings, tolerance)
    return Comparison(
        device, against, absolute, relative, rounding, ok, inputs=inputs, judged=judged
    )


def outputs(
    model: nn.Module, inputs: Sequence[Array], device: str, *, strict: bool
) -> tuple[Array, ...] | str:
    """Compute the model's outputs, or return why that failed. ``strict``: without TF32.

    Raises:
        UsageError: the device does not take the model, or has too little memory.
    """
    tensors = tuple(torch.from_numpy(np.asarray(x)) for x in inputs)
    try:
        moved = model.to(device)
    except FAILURES as failure:  # such as MPS, which has no float64
        reason = _first_line(failure)
        raise UsageError(f"device {device}: it does not take the model ({reason})") from None
    with float32_precision("ieee") if strict else nullcontext():
        try:
            return tuple(y.numpy() for y in run(moved, tensors))
        except FAILURES as failure:
            if isinstance(failure, torch.OutOfMemoryError) or lacks_memory(failure):
                raise UsageError(f"device {device}: it has too little memory") from None
            return _first_line(failure)


@contextmanager
def float32_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute float32 in full precision ("ieee") or in TF32 for a while, on every device.

    cuDNN's default for RNNs is TF32 (errors of 1e-3). All settings are restored.
    """
    backends: Any = torch.backends
    settings: dict[str, Any] = {path: attrgetter(path)(backends) for path in _SETTINGS}
    before = {path: setting.fp32_precision for path, setting in settings.items()}
    for setting in settings.values():
        setting.fp32_precision = precision
    try:
        yield
    finally:
        for path, setting in settings.items():
            if path not in _OWN:
                setting.fp32_precision = "none"  # follow the setting above, if that says the same
            if setting.fp32_precision != before[path]:
                setting.fp32_precision = before[path]


def frozen_outputs(model: nn.Module, inputs: Sequence[Array]) -> tuple[Array, ...] | str | None:
    """Compute the outputs of a model on the CPU by its frozen form, or return why that failed.

    None where there is no other form: its modules are called, or it keeps states.
    """
    model = model.to("cpu")
    given = move_inputs(model, tuple(torch.from_numpy(np.asarray(x)) for x in inputs))
    try:
        fast = freeze(model)
    except UsageError:
        return None
    try:
        found = tuple(y.numpy() for y in flat(fast(*given)))
    except FAILURES as failure:
        return _first_line(failure)
    return found if ONE_CALL in fast.explain_calls().values() else None


def _first_line(failure: Exception) -> str:
    return printable(f"{type(failure).__name__}: {failure}".strip().splitlines()[0])
