"""Names of torch that are not public: each in one place, with what goes without it.

``PRIVATE`` lists them. A test takes each away: models then run in another way, more slowly, with
the same numbers. Attributes that every ``nn.Module`` has (``_parameters``, ``_buffers``,
``_modules``, its hooks) are used by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from importlib import import_module
from itertools import count
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


class PrivateName(NamedTuple):
    """A name: where it is, what it is for, and what goes without it."""

    module: str
    path: str
    purpose: str
    without: str


_NO_MEMORY = "no tensor is read at its address: torch's operators compute everything"
_NO_PROGRAMS = "no model runs as a recorded program"
_SCAN = "a loop as one node of torch.export"
_SHAPES = "the shapes of torch's recurrent kernels for any number of steps"
_BY_STEP = "these kernels are exported step by step, or as loops"
_UNROLLED = "a loop is recorded step by step, for the number of steps of the example, or refused"

PRIVATE: Mapping[str, PrivateName] = {
    "count_dispatch_modes": PrivateName(
        "torch._C", "_len_torch_dispatch_stack", "modes that see every operator", _NO_MEMORY
    ),
    "transforms": PrivateName("torch._C", "_functorch", "transforms of torch.func", _NO_MEMORY),
    "dispatch_mode": PrivateName(
        "torch.utils._python_dispatch", "TorchDispatchMode", "recording operators", _NO_PROGRAMS
    ),
    "global_hooks": PrivateName(
        "torch.nn.modules.module", "_global_forward_hooks", "hooks of all modules", _NO_PROGRAMS
    ),
    "dual_level": PrivateName(
        "torch.autograd.forward_ad",
        "_current_level",
        "whether derivatives are computed forward",
        "every tensor is asked for its tangent",
    ),
    "tensor_version": PrivateName(
        "torch",
        "Tensor._version",
        "whether a tensor changed since it was read",
        "it is assumed to have changed",
    ),
    "scan": PrivateName("torch._higher_order_ops.scan", "scan", _SCAN, _UNROLLED),
    "scan_op": PrivateName("torch._higher_order_ops.scan", "scan_op", _SCAN, _UNROLLED),
    "dispatch_key": PrivateName("torch._C", "DispatchKey", _SHAPES, _BY_STEP),
    "kernel_table": PrivateName("torch", "ops.aten.lstm.input.py_kernels", _SHAPES, _BY_STEP),
    "kernel_cache": PrivateName("torch", "ops.aten.lstm.input._dispatch_cache", _SHAPES, _BY_STEP),
    "shape_config": PrivateName(
        "torch.fx.experimental",
        "_config",
        "exports that are right for sizes of one, too",
        "sizes of one are checked after the export",
    ),
}


def find(name: str) -> Any:
    """Return what a name of ``PRIVATE`` stands for; None where torch does not have it."""
    row = PRIVATE[name]
    try:
        return reduce(getattr, row.path.split("."), cast(Any, import_module(row.module)))
    except (ImportError, AttributeError):
        return None


def last_name(name: str) -> str:
    """Return the attribute that a name of ``PRIVATE`` is of its object."""
    return PRIVATE[name].path.rpartition(".")[2]


def find_version() -> Callable[[Tensor], int]:
    """Return a function that numbers the states of a tensor, each call if torch does not."""
    found, numbers = find("tensor_version"), count()
    return (lambda _: next(numbers)) if found is None else cast(Any, found).__get__


def assume_so() -> bool:
    """Return True, in place of a question that torch no longer answers."""
    return True


def mark_constant(function: Function) -> Function:
    """Return a function whose result torch.compile takes as a constant.

    As ``torch.compiler.assume_constant_result`` does, which imports all of torch's compiler, a
    second in every process that converts a model. Where the mark is unknown, it is traced.
    """
    cast(Any, function)._dynamo_marked_constant = True
    return function
