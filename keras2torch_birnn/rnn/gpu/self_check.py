"""Check the Triton kernels against the loop, once in a process for each kind of layer.

A driver, a compiler or a card that nobody foresaw may cost speed, never a number: where the numbers
differ or nothing compiles, the loop runs, and one warning says so. H units.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, cycle, islice
from threading import RLock
from typing import NamedTuple

import torch
from torch import Tensor

from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.rnn.call import RnnCall, RnnResult, flatten_result
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.engines.engine import float_tensors, needs_gradient
from keras2torch_birnn.rnn.engines.loop import run_directions
from keras2torch_birnn.rnn.gpu.launcher import find_tile
from keras2torch_birnn.rnn.gpu.step_cell import Form, StepCell
from keras2torch_birnn.rnn.gpu.step_gradient import run_call
from keras2torch_birnn.rnn.gpu.timing import find_fastest
from keras2torch_birnn.rnn.layer import Cell, RnnLayer

# Allowed difference from the loop in float64, relative to the largest number, or to 1. In float64
# torch's own gradient of celu is no better: it rounds 1 / alpha to float32.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 2e-6,
    torch.float32: 2e-5,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
# The loop in the same type may be as far from float64 as that; the kernels may be twice as far.
TIMES_THE_LOOP = 2.0
LENGTHS, FEATURES = (3, 0, 4, 2), 5
# Draws that must hold: what is wrong every other time must not pass.
DRAWS = 2
# Narrower layers are checked as they are, wider ones with as many units beyond a multiple of 16:
# on that depends how memory is read.
WIDE = 160
# Steps by which it is found out whether fewer launches pay.
TIMED_STEPS = 32


class CheckedKind(NamedTuple):
    """Everything that the kernels are compiled for; each is checked once.

    units: those of the check. tile: rows and units of one program. biases: whether there are those
    of the input and of the state, for each direction.
    """

    cell: StepCell
    units: int
    tile: tuple[int, int]
    biases: tuple[tuple[bool, bool], ...]
    dtype: torch.dtype
    device: torch.device
    masked: bool
    gradient: bool


def kind_of(
    cell: StepCell, layer: RnnLayer, call: RnnCall, dtype: torch.dtype | None = None
) -> CheckedKind:
    """Return the kind of a call; dtype: what its floats are cast to, if they are."""
    units = layer.get_weight_hh().shape[1]
    small = units <= WIDE or cell.needs_whole_rows
    return CheckedKind(
        cell,
        units if small else WIDE - 16 + units % 16,
        find_tile(cell, call.x.shape[0], units),
        tuple((w.bias_ih is not None, w.bias_hh is not None) for w in layer.get_weights()),
        dtype or call.x.dtype,
        call.x.device,
        call.lengths is not None,
        needs_gradient(layer, call),
    )


# Why each kind cannot be trusted; empty if it can.
_reasons: dict[CheckedKind, str] = {}
# Whether kernels of fewer launches are faster, of a kind, its rows and units.
_faster: dict[tuple[CheckedKind, int, int], bool] = {}
_NAMES: Mapping[Form, str] = {
    "steps": "the Triton kernels",
    "fused": "fused Triton kernels",
    "persistent": "persistent Triton kernels",
}
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
            _note(kind, _check(cell, kind))
        return _reasons[kind]


def fewer_launches_pay(cell: Cell, kind: CheckedKind, rows: int, units: int) -> bool:
    """Return whether the kernels of a kind, once measured, are faster than two launches a step."""
    size = (kind, rows, units)
    with _lock:
        if size not in _faster and not torch.cuda.is_current_stream_capturing():
            try:
                _faster[size] = _are_fewer_faster(cell, *size)
            except Exception as failure:  # as in a check
                _note(kind, describe(failure))
        return _faster.get(size, False)


def _are_fewer_faster(cell: Cell, kind: CheckedKind, rows: int, units: int) -> bool:
    with _alone(kind.device):
        layer, call = _draw(cell, kind._replace(units=units), 1, rows, TIMED_STEPS)

        def run(form: Form) -> None:
            words = kind.cell._replace(form=form)
            _numbers(run_call(words, layer, call), layer, call)

        forms: tuple[Form, ...] = ("steps", kind.cell.form)
        ways = [partial(run, form) for form in forms]
        return find_fastest((kind, rows, units), ways, kind.device) == 1


def distrust(kind: CheckedKind, failure: Exception) -> None:
    """Leave a kind to the loop from now on, as the kernels failed."""
    with _lock:
        _note(kind, describe(failure))


def _note(kind: CheckedKind, reason: str) -> None:
    form = kind.cell.form
    first = not any(why for one, why in _reasons.items() if one.cell.form == form)
    _reasons[kind] = reason
    if reason and first:
        cell, (rows, units) = kind.cell, kind.tile
        functions = f"{cell.activation.name}, {cell.recurrent_activation.name}"
        dtype = str(kind.dtype).removeprefix("torch.")
        warnings.warn(
            f"recurrent layers run without {_NAMES[form]}, slower: {reason} ({cell.kind}, "
            f"{functions}, {dtype}, tiles of {rows} x {units})",
            RuntimeWarning,
            stacklevel=2,
        )


def _check(cell: Cell, kind: CheckedKind) -> str:
    """Compare with the loop; return how they differ, or what failed."""
    try:
        with _alone(kind.device), float32_precision("ieee"):
            for layer, call, wanted in islice(_draws(cell, kind), DRAWS):
                error = _error(_numbers(run_call(kind.cell, layer, call), layer, call), wanted)
                loop = _error(_numbers(run_directions(layer, call), layer, call), wanted)
                if not error <= max(TOLERANCES[kind.dtype], TIMES_THE_LOOP * loop):
                    return f"their numbers are {error:.1e} off"
    except Exception as failure:  # a compiler or a driver may raise anything
        return describe(failure)
    return ""


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Compute without the modes of the caller."""
    off = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), off:
        yield


