"""The kernel at 2 to 16 threads, more than most machines have processors: the same numbers.

``native/share_out.cpp`` shares out work of any size; here it is large enough by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from built_kernels import COMPILER, NATIVE_TESTS, NUMBERS, build_program
from kernel_layers import CELLS, PRECISIONS, assert_close, both, half, native, reference
from sampling import rest_thorough
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.rnn.native.library import FOLDER
from keras2torch_birnn.spec import Array

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

THREADS = (2, 5, 16)
# Batch, steps, features, units: a single row whose units are shared out, in both directions and in
# one after the other; fewer rows than threads, more rows, and more units or fewer.
SHAPES = (
    (1, 23, 19, 331),
    (1, 37, 23, 149),
    (1, 7, 5, 433),
    (3, 1009, 11, 13),
    (17, 401, 7, 11),
    (67, 101, 5, 13),
)


def layer(cell: str, which: str, units: int, features: int) -> tuple[Any, Any]:
    """One direction, or two that are merged or apart; and its spec."""
    if which == "one":
        spec = half(cell, units, features, 1)
        return recurrent(spec), spec
    spec = both(cell, units, features, None if which == "apart" else which)
    return bidirectional(spec), spec


def draw(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """An input, and a mask of rows of many lengths: the last row has none."""
    batch, steps, features, _ = shape
    generator = torch.Generator().manual_seed(0)
    lengths = steps - torch.arange(1, batch + 1)[:, None] * 13 % steps
    if batch > 1:
        lengths[-1] = 0
    x = torch.randn(batch, steps, features, generator=generator)
    return x, torch.arange(steps) < lengths


def at_all(call: Callable[..., Any], *given: Any, **named: Any) -> Iterator[Any]:
    """Call at every number of threads."""
    for threads in THREADS:
        torch.set_num_threads(threads)
        yield call(*given, **named)


@cache
def wanted_of(cell: str, which: str, shape: tuple[int, int, int, int], masked: bool) -> list[Array]:
    """Return what the reference computes, which no number of threads changes."""
    _, spec = layer(cell, which, shape[3], shape[2])
    x, mask = draw(shape)
    return reference(spec, x.numpy(), mask.numpy() if masked else None)


@pytest.mark.every(4)
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("which", ["one", "apart", "mul"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_kernel_is_the_reference_at_any_number_of_threads(cell: str, which: str) -> None:
    for shape in SHAPES:
        module, _ = layer(cell, which, shape[3], shape[2])
        x, mask = draw(shape)
        for given in (None, mask):
            wanted = wanted_of(cell, which, shape, given is not None)
            with torch.no_grad():
                for got in at_all(module, x, given):
                    assert_close(got, wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_one_row_gives_the_same_bits_where_its_units_are_shared_out(cell: str) -> None:
    """Two threads split such a row, until they have gained nothing for some calls."""
    module, _ = layer(cell, "one", 331, 19)
    x, _ = draw((1, 23, 19, 331))
    with torch.inference_mode():
        wanted = module(x)
        torch.set_num_threads(2)
        for got in [module(x) for _ in range(100)]:
            assert torch.equal(got, wanted)


def gradients(module: Any, weights: list[Tensor], mask: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of the input, which comes first, and of the weights."""
    return torch.autograd.grad(module(weights[0], mask).sin().sum(), weights)


@pytest.mark.usefixtures("forced_native")
@pytest.mark.parametrize("cell", rest_thorough(CELLS, CELLS[:1]))
def test_gradients_are_those_of_one_thread_at_any_number(cell: str) -> None:
    for shape in SHAPES:
        module, _ = layer(cell, "mul", shape[3], shape[2])
        x, mask = draw(shape)
        weights = [x.requires_grad_(), *module.requires_grad_(True).parameters()]
        given = mask if shape[0] > 1 else None
        torch.set_num_threads(1)
        wanted = gradients(module, weights, given)
        for got in at_all(gradients, module, weights, given):
            assert_close(got, wanted, 1e-5)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
@pytest.mark.parametrize("cell", CELLS)
def test_reduced_precision_is_the_same_to_the_bit_at_any_number_of_threads(
    cell: str, precision: Any
) -> None:
    for shape in SHAPES:
        module, _ = layer(cell, "mul", shape[3], shape[2])
        k2t.set_precision(module, precision)
        x, mask = draw(shape)
        with torch.inference_mode():
            for given in (None, mask):
                torch.set_num_threads(1)
                wanted = module(x, given)
                for got in at_all(module, x, given):
                    assert torch.equal(got, wanted)


@pytest.mark.thorough
def test_any_work_shared_out_gives_the_same_numbers(tmp_path: Path) -> None:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    flags = ["-O1", "-DK2T_SHARE_ALL"]
    # Work is shared out in the same way whatever the instruction set.
    sets = 1 << NUMBERS["float32_plain"]
    program = build_program(NATIVE_TESTS / "share_out.cpp", tmp_path, flags, sets)
    run = subprocess.run([program], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "the same numbers\n", "")


def test_calls_that_wait_for_a_processor_are_told_from_long_ones(tmp_path: Path) -> None:
    """(all, own, gained): a slice of the scheduler, here 4 ms, is a stall if it comes often."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    short, shared, late = (130, 120, 1), (500, 400, 1), (4400, 400, 0)
    far_longer, uneven, long = (4100, 100, 0), (8000, 2000, 1), (31000, 29500, 0)
    calls = {
        "far longer than its task": [(short, 0), (far_longer, 1), (far_longer, 1)],
        "late once": [(shared, 0), (late, 0), *[(shared, 0)] * 300, (late, 0)],
        "late again": [(late, 0), *[(shared, 0)] * 200, (late, 1), (shared, 0), (late, 1)],
        "uneven tasks gained": [(uneven, 0), (uneven, 0), (late, 0), (uneven, 0), (late, 1)],
        "long tasks": [(long, 0), (long, 0), (late, 0), (long, 0), (late, 1)],
    }
    program = tmp_path / "stalls"
    flags = ["-std=c++17", f"-I{FOLDER}", str(NATIVE_TESTS / "stalls.cpp"), "-o", str(program)]
    subprocess.run([str(COMPILER), *flags], check=True)
    for name, cases in calls.items():
        times = "\n".join(" ".join(map(str, times)) for times, _ in cases)
        run = subprocess.run([program], input=times, capture_output=True, text=True, check=True)
        assert run.stdout == "".join(str(stalled) for _, stalled in cases), name


ON_ONE_PROCESSOR = """
import os, torch
import keras2torch_birnn as k2t
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
torch.manual_seed(1)
torch.set_num_threads(16)
with torch.inference_mode():
    for module, rows, steps in ((k2t.BiLSTM(7, 67), 5, 131), (k2t.BiGRU(11, 331), 1, 23)):
        x = torch.randn(steps, rows, module.input_size)
        wanted, _ = module(x)
        assert all(torch.equal(module(x)[0], wanted) for _ in range(40))
print("the same numbers")
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to take processors away")
def test_sixteen_threads_on_one_processor_end_with_the_same_numbers() -> None:
    run = subprocess.run([sys.executable, "-c", ON_ONE_PROCESSOR], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "the same numbers\n"), run.stderr
