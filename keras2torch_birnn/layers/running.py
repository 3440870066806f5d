"""Run a converted model: inputs on its device, fresh states, outputs as a flat tuple."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import check_module
from keras2torch_birnn.rnn.custom_cell import CustomRNN
from keras2torch_birnn.rnn.modules import AnyRecurrent


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Call the model once from fresh states; return its outputs as a flat tuple on the CPU.

    Those of bfloat16, which NumPy lacks, become float32.
    """
    given = move_inputs(model, inputs)
    forget_states(model)
    with torch.no_grad():
        out = model(*given)
    forget_states(model)
    outputs = (y.cpu() for y in flat(out))
    return tuple(y.float() if y.dtype is torch.bfloat16 else y for y in outputs)


def find_float_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's float weights."""
    tensors = model.state_dict().values()
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def move_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Move the inputs to the model's device, floats also to its precision."""
    device = next(iter(model.state_dict().values()), torch.zeros(())).device
    kind = find_float_dtype(model)
    return tuple(x.to(device, kind) if x.is_floating_point() else x.to(device) for x in inputs)


def reset_states(model: nn.Module) -> None:
    """Reset the states that ``stateful`` layers keep between batches to zeros, as Keras does.

    Args:
        model: What ``convert`` or ``load`` returned, or any module that holds such models.
    """
    check_module(model)
    forget_states(model, from_zeros=True)


def forget_states(model: nn.Module, *, from_zeros: bool = False) -> None:
    """Forget what ``stateful`` layers carry, so that they begin as after loading.

    from_zeros: cells of plugins do not begin with states of their own, either.
    """
    for module in model.modules():
        if isinstance(module, AnyRecurrent):
            module.carried = None
            for part in module.modules() if module.plan.stateful else ():
                if isinstance(part, CustomRNN):
                    part.from_zeros = from_zeros


def flat(output: Any) -> tuple[Tensor, ...]:
    """Flatten a model's output to a tuple of tensors, in Keras' order."""
    if isinstance(output, Tensor):
        return (output,)
    values = output.values() if isinstance(output, Mapping) else output
    return tuple(tensor for part in values for tensor in flat(part))