def describe(failure: Exception) -> str:
    """Return the type of an error and its first line."""
    first_line = next(iter(str(failure).splitlines()), "")
    return f"{type(failure).__name__}: {first_line}"


def _draws(cell: Cell, kind: CheckedKind) -> Iterator[tuple[RnnLayer, RnnCall, list[Tensor]]]:
    """Draw small layers and their inputs; yield them with their exact numbers.

    Left out are draws at a kink of an activation, of which sums that are rounded in another way
    fall on the other side, with another gradient. In half precision every draw is at one.
    """
    half = kind.dtype.itemsize < 4
    noise = 0.0 if half else 64 * torch.finfo(kind.dtype).eps
    for seed in count(1):
        layer, call = _draw(cell, kind, seed)
        wanted, above, below = (_exact(layer, call, n, seed) for n in (0.0, noise, -noise))
        middle = [(a + b) / 2 for a, b in zip(above, below, strict=True)]
        if half or _error(middle, wanted) <= TOLERANCES[kind.dtype] / 8:
            yield layer, call, wanted


def _error(computed: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest relative error of all results; infinite if one is NaN."""
    errors = [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).nan_to_num(float("inf"))
        for a, b in zip(computed, wanted, strict=True)
    ]
    return max(map(float, errors))


def _exact(layer: RnnLayer, call: RnnCall, noise: float, seed: int) -> list[Tensor]:
    """Compute the numbers of the loop in float64, on tensors that are a little off."""
    generator = torch.Generator().manual_seed(seed)

    def exact(tensor: Tensor) -> Tensor:
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        moved = tensor.detach().double() + noise * drawn.to(tensor.device)
        return moved.requires_grad_(tensor.requires_grad)

    states = tuple(tuple(map(exact, state)) for state in call.initial_state or ())
    parameters = [None if p is None else exact(p) for p in layer.parameters]
    moved = RnnLayer(layer.cell, parameters), RnnCall(exact(call.x), call.lengths, states)
    return _numbers(run_directions(*moved), *moved)


def _numbers(result: RnnResult, layer: RnnLayer, call: RnnCall) -> list[Tensor]:
    """Return outputs, states, and the gradients of a weighted sum of them if they have any."""
    numbers = [*flatten_result(result)]
    inputs = [t for t in float_tensors(layer, call) if t.requires_grad]
    if not inputs:
        return numbers
    total = torch.stack([(n * (1.0 + i)).sum() for i, n in enumerate(numbers)]).sum()
    return [*(n.detach() for n in numbers), *torch.autograd.grad(total, inputs)]


def _draw(
    cell: Cell, kind: CheckedKind, seed: int, rows: int = 0, steps: int = max(LENGTHS)
) -> tuple[RnnLayer, RnnCall]:
    """Draw a layer and its input, and leave the caller's random state alone.

    rows: unless they are given, one full tile and a row more, or one that lacks a row: the least
    batch that has this tile.
    """
    generator = torch.Generator().manual_seed(seed)
    facts, units = CELL_KINDS[kind.cell.kind], kind.units
    if not rows:
        most, _ = find_tile(kind.cell, 1 << 30, units)
        rows = most + 1 if kind.tile[0] == most else kind.tile[0] - (kind.tile[0] > 2)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return numbers.to(kind.device, kind.dtype).requires_grad_(kind.gradient)

    width = facts.gates * units
    shapes = ((width, FEATURES), (width, units), (width,), (width,))
    parameters = [
        draw(*shape, scale=0.5 * shape[-1] ** -0.5) if present else None
        for biases in kind.biases
        for shape, present in zip(shapes, (True, True, *biases), strict=True)
    ]
    states = tuple(tuple(draw(rows, units) for _ in range(facts.states)) for _ in kind.biases)
    lengths = torch.tensor([*islice(cycle(LENGTHS), rows)], device=kind.device)
    call = RnnCall(draw(rows, steps, FEATURES), lengths if kind.masked else None, states)
    return RnnLayer(cell, parameters), call
