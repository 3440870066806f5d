"""The whole model in its own precision, on one device, against one yardstick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.conversion import run
from keras2torch_birnn.errors import printable
from keras2torch_birnn.reference.rounding import UNJUDGEABLE, share_of
from keras2torch_birnn.spec import Array
from keras2torch_birnn.verification.closeness import Tolerance, all_close, error
from keras2torch_birnn.verification.report import Comparison

# A yardstick of half precision says something for longer: it is never closer than that.
UNJUDGEABLE_HALF = 0.1
# What arithmetic raises where a model does not fit its inputs, or itself.
FAILURES = (RuntimeError, LookupError, TypeError, ValueError)


def compare(
    got: Sequence[Array] | str,
    wanted: Sequence[Array],
    roundings: Sequence[float],
    limit: Tolerance,
    *,
    device: str,
    against: str,
    inputs: str = "",
    coarseness: float = 1.0,
) -> Comparison:
    """Compare outputs with a yardstick's.

    ``got``: the outputs, or why there are none. ``roundings``: of each output, how far float32
    arithmetic is off. ``coarseness``: how many times as coarse the yardstick's own arithmetic is.
    """
    share = share_of(wanted, roundings)
    judged = share <= UNJUDGEABLE and coarseness * share <= UNJUDGEABLE_HALF
    roundings = [coarseness * one for one in roundings]
    rounding = max(roundings, default=0.0)
    if isinstance(got, str):
        far = float("inf")
        return Comparison(
            device, against, far, far, rounding, False, inputs=inputs, judged=True, failure=got
        )
    absolute, relative = error(got, wanted)
    ok = judged and all_close(got, wanted, roundings, limit)
    return Comparison(
        device, against, absolute, relative, rounding, ok, inputs=inputs, judged=judged
    )


def outputs(
    model: nn.Module, inputs: Sequence[Array], device: str, *, strict: bool
) -> tuple[Array, ...] | str:
    """The model's outputs, or why it cannot be computed. ``strict``: without TF32."""
    tensors = tuple(torch.from_numpy(np.asarray(x)) for x in inputs)
    with _precision(strict=strict):
        try:
            return tuple(y.numpy() for y in run(model.to(device), tensors))
        except FAILURES as failure:
            text = f"{type(failure).__name__}: {failure}".strip().splitlines()[0]
            return printable(text)


@contextmanager
def _precision(*, strict: bool) -> Iterator[None]:
    """``strict``: no TF32 on CUDA, which cuDNN's RNNs use by default (errors of about 1e-3)."""
    if not strict or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
