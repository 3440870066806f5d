"""Normalization of inputs that lie in memory in any way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from keras2torch_birnn.layers.normalization import BatchNorm

B, T, C = 3, 5, 7
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in rows": lambda x: x.contiguous(),
    "channels first": lambda x: x.movedim(-1, 1).contiguous().movedim(1, -1),
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "a half of the channels": lambda x: torch.cat((x, x + 1), -1)[..., : x.shape[-1]],
    "every other row": lambda x: torch.stack((x, x + 1), 1)[:, 0],
}


def norm(channels: int, axis: int) -> BatchNorm:
    module = BatchNorm(channels, axis=axis, eps=1e-3, momentum=0.1)
    generator = torch.Generator().manual_seed(1)
    names = ("running_mean", "running_var", "weight", "bias")
    values = {name: torch.rand(channels, generator=generator) + 0.1 for name in names}
    module.to_empty(device="cpu").load_state_dict(values, strict=False)
    return module.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_any_layout_gives_the_formula(axis: int, layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(B, T, C, generator=torch.Generator().manual_seed(2)))
    module = norm(x.shape[axis], axis)
    shape = [size if place == axis % 3 else 1 for place, size in enumerate(x.shape)]
    mean, var, weight, bias = (
        tensor.double().view(shape)
        for tensor in (module.running_mean, module.running_var, module.weight, module.bias)
        if tensor is not None
    )
    wanted = (x.double() - mean) / torch.sqrt(var + 1e-3) * weight + bias
    got = module(x.movedim(axis, 1)).movedim(1, axis).double()
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_the_statistics_of_all_processes_are_torchs_and_take_no_mask() -> None:
    module = norm(C, 2)
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(module).eval()
    x = torch.randn(B, C, T, generator=torch.Generator().manual_seed(3))
    assert isinstance(theirs, nn.SyncBatchNorm)
    torch.testing.assert_close(theirs(x), module(x))
    with pytest.raises(TypeError, match="mask"):
        theirs(x, mask=torch.ones(B, T, dtype=torch.bool))
