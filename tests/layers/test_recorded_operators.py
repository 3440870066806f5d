"""Operators of torch as operations of the native library."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_layers import native
from torch import Tensor, nn
from torch.nn import functional

from keras2torch_birnn.layers import recorded_operators, recording
from keras2torch_birnn.layers.recorded_values import NotRecordedError
from keras2torch_birnn.layers.recording import Program, Twin
from keras2torch_birnn.rnn.activations import hard_sigmoid_1_6

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

TOLERANCE = {"atol": 3e-6, "rtol": 3e-6}


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        result = list(result.values())
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def close(got: Any, wanted: Any) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, **TOLERANCE, equal_nan=True)


# ---- torch's operators --------------------------------------------------------------------------


_random = torch.Generator().manual_seed(7)


def drawn(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=_random)


X, Y = drawn(3, 5, 37), drawn(3, 5, 37)
LINE, PLANES = drawn(2, 5, 13), drawn(2, 5, 13, 11)
IDS = torch.tensor([[3, 0, 7, 1, 1]])
SOME = X * (X > 0.3)
FILTERS, WINDOW = drawn(7, 5, 3, 3) / 5, drawn(7, 5, 3) / 5
CHANNELS = [drawn(5).abs() + 0.5 for _ in range(4)]
TABLE, WEIGHT, BIAS = drawn(11, 23), drawn(41, 37) / 20, drawn(41)
STEPS = torch.tensor([2, 0, 1, 3, 5])
UNKNOWN = X.clone()
UNKNOWN[1, 2, 3] = torch.nan

# What overflowed, in vectors of numbers and alone.
ENDS = X.clone()
ENDS.view(-1)[::7] = torch.inf
ENDS.view(-1)[1::7] = -torch.inf
ENDS.view(-1)[2::7] = -3e38

LONG, HELD = drawn(2, 3, 13, 71), drawn(1, 2, 5, 7)
FILTERS_OF_MANY, POINTS = drawn(41, 5, 2, 3) / 5, drawn(7, 5, 1, 1)


def pooled(x: Tensor) -> Tensor:
    """Windows of all sorts: small, wide, far apart, padded in front and behind."""
    most, mean = functional.max_pool2d, functional.avg_pool2d
    padded: Any = {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)}
    apart: Any = {"kernel_size": 3, "stride": 2, "padding": 1}
    found = (
        *(most(x, (2, 2)), most(x, **padded), most(x, **apart), most(x, (1, 7), (1, 3))),
        *(mean(x, (2, 2)), mean(x, **padded, count_include_pad=False), mean(x, **apart)),
        mean(x, **apart, count_include_pad=False),
    )
    return torch.cat([y.flatten(1) for y in found], 1)


CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "add": (lambda x, y: x + 3.0 * y + 0.5, (X, Y)),
    "add with a factor": (lambda x, y: torch.add(x, y[:, :1], alpha=3), (X, Y)),
    "subtract": (lambda x, y: x - y[0], (X, Y)),
    "divide": (lambda x, y: x / (y * y + 1), (X, Y)),
    "larger": (lambda x, y: torch.maximum(x, y), (UNKNOWN, Y)),
    "smaller": (lambda x, y: torch.minimum(x, y), (X, UNKNOWN)),
    "compare with numbers": (
        lambda x: (
            torch.where(x > 0.1, x, 0.5)
            + torch.where(x < 0.2, 0.5, x)
            + torch.where(x >= 0.3, 1.0, 2.0)
            + (x <= 0.4).float()
            + (x == 0).float()
            + (x != 0).float()
        ),
        (SOME,),
    ),
    "compare tensors": (
        lambda x, y: (
            torch.where(x > y, x, y)
            + (x < y).float()
            + (x >= y).float() * 2
            + (x <= y).float() * 3
            + (x == y).float() * 5
            + (x != y).float() * 7
        ),
        (SOME, SOME.flip(2)),
    ),
    "activations": (
        lambda x: (
            torch.relu(x)
            + torch.tanh(x)
            + torch.sigmoid(x)
            + functional.silu(x)
            + functional.hardswish(x)
            + functional.hardsigmoid(x)
            + functional.leaky_relu(x, 0.3)
        ),
        (X * 4,),
    ),
    "Keras' hard_sigmoid": (hard_sigmoid_1_6, (X * 4,)),
    "clamped activations": (
        lambda x: functional.hardtanh(x) + functional.relu6(x) + functional.hardsigmoid(x),
        (X * 4,),
    ),
    "an activation of no number": (lambda x: torch.tanh(x), (UNKNOWN,)),
    "silu of infinities": (lambda x: functional.silu(x), (ENDS,)),
    "other activations of infinities": (
        lambda x: (torch.tanh(x), x.sigmoid(), functional.hardswish(x), hard_sigmoid_1_6(x)),
        (ENDS,),
    ),
    "clamp": (lambda x: x.clamp(-0.5, 0.7) + x.clamp(min=0.1) + x.clamp(max=0.1), (UNKNOWN,)),
    "logic": (
        lambda x, y: (
            (torch.logical_and(x > 0, y > 0) | ~(x > 1)).float()
            + ((x > 0) & torch.logical_not(y > 0)).float()
            + torch.logical_or(x > 1, y > 1).float()
        ),
        (X, Y),
    ),
    "casts": (
        lambda x, ids: x.bool().float() + ids.bool().float().sum() + ids.float().sum(),
        (SOME, IDS),
    ),
    "casts to integers": (
        lambda x: x.long().float() + x.t().int().float().t() + x.long().ne(0).float(),
        (torch.tensor([[-0.0, -0.9, -1.5, 0.99], [1.0, 2.5, 16777215.0, -2147483520.0]]),),
    ),
    "an input of bool": (lambda x, m: x * m.unsqueeze(-1).to(x.dtype), (X, X[..., 0] > 0)),
    "an input of int32": (lambda x, i: x + i.float(), (X, torch.tensor([3], dtype=torch.int32))),
    "filled": (
        lambda x: (
            torch.zeros_like(x)
            + 2 * torch.ones_like(x)
            + torch.full_like(x, 0.25)
            + x.new_zeros(5, 37)
            + x.new_ones(37)
            + x.clone()
        ),
        (X,),
    ),
    "masked fill": (lambda x, y: x.masked_fill(y > 0, -1e9), (X, Y)),
    "sums": (
        lambda x: (
            x.sum(1, keepdim=True) + x.mean((0, 2), keepdim=True) + x.sum((0, 1, 2)) / 30 + x.mean()
        ),
        (X,),
    ),
    "maxima": (lambda x: x.amax((0, 2), keepdim=True) + x.transpose(1, 2).amax(1), (X[:, :3],)),
    "a maximum of no number": (lambda x: x.amax(2), (UNKNOWN,)),
    "any": (
        lambda x: (x > 2).any(1).float() + (x > 2.5).any((0, 1)).float() + (x > 9).any().float(),
        (X,),
    ),
    "softmax": (lambda x: torch.softmax(x, 1) + torch.softmax(30 * x, -1), (UNKNOWN,)),
    "softmax of what is hidden": (lambda x: torch.softmax(x * 1e9, -1), (X,)),
    "products": (lambda x: functional.linear(x, WEIGHT, BIAS).matmul(WEIGHT), (X,)),
    "a product of one row": (lambda x: functional.linear(x, WEIGHT, BIAS), (X[0, :1],)),
    "a product of one row and few columns": (
        lambda x: functional.linear(x[:, :11], WEIGHT[:, :11], BIAS),
        (X[0, :1],),
    ),
    "a product without bias": (lambda x: functional.linear(x, WEIGHT), (X[0],)),
    "a bias of one number": (lambda x: functional.linear(x, WEIGHT[:1], BIAS[:1]), (X,)),
    "batches of products": (lambda x, y: x @ (y / 30).transpose(1, 2) @ y, (X, Y)),
    "a product with a vector": (lambda x: x.matmul(WEIGHT[0]) + x[0] @ x[0, 1], (X[:, :5, :],)),
    "a turned product": (lambda x, y: x.transpose(1, 2) @ y, (X, Y)),
    "concatenate": (lambda x, y: torch.cat((x, y[:, :, :7], x), dim=-1), (X, Y)),
    "pad": (lambda x: functional.pad(x, (2, 3, 0, 1), value=0.5), (PLANES,)),
    "pad channels last": (
        lambda x: functional.pad(x.movedim(-1, 1), (2, 3, 0, 1)).movedim(1, -1),
        (PLANES,),
    ),
    "look up": (lambda ids: functional.embedding(ids, TABLE), (IDS,)),
    "convolve a line": (
        lambda x: torch.conv1d(x, WINDOW, BIAS[:7], stride=2, padding=3),
        (LINE,),
    ),
    "convolve planes": (
        lambda x: torch.conv2d(x, FILTERS, None, stride=(1, 2), padding=(2, 1), dilation=(1, 3)),
        (PLANES,),
    ),
    "convolve a line in place": (
        lambda x: torch.conv1d(x, WINDOW, BIAS[:7]).relu() + torch.conv1d(x, WINDOW, dilation=1),
        (LINE,),
    ),
    "convolve rows of an input": (lambda x: torch.conv2d(x[:, :, 1:7, 2:9], FILTERS), (PLANES,)),
    "convolve more padding than numbers": (
        lambda x: torch.conv2d(x[:, :, :1, :2], FILTERS, stride=(5, 4), padding=9),
        (PLANES,),
    ),
    "convolve every other number": (
        lambda x: torch.conv2d(x, POINTS, BIAS[:7], stride=3),
        (PLANES,),
    ),
    "convolve in long rows to many channels": (
        lambda x: torch.conv2d(x, FILTERS_OF_MANY, BIAS, padding=(0, 1)),
        (drawn(2, 5, 3, 67),),
    ),
    "convolve channels last": (
        lambda x: torch.relu(torch.conv2d(x.movedim(-1, 1), FILTERS)).movedim(1, -1),
        (PLANES.movedim(1, -1).contiguous(),),
    ),
    "pool": (
        lambda x: functional.max_pool2d(x, (3, 2), (2, 2)).sum() + functional.avg_pool2d(x, 3),
        (PLANES,),
    ),
    # More windows in a row than a vector has numbers.
    "pool long rows": (lambda x: pooled(x), (LONG,)),
    "pool channels last": (
        lambda x: pooled(x.movedim(-1, 1)),
        (LONG.movedim(1, -1).contiguous(),),
    ),
    "pool one column again and again": (
        lambda x: pooled((x * 2)[..., :1].expand(2, 3, 13, 71)),
        (LONG,),
    ),
    "convolve one column again and again": (
        lambda x: torch.conv2d((x * 2)[..., :1].expand(2, 5, 13, 11), FILTERS),
        (PLANES,),
    ),
    "pool a weight": (lambda x: x + functional.max_pool2d(HELD, 2).sum(), (X,)),
    "pool no numbers": (
        lambda x: pooled(x),
        (LONG.masked_fill(LONG > 2, torch.nan).masked_fill(LONG < -2, -torch.inf),),
    ),
    "normalize channels": (lambda x: functional.batch_norm(x, *CHANNELS), (PLANES,)),
    "normalize without weights": (lambda x: functional.batch_norm(x, *CHANNELS[:2]), (LINE,)),
    "normalize vectors": (
        lambda x: (
            functional.layer_norm(x, (37,), X[0, 0], Y[0, 0], 1e-3)
            + functional.layer_norm(x, (5, 37))
        ),
        (X,),
    ),
    "views": (
        lambda x: (
            x.reshape(15, 37).t().reshape(5, 37, 3).permute(2, 0, 1)
            + x.unsqueeze(1).squeeze(1)
            + x[:, :1].expand(3, 5, 37)
            + x[0]
            + x[:, :, 3:4]
            + x[:1].squeeze((0,))
            + x[:1, :1, :1].squeeze()
            + x.detach()
            + torch.cat([part * 2 for part in x.split([2, 3], 1)], 1)
            + x.split(5, 1)[0]
            + torch.unbind(x, 0)[2]
            + x.transpose(1, 2).flatten(1).reshape(3, 5, 37)
        ),
        (X,),
    ),
    "several outputs": (lambda x: (x + 1, x.t()), (X[0],)),
    "outputs in a structure": (lambda x: [x + 1, (x.t(), {"twice": 2 * x})], (X[0],)),
    "stack": (
        lambda x, y: torch.stack((x, y, x), dim=1) + torch.stack((x, y, x))[:, :, None, 0],
        (X, Y),
    ),
    "turn around": (lambda x: x.flip(1) + x.transpose(0, 1).flip(-1).transpose(0, 1), (X,)),
    "subtract from": (lambda x: 1.5 - x, (X,)),
    "negate": (lambda x: -x, (UNKNOWN,)),
    "exponential activations": (
        lambda x: functional.elu(x) + functional.elu(x, 0.3) + functional.selu(x),
        (X * 4,),
    ),
    "made of weights alone": (
        lambda x: x + (WEIGHT[:, 0] * 2).sum() + torch.where(X > 0, X, Y) + (Y > 1).float(),
        (X,),
    ),
    "made of no tensor": (
        lambda x: (
            x * torch.arange(37, device=x.device)
            + torch.arange(1, 38, device=x.device)
            + torch.full((37,), 0.3, device=x.device)
            + torch.ones(37, device=x.device)
            + torch.zeros(5, 37, device=x.device)
        ),
        (X,),
    ),
    "look up counted steps": (
        lambda ids: functional.embedding(torch.arange(5, device=ids.device) + STEPS, TABLE),
        (IDS,),
    ),
}


TENSORS = ("FILTERS", "FILTERS_OF_MANY", "POINTS", "WINDOW", "TABLE", "WEIGHT", "BIAS", "X", "Y")
TENSORS += ("HELD", "CHANNELS", "STEPS")


class Holder(nn.Module):
    """A function, with the tensors of this file that it reads as its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        for name in TENSORS:
            held = globals()[name]
            self.register_buffer(name, torch.stack(held) if isinstance(held, list) else held)

    def forward(self, *inputs: Tensor) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            for name in TENSORS:
                own = getattr(self, name)
                patched.setitem(globals(), name, own.unbind() if name == "CHANNELS" else own)
            return self.function(*inputs)


