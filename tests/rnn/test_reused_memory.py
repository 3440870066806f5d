"""Large memory that is used again: never while something refers to it, and not for ever."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import keras2torch_birnn as k2t
from keras2torch_birnn.rnn.native import reused_memory
from keras2torch_birnn.rnn.native.library import why_missing
from keras2torch_birnn.rnn.native.reused_memory import ReusedMemory

SHAPE = (11, 101, 257)  # 1.1 MiB


@pytest.fixture
def memory() -> ReusedMemory:
    return ReusedMemory()


def test_freed_memory_is_used_again_for_tensors_of_about_its_size(memory: ReusedMemory) -> None:
    first = memory.empty(*SHAPE)
    assert first.shape == SHAPE
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert first.data_ptr() % 64 == 0
    at = first.data_ptr()
    second = memory.empty(*SHAPE)
    assert second.data_ptr() != at
    del first
    assert memory.empty(11, 103, 257).data_ptr() == at  # 2 % more
    assert memory.empty(11, 199, 257).data_ptr() != at


@pytest.mark.parametrize(
    "refer",
    [
        lambda x: x[3:, 5],
        lambda x: x.detach(),
        lambda x: x.numpy()[1],
        lambda x: x.untyped_storage(),
        lambda x: torch.ones(257, requires_grad=True) * x,  # which keeps x for its gradient
        lambda x: torch.utils.dlpack.to_dlpack(x),
    ],
)
def test_memory_is_not_used_while_something_refers_to_it(refer: Any, memory: ReusedMemory) -> None:
    x = memory.empty(*SHAPE)
    at = x.data_ptr()
    other = refer(x)
    del x
    assert memory.empty(*SHAPE).data_ptr() != at
    del other
    found = {memory.empty(*SHAPE).data_ptr() for _ in range(2)}
    again = [memory.empty(*SHAPE) for _ in range(3)]
    assert at in found | {x.data_ptr() for x in again}


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.resize_(2 * x.numel()),
        lambda x: x.untyped_storage().resize_(0),
        lambda x: x.share_memory_(),
    ],
)
def test_memory_that_is_not_what_it_was_is_not_used_again(
    change: Any, memory: ReusedMemory
) -> None:
    x = memory.empty(*SHAPE)
    change(x)
    handle = x.untyped_storage()._cdata
    held = [x]
    del x, held
    assert memory.empty(*SHAPE).untyped_storage()._cdata != handle


def test_a_tensor_grows_as_any_other(memory: ReusedMemory) -> None:
    x = memory.empty(*SHAPE).fill_(3)
    x.resize_(23, *SHAPE[1:])
    assert (x[: SHAPE[0]] == 3).all()
    y = memory.empty(*SHAPE)
    torch.add(torch.ones_like(x), 1, out=y.resize_(0))
    assert y.shape == x.shape
    assert (y == 2).all()


def test_memory_that_numpy_had_is_taken_last(memory: ReusedMemory) -> None:
    """Torch does not let it grow any more."""
    x, y = memory.empty(*SHAPE), memory.empty(*SHAPE)
    y.numpy()
    del x, y
    first, second = memory.empty(*SHAPE), memory.empty(*SHAPE)
    assert first.untyped_storage().resizable()
    assert not second.untyped_storage().resizable()


def test_without_a_count_of_holders_no_memory_is_used_again(
    memory: ReusedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_memory, "_count_holders", None)
    assert memory.empty(*SHAPE).shape == SHAPE
    assert memory._rooms == []


def test_idle_memory_is_limited_in_size_and_time(
    memory: ReusedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_memory, "IDLE_BYTES", 3 << 20)
    monkeypatch.setattr(reused_memory, "IDLE_REQUESTS", 7)
    held = [memory.empty(*SHAPE) for _ in range(5)]
    assert idle_bytes(memory) == 0
    while held:
        held.pop()
    # The last one is noticed when the next one is freed.
    assert 2 << 20 < idle_bytes(memory) < 5 << 20
    for _ in range(8):
        memory.empty(2, *SHAPE)
    assert idle_bytes(memory) < 3 << 20  # those of the last size alone
    assert len({room.storage.nbytes() for room in memory._rooms}) == 1


def idle_bytes(memory: ReusedMemory) -> int:
    count = reused_memory._count_holders
    assert count is not None
    return sum(room.storage.nbytes() for room in memory._rooms if room.is_idle(count))


def test_memory_beyond_the_limit_is_not_kept(
    memory: ReusedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reused_memory, "IDLE_BYTES", 1 << 20)
    assert memory.empty(*SHAPE).shape == SHAPE
    assert memory._rooms == []


def test_small_memory_is_not_kept(memory: ReusedMemory) -> None:
    assert memory.empty(7, 11).shape == (7, 11)
    assert memory._rooms == []


def test_memory_that_a_collection_frees_while_its_thread_has_the_lock(
    memory: ReusedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = memory.empty(*SHAPE)
    monkeypatch.setattr(reused_memory, "IDLE_BYTES", 1 << 20)
    with memory._lock:
        del x  # would wait for ever
    assert len(memory._rooms) == 1


def test_threads_never_share_memory(memory: ReusedMemory) -> None:
    start = threading.Barrier(4)

    def work(number: int) -> bool:
        start.wait()
        right = True
        for turn in range(60):
            held = [memory.empty(*SHAPE).fill_(number + i) for i in range(1 + turn % 3)]
            right &= all(bool((x == number + i).all()) for i, x in enumerate(held))
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(0, 40, 10)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_does_not_wait_for_a_thread_of_its_parent() -> None:
    memory = reused_memory._memory
    with memory._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if memory.empty(*SHAPE).shape == SHAPE else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(bool(why_missing()), reason="without the native kernel")
@pytest.mark.parametrize("training", [True, False])
def test_calls_use_the_memory_of_earlier_ones(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = ReusedMemory()
    monkeypatch.setattr(reused_memory, "_memory", memory)
    torch.manual_seed(5)
    model = k2t.BiLSTM(17, 67, merge_mode="concat", batch_first=True).train(training)
    inputs = [torch.randn(29, 101, 17) for _ in range(3)]

    def call(x: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.set_grad_enabled(training):
            out = model(x)[0]
            if training:
                out.square().sum().backward()
        return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    kept = [call(x) for x in inputs]
    used = idle_bytes(memory)
    assert bool(used) == training  # the outputs are held
    copies = [[x.clone() for x in one] for one in kept]
    del kept
    again = [call(x) for x in inputs]
    for one, before in zip(again, copies, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, before, strict=True))
    del again, one
    assert len(memory._rooms) < memory._requests
