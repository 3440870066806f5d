"""Check whether tensors may be read at their addresses, without torch's operators.

Such code (the native kernel, a captured graph) needs memory that holds the numbers torch would
compute with, and knows nothing of derivatives and transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.torch_private import assume_so, find, last_name

_TYPES = {Tensor, nn.Parameter}
_ad: Any = forward_ad
_LEVEL = last_name("dual_level")
_transforms: Any = find("transforms")
# How many modes see every operator (FakeTensorMode is one), and the innermost ``torch.func``.
_modes: Any = find("count_dispatch_modes") or assume_so
_transform: Any = getattr(_transforms, "peek_interpreter_stack", assume_so)
is_tracing: Callable[[], bool] = cast(Any, torch.jit).is_tracing


def refuse_tracing() -> None:
    """Refuse ``torch.jit.trace``, which would record what this call's values make of a layer.

    Raises:
        UsageError: a trace is being recorded.
    """
    if is_tracing():
        raise UsageError(
            "torch.jit does not trace converted models and layers",
            "use torch.export.export or `k2t export`",
        )


is_exporting_by_torch: Callable[[], bool] = torch.compiler.is_exporting


# Of all modules.
_GLOBAL_HOOKS: Sequence[Mapping[Any, Any]] = [
    getattr(nn.modules.module, f"_global_{kind}_hooks", {"unknown": None})
    for kind in ("forward", "forward_pre", "backward", "backward_pre")
    if find("global_hooks") is not None
] or [{"unknown": None}]


def has_global_hooks() -> bool:
    """Return whether torch calls a hook at every module."""
    return any(_GLOBAL_HOOKS)


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Tell whether code outside torch may read all these tensors at their addresses.

    Not tensors without memory (``have_memory``), with a pending negation (a view of the imaginary
    part of a conjugate) or with a tangent.
    """
    return (
        have_memory(tensors) and not any(map(Tensor.is_neg, tensors)) and not have_tangents(tensors)
    )


def have_memory(tensors: Sequence[Tensor]) -> bool:
    """Tell whether all these tensors have memory of their own, with readable values.

    Wrapper subclasses, fake and meta tensors have none. Any other subclass is for torch's
    operators, too, and any tensor inside ``torch.func`` or while a mode sees every operator: new
    tensors are then of other kinds. Not for use inside a graph that is being compiled.
    """
    if _modes() or _transform() or not _TYPES.issuperset(map(type, tensors)):
        return False
    try:
        addresses = list(map(Tensor.data_ptr, tensors))
    except RuntimeError:  # sparse, or left over from torch.func
        return False
    return 0 not in addresses or all(
        address or not tensor.numel() for address, tensor in zip(addresses, tensors, strict=True)
    )


def have_tangents(tensors: Iterable[Tensor]) -> bool:
    """Tell whether one of these tensors is a dual number of forward-mode differentiation."""
    return getattr(_ad, _LEVEL, 0) >= 0 and any(
        _ad.unpack_dual(tensor).tangent is not None for tensor in tensors
    )


def are_mapped(tensors: Iterable[Tensor]) -> bool:
    """Tell whether ``torch.vmap`` maps one of these tensors, at any level of transforms."""
    return any(map(_is_mapped, tensors))


def _is_mapped(tensor: Tensor) -> bool:
    if _transforms is None:
        return True
    while _transforms.is_functorch_wrapped_tensor(tensor):
        if _transforms.is_batchedtensor(tensor):
            return True
        tensor = _transforms.get_unwrapped(tensor)
    return False


def outside_inference(tensor: Tensor) -> Tensor:
    """Copy a tensor that was made in inference mode, which autograd cannot save."""
    return tensor.clone() if tensor.is_inference() else tensor
