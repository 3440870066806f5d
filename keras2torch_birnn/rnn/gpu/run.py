"""Run one call by the Triton kernels, with autograd if a gradient may be wanted."""

from __future__ import annotations

import torch

from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines.engine import cast_as_autocast, needs_gradient
from keras2torch_birnn.rnn.gpu.step_cell import StepCell
from keras2torch_birnn.rnn.gpu.step_gradient import (
    Course,
    merge_side_by_side,
    run_with_gradient,
)
from keras2torch_birnn.rnn.gpu.steps import join_weights, run_steps
from keras2torch_birnn.rnn.layer import RnnLayer


def run_call(
    cell: StepCell, layer: RnnLayer, call: RnnCall, course: Course | None = None
) -> RnnResult:
    """Compute outputs and final states; the call has rows and steps."""
    course = course or Course()
    if needs_gradient(layer, call):
        return run_with_gradient(cell, layer, call, course)
    with torch.no_grad():
        layer, call = cast_as_autocast(layer, call, course.dtype)
        operands = join_weights(cell, layer.get_weights())
        x, lengths, initial = call.x, call.lengths, call.initial_state
        steps = run_steps(cell, operands, x, lengths, initial, keep=False)
        return merge_side_by_side(steps.out, layer, call.merge), steps.final_states()
