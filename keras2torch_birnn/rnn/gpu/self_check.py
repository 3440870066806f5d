"""Check the Triton kernels against the loop, once in a process for each kind of layer.

A driver, a compiler or a card that nobody foresaw may cost speed, never a number: where the numbers
differ or nothing compiles, the loop runs, and one warning says so. H units.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from threading import RLock
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.gpu.run import run_call
from keras2torch_birnn.rnn.gpu.step_cell import StepCell
from keras2torch_birnn.rnn.layer import Cell, RnnLayer

# Allowed difference from the loop in float64, relative to the largest number, or to 1. In float64
# torch's own gradient of celu is no better: it rounds 1 / alpha to float32.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 2e-6,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
LENGTHS, FEATURES = (4, 0, 3), 5
# At a kink of an activation float32 and float64 may fall on different sides: once, but not twice.
SEEDS = (1, 2)
# Narrower layers are checked as they are, wider ones with as many units beyond a multiple of 16:
# on that depends how memory is read.
WIDE = 160


class CheckedKind(NamedTuple):
    """Everything that the kernels are compiled for; each is checked once."""

    cell: StepCell
    units: int
    dtype: torch.dtype
    device: torch.device
    masked: bool
    gradient: bool


# Why each kind cannot be trusted; empty if it can.
_reasons: dict[CheckedKind, str] = {}
_lock = RLock()


def is_checked(kind: CheckedKind) -> bool:
    """Return whether a kind was checked before."""
    return kind in _reasons


def why_not_trusted(cell: Cell, kind: CheckedKind) -> str:
    """Return why the kernels cannot compute a kind of layer; empty if they agree with the loop.

    The first failure in a process warns.
    """
    if (found := _reasons.get(kind)) is not None:
        return found
    with _lock:
        if kind not in _reasons:
            first = not any(_reasons.values())
            reason = _reasons[kind] = _check(cell, kind)
            if reason and first:
                warnings.warn(
                    f"recurrent layers run without the Triton kernels, slower: {reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return _reasons[kind]


def _check(cell: Cell, kind: CheckedKind) -> str:
    """Compare with the loop; return how they differ, or what failed."""
    try:
        with torch.inference_mode(False), torch.enable_grad(), float32_precision("ieee"):
            error = min(_largest_error(cell, kind, seed) for seed in SEEDS)
    except Exception as failure:  # a compiler or a driver may raise anything
        first_line = next(iter(str(failure).splitlines()), "")
        return f"{type(failure).__name__}: {first_line}"
    if error <= TOLERANCES[kind.dtype]:
        return ""
    return f"their numbers are {error:.1e} off"


def _largest_error(cell: Cell, kind: CheckedKind, seed: int) -> float:
    """Return the largest relative error of all results; infinite if one is NaN."""
    layer, call = _draw(cell, kind, seed)
    exact_layer, exact_call = _in_float64(layer, call)
    got = _numbers(run_call(kind.cell, layer, call), layer, call)
    wanted = _numbers(run_directions(exact_layer, exact_call), exact_layer, exact_call)
    errors = [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).nan_to_num(float("inf"))
        for a, b in zip(got, wanted, strict=True)
    ]
    return max(map(float, errors))


def _numbers(result: RnnResult, layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    """Return outputs, states, and the gradients of a weighted sum of them if they have any."""
    numbers = [*result[0], *(s for state in result[1] for s in state)]
    inputs = [t for t in _tensors(layer, call) if t.requires_grad]
    if not inputs:
        return numbers
    total = torch.stack([(n * (1.0 + i)).sum() for i, n in enumerate(numbers)]).sum()
    return [*(n.detach() for n in numbers), *torch.autograd.grad(total, inputs)]


def _tensors(layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    return [call.x, *call.states(), *layer.present_parameters()]


def _draw(cell: Cell, kind: CheckedKind, seed: int) -> tuple[RnnLayer, RnnCall]:
    """Draw a small layer and its input, and leave the caller's random state alone."""
    generator = torch.Generator().manual_seed(seed)
    units = kind.units if kind.units <= WIDE else WIDE - 16 + kind.units % 16
    facts, rows, steps = CELL_KINDS[kind.cell.kind], len(LENGTHS), max(LENGTHS)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(kind.device, kind.dtype).requires_grad_(kind.gradient)

    width = facts.gates * units
    parameters = [
        draw(*shape, scale=0.5 * shape[-1] ** -0.5)
        for _ in range(2)
        for shape in ((width, FEATURES), (width, units), (width,), (width,))
    ]
    states = tuple(tuple(draw(rows, units) for _ in range(facts.states)) for _ in range(2))
    lengths = torch.tensor(LENGTHS, device=kind.device) if kind.masked else None
    call = RnnCall(draw(rows, steps, FEATURES), lengths, states)
    return RnnLayer(cell, parameters), call


def _in_float64(layer: RnnLayer, call: RnnCall) -> tuple[RnnLayer, RnnCall]:
    """Return copies of the same numbers in float64."""

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    states = tuple(tuple(map(exact, state)) for state in call.initial_state or ())
    return (
        RnnLayer(layer.cell, list(map(exact, layer.parameters))),
        RnnCall(exact(call.x), call.lengths, states),
    )
