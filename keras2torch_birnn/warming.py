"""Prepare a model before its first request: compile, check and record for the shapes to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UsageError, check_module
from keras2torch_birnn.golden import origin
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.running import find_float_dtype, keep_states, run

InputShape: TypeAlias = Sequence[int]
"""Shape of an input, with the batch."""
# The first compiles kernels and checks them, the second records, the third runs the recording.
_CALLS = 3


def warm_up(model: nn.Module, shapes: Sequence[InputShape | Sequence[InputShape]]) -> None:
    """Call a model of ``convert`` or ``load``, or a ``BiLSTM`` and its kin, before requests do.

    In evaluation mode and without gradients. Afterwards calls of these shapes, types and devices
    compile, check and record nothing. The model's mode and states stay as they are.

    Args:
        model: The model to call.
        shapes: Shapes of the input, with the batch; of a model with several inputs, for each call a
            sequence of their shapes in Keras' order.

    Raises:
        UsageError: It is another model, or has more or fewer inputs.

    Example:
        >>> warm_up(BiLSTM(5, 7, batch_first=True), [(1, 11, 5), (32, 11, 5)])
    """
    check_module(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with keep_states(model):
            for shape in shapes:
                inputs = _inputs(model, shape)
                for _ in range(_CALLS):
                    run(model, inputs)
    finally:
        for module, training in modes:
            module.training = training


def _inputs(model: nn.Module, shape: Any) -> tuple[Tensor, ...]:
    """Return inputs of these shapes: the golden ones of a converted model, repeated."""
    if isinstance(shape, int):
        raise UsageError("a list of shapes is expected, found sizes", "[(1, 11)] is a list of one")
    wanted = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
    if any(size < 1 for sizes in wanted for size in sizes):
        raise UsageError(f"shape {list(shape)}: sizes of at least 1 are expected")
    if isinstance(model, BidirectionalStack):
        known: Sequence[Tensor] = [torch.zeros((), dtype=find_float_dtype(model))]
    else:
        known = origin(model).golden.inputs
    if len(known) != len(wanted):
        raise UsageError(f"shapes of {len(known)} inputs are expected, found {len(wanted)}")
    return tuple(
        torch.from_numpy(np.resize(x.numpy(), tuple(sizes)))
        for x, sizes in zip(known, wanted, strict=True)
    )
