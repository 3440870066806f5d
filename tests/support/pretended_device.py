"""A pretended CUDA device: tensors that say they are on it, with their numbers on the CPU.

It notes what a real one refuses (tensors of two devices in one operation; what cuDNN does not take
is an error at once), and what makes the host
wait: copies from the host, which a CUDA graph cannot hold either, and values that the host reads.
Kernels are those of the CPU. To torch itself the tensors are on the device "meta", for which it
needs no driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from keras2torch_birnn.rnn.layer import KERNELS

DEVICE = torch.device("cuda", 0)
# The host has to know how many there are, or reads a value.
_READS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
# Arguments and results of operations that are on the host wherever the others are.
_OF_HOST: Mapping[str, tuple[set[int], set[int]]] = {
    "_pack_padded_sequence": ({1}, {1}),
    "_pack_padded_sequence_backward": ({2}, set()),
    "_pad_packed_sequence": ({1}, {1}),
    **dict.fromkeys((f"{kernel.__name__}.data" for kernel in KERNELS.values()), ({1}, set())),
}
_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy)


class PretendedTensor(Tensor):
    """A tensor that says it is on a CUDA device. held: its numbers."""

    held: Tensor
    device: Any = DEVICE
    is_cuda: Any = True
    is_meta: Any = False

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendedTensor:
        make: Any = Tensor._make_wrapper_subclass
        made: PretendedTensor = make(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _entered[-1].compute(func, args, dict(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Show a device the operators on none of its tensors, which may make one, too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _entered[-1].compute(func, args, dict(kwargs or {}))


class PretendedDevice(TorchFunctionMode):
    """The device while it is entered.

    mismatches: operations with tensors of two devices. reads: those whose values the host waits
    for. copies: from the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mismatches: list[str] = []
        self.reads: list[str] = []
        self.copies: list[str] = []

    def put(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor on the device."""
        made = PretendedTensor(tensor.detach().clone())
        return nn.Parameter(made, tensor.requires_grad) if _is_parameter(tensor) else made

    def move(self, model: nn.Module) -> None:
        """Put the parameters and buffers of a model on the device."""
        moved: dict[int, Tensor] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None:
                        if id(tensor) not in moved:
                            moved[id(tensor)] = self.put(tensor)
                        table[name] = moved[id(tensor)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make new tensors on the device, for which torch would start CUDA."""
        kwargs = dict(kwargs or {})
        if func in KERNELS.values() and _is_device(args[0]):
            _refuse_as_cudnn(args)
        if func in _FROM_DATA or func is Tensor.new_tensor:
            like, *data = args if func is Tensor.new_tensor else (None, *args)
            already = isinstance(data[0], PretendedTensor)
            if not already and (_is_device(like) or _is_device(kwargs.get("device"))):
                self.copies.append(func.__name__)
                given = {"dtype": getattr(like, "dtype", None), **kwargs, "device": "cpu"}
                return PretendedTensor(torch.tensor(*data, **given))
        given = [_to_meta(one) for one in args]
        return func(*given, **{key: _to_meta(value) for key, value in kwargs.items()})

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute one operation on the CPU, and note what a device would have had to do."""
        name = func._schema.name.partition("::")[2]
        of_host, results_of_host = _OF_HOST.get(
            func.__name__.removesuffix(".default"), (set(), set())
        )
        given = [one for i, arg in enumerate(args) if i not in of_host for one in tree_leaves(arg)]
        given = [one for one in (*given, *tree_leaves(kwargs)) if isinstance(one, Tensor)]
        of_device = [one for one in given if isinstance(one, PretendedTensor)]
        of_cpu = [one for one in given if not isinstance(one, PretendedTensor)]
        made = _is_device(kwargs.get("device"))
        if not of_device and not made:
            return func(*args, **kwargs)
        to_host = kwargs.get("device") is not None and not made
        if name == "copy_" and of_cpu:
            to_host = of_cpu[0] is args[0]
            self.copies += [] if to_host else [name]
        elif of_cpu and (made or name.startswith("index")):
            self.copies.append(name)
        elif any(one.dim() for one in of_cpu):  # a number may be anywhere
            shapes = (f"{one.device.type} {list(one.shape)}" for one in given)
            self.mismatches.append(f"{name}: {', '.join(shapes)}")
        if to_host or name in _READS or _counts(name, args, kwargs):
            self.reads.append(name)
        if made:
            kwargs["device"] = "cpu"
        known = {id(one.held): one for one in of_device}

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return known[id(value)] if id(value) in known else PretendedTensor(value)

        if torch.Tag.inplace_view in func.tags:  # such as transpose_
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if isinstance(out, tuple):
            return tuple(o if i in results_of_host else wrap(o) for i, o in enumerate(out))
        return out if to_host else tree_map(wrap, out)


_entered: list[PretendedDevice] = []


def _refuse_as_cudnn(args: Any) -> None:
    """Raise what cuDNN raises, and torch's kernels on the CPU do not."""
    place = next(number for number, one in enumerate(args) if isinstance(one, list))
    states, train = tree_leaves(args[place - 1]), args[place + 4]
    if not all(state.is_contiguous() for state in states):
        raise RuntimeError("rnn: hx is not contiguous")
    given = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
    if torch.is_grad_enabled() and any(one.requires_grad for one in given) and not train:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _is_device(value: Any) -> bool:
    if isinstance(value, str | torch.device):
        return torch.device(value).type in (DEVICE.type, "meta")
    return isinstance(value, PretendedTensor)


def _to_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) and value == DEVICE else value


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value


def _counts(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether an operation has to know how many values are true, or their sum."""
    if name.startswith("index"):
        flags = [one for one in tree_leaves(args[1:2]) if isinstance(one, Tensor)]
        return any(one.dtype in (torch.bool, torch.uint8) for one in flags)
    return name == "repeat_interleave" and kwargs.get("output_size") is None


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Enter a pretended device, on which torch's kernels may pack sequences by their lengths."""
    device = PretendedDevice()
    _entered.append(device)
    with pytest.MonkeyPatch.context() as patching, device, _Operators():
        patching.setattr("keras2torch_birnn.rnn.engines.torch_kernel.have_memory", lambda _: True)
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        try:
            yield device
        finally:
            _entered.pop()
