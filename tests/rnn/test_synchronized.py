"""``synchronize_batch_norm``: several processes train BatchNormalization as one does."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from specs import FIXTURES
from torch import Tensor

import keras2torch_birnn as k2t

MODELS = FIXTURES / "training" / "keras-3.15.1"
NAMES = ("bn_3d", "bn_masked", "bn_4d")
PROCESSES = 2


def train(name: str, rows: slice) -> list[Tensor]:
    """Return statistics and gradients after a batch of these rows."""
    with np.load(MODELS / f"{name}.npz") as data:
        x, y = (torch.from_numpy(data[f"{kind}0_0"][rows]) for kind in "xy")
    model = k2t.convert(MODELS / f"{name}.before.keras").train()
    k2t.synchronize_batch_norm(model)
    (model(x) - y).square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    if dist.is_initialized():
        for grad in grads:
            dist.all_reduce(grad)
    return [*grads, *(b for n, b in model.named_buffers() if "running" in n)]


def compare_with_one_process(store: str, rank: int) -> None:
    """Train on every other row, and compare with what one process does on all."""
    alone = [train(name, slice(None)) for name in NAMES]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    for name, wanted in zip(NAMES, alone, strict=True):
        found = train(name, slice(rank, None, PROCESSES))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    dist.destroy_process_group()


@pytest.mark.thorough
def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path: Path) -> None:
    run_ranks(PROCESSES, __file__, tmp_path / "store")


if __name__ == "__main__":
    compare_with_one_process(sys.argv[1], int(sys.argv[2]))
