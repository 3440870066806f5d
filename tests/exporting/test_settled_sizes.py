"""Sizes that a file leaves open and its model does not: they are found and declared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import spec_of
from specs import FIXTURES, TF_KERAS, functional, layer
from torch import Tensor, fx, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.exporting import torch_program
from keras2torch_birnn.exporting.torch_program import (
    draw_example,
    open_axes,
    record_program,
    settle_sizes,
)
from keras2torch_birnn.golden import GOLDEN_STEPS
from keras2torch_birnn.spec import ModelSpec, TensorRef


def spec_of_two(steps: int | None = None) -> ModelSpec:
    """Inputs a and b (B, T, 3)."""
    inputs = [layer("InputLayer", name, shape=(None, steps, 3)) for name in "ab"]
    refs = (TensorRef("a"), TensorRef("b"))
    return ModelSpec(functional(inputs, [], refs, refs[0]), TF_KERAS)


EXAMPLE = (torch.rand(5, 7, 3), torch.rand(5, 7, 3))


def shapes_of(spec: ModelSpec) -> list[Any]:
    return [one.config["shape"] for one in spec.input_layers()]


class Made(nn.Module):
    """A model of a function."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute it."""
        return self.function(a, b)


def any_size(a: Tensor, b: Tensor) -> Tensor:
    return a.sum(1) + b.sum(1)


def five_rows(a: Tensor, b: Tensor) -> Tensor:
    return (a.sum(1) + b.sum(1)).reshape(5, 3)


def seven_steps_of_b(a: Tensor, b: Tensor) -> Tensor:
    return a.sum(1)[:, :1] + b.reshape(-1, 21)


def steps_together(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b.transpose(1, 2)) + torch.bmm(b, a.transpose(1, 2))


def pairs_of_rows(a: Tensor, b: Tensor) -> Tensor:
    return (a.sum(1) + b.sum(1)).reshape(-1, 2, 3)


@pytest.mark.parametrize(
    ("function", "rows", "shapes"),
    [
        (any_size, 3, [(None, None, 3), (None, None, 3)]),
        (five_rows, 5, [(5, None, 3), (5, None, 3)]),
        (seven_steps_of_b, 3, [(None, None, 3), (None, 7, 3)]),
        (steps_together, 3, [(None, None, 3), (None, None, 3)]),
        (pairs_of_rows, 4, [(None, None, 3), (None, None, 3)]),
    ],
)
def test_a_size_is_declared_where_the_model_takes_no_other(
    function: Callable[[Tensor, Tensor], Tensor], rows: int, shapes: Any
) -> None:
    example = (torch.rand(rows, 7, 3), torch.rand(rows, 7, 3))
    spec, notes = settle_sizes(Made(function), spec_of_two(), example)
    assert shapes_of(spec) == shapes
    assert len(notes) == {five_rows: 1, seven_steps_of_b: 1}.get(function, 0)


def test_notes_name_the_input_and_the_size() -> None:
    def both(a: Tensor, b: Tensor) -> Tensor:
        return seven_steps_of_b(a, b).reshape(5, 21)

    _, notes = settle_sizes(Made(both), spec_of_two(), EXAMPLE)
    assert notes == (
        "the batch is fixed at 5: the file leaves it open, but the model does not take 6",
        "axis 1 of input b is fixed at 7: the file leaves it open, but the model does not take 8",
    )


def test_a_multiple_is_not_enough_for_a_size_that_the_file_fixes() -> None:
    """Twice as many steps are twice as many rows: nobody asks for that by freeing the steps."""

    def rows_of_seven_steps(a: Tensor, b: Tensor) -> Tensor:
        return a.reshape(-1, 7, 3).sum(1)[:1] + b.sum(1)

    model = Made(rows_of_seven_steps)
    assert settle_sizes(model, spec_of_two(), EXAMPLE) == (spec_of_two(), ())
    spec, notes = settle_sizes(model, spec_of_two(), EXAMPLE, spec_of_two(7))
    assert shapes_of(spec) == [(None, 7, 3), (None, None, 3)]
    assert notes == ("axis 1 of input a is fixed at 7, as in the file: the model does not take 8",)


def test_declared_sizes_and_very_many_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = settle_sizes(Made(five_rows), spec_of_two(7), EXAMPLE)[0]
    assert shapes_of(declared) == [(5, 7, 3)] * 2
    monkeypatch.setattr(torch_program, "MAX_OPEN_SIZES", 1)
    assert settle_sizes(Made(five_rows), spec_of_two(), EXAMPLE) == (spec_of_two(), ())


def test_trying_other_sizes_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """torch prints where a traced model fails, besides raising."""
    _, notes = settle_sizes(fx.symbolic_trace(Made(five_rows)), spec_of_two(), EXAMPLE)
    assert notes
    assert capfd.readouterr() == ("", "")


# ---- models --------------------------------------------------------------------------------------


def test_an_export_fixes_the_rows_that_an_operation_demands(tmp_path: Path) -> None:
    model: Any = k2t.convert(FIXTURES / "keras-3.15.1" / "ops_shapes.keras")
    done = k2t.export(model, tmp_path / "model.py")
    assert any(note.startswith("the batch is fixed at 5") for note in done.notes)
    assert done.checked is not None
    assert done.checked.ok


@pytest.mark.every(3)
@pytest.mark.parametrize("case", ["ops_tf_sizes", "ops_tf_choose"])
def test_operations_leave_open_sizes_open(case: str) -> None:
    """Sizes as numbers, a pool of steps, and rows taken within each sample were fixed by torch."""
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0" / f"{case}.keras")
    spec = spec_of(model)
    example = draw_example(model, spec, GOLDEN_STEPS, seed=1)
    record_program(model.eval(), example, open_axes(spec, example))
