"""Calls that would end the interpreter if raw memory were read: run as a process of its own.

Prints a line for each check that holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import keras2torch_birnn as k2t

B, T, F, H = 3, 5, 7, 11
MASK = torch.arange(T) < torch.tensor([5, 3, 0])[:, None]


class Wrapper(Tensor):
    """A tensor as in quantizing libraries: no memory of its own, another tensor inside."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = Tensor
        return made._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = pytree.tree_map(unwrapped, (args, kwargs or {}))
        result = function(*args, **kwargs)
        return Wrapper(result) if function is torch.ops.aten.detach.default else result


def unwrapped(value: Any) -> Any:
    return value.inner if isinstance(value, Wrapper) else value


LAYERS: tuple[Callable[..., Any], ...] = (
    k2t.BiLSTM,
    k2t.BiGRU,
    lambda *sizes, **options: k2t.BiGRU(*sizes, reset_after=False, **options),
    k2t.BiRNN,
)


def layers() -> list[Any]:
    torch.manual_seed(0)
    return [make(F, H, batch_first=True, merge_mode="sum").eval() for make in LAYERS]


def replace_parameters(module: nn.Module, made: Callable[[Tensor], Tensor]) -> None:
    for name, p in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(made(p.detach().clone()), requires_grad=False))


def assert_same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)


def wrapped(mask: Tensor | None) -> None:
    x = torch.randn(B, T, F)
    for layer in layers():
        wanted = layer(x, mask=mask)[0]
        replace_parameters(layer, Wrapper)
        for given in (x, Wrapper(x)):
            assert_same(layer(given, mask=mask)[0], wanted)


def fake(mask: Tensor | None) -> None:
    real, x = layers(), torch.randn(B, T, F)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = layers()
        ones = None if mask is None else torch.ones(B, T, dtype=torch.bool)
        for layer in (*real, *made):
            for given in (x, torch.randn(B, T, F)):
                for counts in (mask, ones):
                    assert layer(given, mask=counts)[0].shape == (B, T, H)
    for layer in made:  # the mode is over, its weights still have no values
        lives(lambda one=layer: one(x, mask=mask))


def lives(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or None if torch's own operators refuse it."""
    try:
        return call()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        assert str(error)
    return None


def without_memory() -> None:
    x: Any = torch._efficientzerotensor((B, T, F))
    for layer in layers():
        assert_same(layer(x)[0], layer(torch.zeros(B, T, F))[0])


def distributed(mask: Tensor | None) -> None:
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    with tempfile.TemporaryDirectory() as folder:
        at = f"file://{Path(folder) / 'store'}"
        dist.init_process_group("gloo", init_method=at, rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        x = torch.randn(B, T, F)
        for layer in layers():
            wanted = layer(x, mask=mask)[0]
            replace_parameters(layer, lambda p: distribute_tensor(p, mesh, [Replicate()]))
            for given in (x, distribute_tensor(x, mesh, [Replicate()])):
                if found := lives(lambda a=given, one=layer: one(a, mask=mask)):
                    assert_same(found[0].full_tensor(), wanted)
        dist.destroy_process_group()


CHECKS: dict[str, Callable[[], None]] = {
    "wrapper subclasses": lambda: wrapped(None),
    "wrapper subclasses, masked": lambda: wrapped(MASK),
    "fake tensors": lambda: fake(None),
    "fake tensors, masked": lambda: fake(MASK),
    "zero tensors": without_memory,
    "DTensor": lambda: distributed(None),
    "DTensor, masked": lambda: distributed(MASK),
}

if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name, check in CHECKS.items():
        check()
        print(name, flush=True)
