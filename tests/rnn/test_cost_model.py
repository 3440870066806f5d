"""The cost model of ``benchmarks/``: the script runs the kernel of today, and predicts sensibly."""

from __future__ import annotations

import cost_model
import measure_costs
import pytest
from cost_model import KINDS, CellCosts, Constants, Shape, Share

from keras2torch_birnn.rnn.native.library import why_missing

COSTS = CellCosts(2e10, 3e10, 1e-8, 1e-9, ((1e4, 1e-7), (1e6, 1e-5)))
MACHINE = Constants(8, dict.fromkeys(KINDS, COSTS), 1e-6, 1e10, 2e-6, 4e-6, 1e-7)


@pytest.mark.skipif(bool(why_missing()), reason="needs the native kernel")
@pytest.mark.parametrize("cell", KINDS)
def test_a_run_of_the_kernel_is_timed(cell: str) -> None:
    call = measure_costs.prepare(Shape(cell, 2, 3, 5, 7), threads=1)
    code, (_, _, _, out) = call()
    assert code == 0
    assert out.shape == (2, 3, 14)
    assert 0 < out.abs().max() <= 1


@pytest.mark.parametrize("cell", KINDS)
def test_the_best_way_to_share_out_is_at_most_as_long_as_the_kernels(cell: str) -> None:
    shape = Shape(cell, 11, 53, 37, 97)
    for threads in (1, 2, 5):
        way, spent = cost_model.best_share(shape, threads, MACHINE)
        assert spent <= cost_model.seconds(shape, threads, MACHINE)
        assert spent == cost_model.shared_seconds(shape, way, threads, MACHINE)
    assert cost_model.best_share(shape, 1, MACHINE)[0] == Share(1)


def test_twice_the_steps_are_twice_the_time_beside_the_start() -> None:
    shape = Shape(cost_model.LSTM, 3, 50, 20, 60)
    once, twice = (
        cost_model.shared_seconds(shape._replace(time=t), Share(1), 1, MACHINE) for t in (50, 100)
    )
    compared = 2 * 4 * 4 * 60 * (20 + 60) / MACHINE.comparing
    assert twice - once == pytest.approx(once - MACHINE.call - compared)
