"""``KerasOptimizer.synchronize_rows``: several processes train an Embedding as one does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import keras2torch_birnn as k2t

# Adam squares the gradients of repeated ids one by one; clipnorm takes the norm of all of them.
FILES = ("keras-3.15.1/adam_tagger.keras", "keras-3.15.1/clipnorm.keras")
PROCESSES, STEPS = 2, 3


def train(file: str, rank: int | None) -> dict[str, Tensor]:
    """Return the weights after some steps with a share of the rows; rank None: with all rows."""
    state = k2t.training(FIXTURES / "compiled" / file)
    model: nn.Module = state.model
    if rank is not None:
        model = DistributedDataParallel(model)
        state.optimizer.synchronize_rows()
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        ids = torch.randint(0, 11, (2 * PROCESSES, 5), generator=generator)
        state.optimizer.zero_grad()
        share = ids if rank is None else ids[rank::PROCESSES]
        model(share).square().mean().backward()
        state.optimizer.step()
    return state.model.state_dict()


def compare_with_one_process(store: str, rank: int) -> None:
    """Train with every other row, and compare with what one process does with all."""
    alone = [train(file, None) for file in FILES]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    for file, wanted in zip(FILES, alone, strict=True):
        torch.testing.assert_close(train(file, rank), wanted, atol=1e-12, rtol=1e-12)
    dist.destroy_process_group()


@pytest.mark.thorough
def test_two_processes_train_the_rows_of_an_embedding_as_one_does(tmp_path: Path) -> None:
    run_ranks(PROCESSES, __file__, tmp_path / "store", "-W", "error::UserWarning")


if __name__ == "__main__":
    compare_with_one_process(sys.argv[1], int(sys.argv[2]))