def record(function: Callable[..., Any], *inputs: Tensor) -> Program:
    return Twin(Holder(function)).record(None, inputs)


def compute(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Compute a function by a program."""
    found = record(function, *inputs).run(inputs)
    assert found is not None
    return found


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("case", CASES)
def test_a_program_computes_what_torch_computes(case: str) -> None:
    function, inputs = CASES[case]
    close(compute(function, *inputs), function(*inputs))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("sizes", [(1, 5, 7), (2, 5, 13), (1, 5, 61)])
def test_a_convolution_computes_with_no_number_behind_its_input(sizes: tuple[int, ...]) -> None:
    maths = ctypes.CDLL(ctypes.util.find_library("m"))
    invalid, left_over = 1, torch.full((1 << 14,), 0x7FA00000, dtype=torch.int32)
    compute(lambda x: x, left_over.view(torch.float32))  # numbers that signal when computed with
    x = drawn(*sizes)
    program = record(lambda x: torch.conv1d(x, WINDOW, BIAS[:7]), x)
    maths.feclearexcept(invalid)
    out = program.run((x,))
    assert not maths.fetestexcept(invalid)
    close(out, torch.conv1d(x, WINDOW, BIAS[:7]))


def test_every_operator_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()

    class Seen(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            seen.add(key)
            return super().get(key, default)

    class Views(frozenset[Any]):
        def __contains__(self, key: Any) -> bool:
            seen.add(key)
            return super().__contains__(key)

    monkeypatch.setattr(recording, "OPERATORS", Seen(recording.OPERATORS))
    monkeypatch.setattr(recording, "VIEWS", Views(recording.VIEWS))
    monkeypatch.setattr(recording, "SOURCES", Views(recording.SOURCES))
    for function, inputs in CASES.values():
        compute(function, *inputs)
    tables = recorded_operators
    assert {*tables.OPERATORS, *tables.VIEWS, *tables.SOURCES} <= seen


NUMBER, ELSEWHERE = torch.tensor(0.5), torch.ones(37)

REFUSED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "aten.sort": (lambda x: x.sort().values, (X,)),
    "aten.add_": (lambda x: (x * 2).add_(1), (X,)),
    "a tensor from elsewhere": (lambda x: x + NUMBER, (X,)),
    "is not on the expected device": (lambda x: x + ELSEWHERE, (X,)),
    "integers that are computed with": (lambda ids: (ids + 1).float(), (IDS,)),
    "large integers": (lambda ids: (ids > 1 << 24).float(), (IDS,)),
    "bits of integers": (lambda ids: (ids & ids).float(), (IDS,)),
    "a cast from": (lambda x: x.double().float(), (X,)),
    "an input of torch.float64": (lambda x: x.float(), (X.double(),)),
    "an output that is not of floats": (lambda x: x > 0, (X,)),
    "no numbers": (lambda x: x[:0] * 2, (X,)),
    "cannot be called on meta tensors": (lambda x: x * 2 if bool((x > 0).any()) else x, (X,)),
    "a convolution": (lambda x: torch.conv1d(x, WINDOW[:5, :1], groups=5), (LINE,)),
    "pooling": (lambda x: functional.max_pool2d(x, 3, ceil_mode=True), (PLANES,)),
    "addmm": (lambda x: torch.addmm(BIAS, x, WEIGHT.t(), beta=2), (X[0],)),
    "a part": (lambda x: functional.pad(x, (-1, 1)), (X,)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_library_lacks_is_not_recorded(reason: str) -> None:
    function, inputs = REFUSED[reason]
    with pytest.raises(NotRecordedError, match=reason):
        compute(function, *inputs)
