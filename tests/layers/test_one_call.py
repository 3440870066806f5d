"""Small models in one call of the native library: the numbers that their layers give."""

from __future__ import annotations

import copy
import ctypes
import ctypes.util
import gc
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import fixture_files
import numpy as np
import pytest
import torch
from chained_models import model_of, two, without_programs
from kernel_layers import native
from specs import F, H, dense, layer, rnn
from torch import Tensor, fx, nn
from torch.nn import functional

import keras2torch_birnn as k2t
from keras2torch_birnn.functional.activations import hard_sigmoid_1_6
from keras2torch_birnn.layers import one_call, recorded_operators, recording
from keras2torch_birnn.layers.one_call import OneCall
from keras2torch_birnn.layers.recorded_values import NotRecordedError
from keras2torch_birnn.layers.recording import record
from keras2torch_birnn.limits import MAX_PROGRAMS_PER_MODEL
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn.guard import PATIENCE
from keras2torch_birnn.rnn.native import program as native_program
from keras2torch_birnn.rnn.native.program import Program
from keras2torch_birnn.rnn.observed_code import Observer

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

FIXTURES = fixture_files.FIXTURES / "keras-3.15.1"
TOLERANCE = {"atol": 3e-6, "rtol": 3e-6}


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def close(got: Any, wanted: Any) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, **TOLERANCE, equal_nan=True)


class Counted:
    """A model, and the number of calls that its program computed."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.computed = model, 0
        real = OneCall.run

        def run(one: Any, *args: Any) -> Any:
            found = real(one, *args)
            self.computed += found is not None
            return found

        monkeypatch.setattr(OneCall, "run", run)

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            return self.model(*inputs)

    def by_layers(self, *inputs: Any) -> Any:
        with without_programs(), torch.no_grad():
            return self.model(*inputs)


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
}


TENSORS = (FILTERS, FILTERS_OF_MANY, POINTS, WINDOW, *CHANNELS, TABLE, WEIGHT, BIAS, X, Y, HELD)


class Holder(nn.Module):
    """A function, with the tensors that it reads."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function
        for i, tensor in enumerate(TENSORS):
            self.register_buffer(f"b{i}", tensor)


def compute(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """Compute a function by a program."""
    model, graph = nn.Module(), fx.Graph()
    model.body = Holder(function)
    given = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    graph.output(graph.call_module("body", tuple(given)))
    inputs = tuple(x.contiguous() for x in inputs)
    writer, sizes, several = record(model, graph, inputs, 1 << 30, 1 << 30, Observer())
    outputs = [torch.empty(size) for size in sizes]
    computed = Program(writer).run([x.data_ptr() for x in (*inputs, *outputs)])
    assert computed
    return tuple(outputs) if several else outputs[0]


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
    model, graph = Holder(lambda x: torch.conv1d(x, WINDOW, BIAS[:7])), fx.Graph()
    graph.output(graph.call_module("body", (graph.placeholder("x"),)))
    whole, x, out = nn.Module(), drawn(*sizes), torch.empty(sizes[0], 7, sizes[2] - 2)
    whole.body = model
    program = Program(record(whole, graph, (x,), 1 << 30, 1 << 30, Observer())[0])
    maths.feclearexcept(invalid)
    assert program.run([x.data_ptr(), out.data_ptr()])
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
    for function, inputs in CASES.values():
        compute(function, *inputs)
    assert {*recorded_operators.OPERATORS, *recorded_operators.VIEWS} <= seen


REFUSED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "aten.sort": (lambda x: x.sort().values, (X,)),
    "aten.add_": (lambda x: (x * 2).add_(1), (X,)),
    "a tensor from elsewhere": (lambda x: x + torch.empty(37), (X,)),
    "integers that are computed with": (lambda ids: (ids + 1).float(), (IDS,)),
    "large integers": (lambda ids: (ids > 1 << 24).float(), (IDS,)),
    "bits of integers": (lambda ids: (ids & ids).float(), (IDS,)),
    "a cast from": (lambda x: x.double().float(), (X,)),
    "an input of torch.float64": (lambda x: x.float(), (X.double(),)),
    "an output that is not of floats": (lambda x: x > 0, (X,)),
    "no numbers": (lambda x: x[:0] * 2, (X,)),
    "_local_scalar_dense": (lambda x: x * 2 if bool((x > 0).any()) else x, (X,)),
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


# ---- models -------------------------------------------------------------------------------------

ARCHITECTURES = sorted(
    file
    for file in (*FIXTURES.glob("arch_*"), *FIXTURES.glob("mask_*"))
    if file.suffix in (".keras", ".h5")
)


def converted(file: Path) -> tuple[Any, tuple[Tensor, ...]]:
    weights = file.name.endswith(".weights.h5")
    config = str(file.with_name(file.name.replace(".weights.h5", ".json"))) if weights else None
    inputs = draw_inputs(read_model(str(file), config=config), steps=11, seed=1)
    return k2t.convert(file, config=config), tuple(map(torch.from_numpy, inputs))


@pytest.mark.thorough
def test_models_of_the_fixtures_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    of_programs = set()
    for file in ARCHITECTURES:
        model, inputs = converted(file)
        called = Counted(model, monkeypatch)
        for given in (inputs, tuple(x[:1] for x in inputs)):
            wanted = called.by_layers(*given)
            for _ in range(3):
                close(called(*given), wanted)
        if called.computed:
            assert called.computed == 6
            of_programs.add(file.name.partition(".")[0])
    benchmarked = {
        "arch_toxic",
        "arch_siamese",
        "arch_crnn_ocr",
        "arch_reader",
        "arch_ner_char_cnn",
    }
    benchmarked |= {"arch_seq2seq_attention", "arch_hierarchy_attention", "arch_multi_head"}
    assert of_programs >= {*benchmarked, "arch_deep_speech_2d", "mask_stack_bi_dense"}


def tagger() -> Any:
    return model_of(
        layer("Masking", mask_value=0.0),
        two("LSTM", F, "mul", return_sequences=True),
        layer("Dropout", rate=0.5),
        rnn("GRU before", 11, H, seed=3, return_sequences=True),
        dense(7, 11, activation="softmax"),
    )


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "GRU before", "SimpleRNN"])
@pytest.mark.parametrize("rule", ["zeros", "previous_output", "previous_state"])
def test_any_mask_gives_the_same_numbers(
    cell: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sequences in (True, False):
        options: dict[str, Any] = {"return_sequences": sequences, "masked_output": rule}
        for last in (two(cell, F, **options), rnn(cell, 11, F, **options)):
            called = Counted(model_of(layer("Masking", mask_value=0.0), last), monkeypatch)
            called.model(torch.randn(5, 13, F))
            for seed in range(5):
                torch.manual_seed(seed)
                valid = torch.rand(5, 13) < 0.6
                valid[0], valid[1] = torch.arange(13) < 4, seed > 0
                valid[2] &= seed > 1
                x = torch.randn(5, 13, F) * valid[..., None]
                close(called(x), called.by_layers(x))
            assert called.computed == 5


@pytest.mark.parametrize("merge", [*MERGE_MODES, None])
def test_merges_and_directions_give_the_same_numbers(
    merge: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 13, F)
    for sequences in (True, False):
        layers = [two("LSTM", F, merge, return_sequences=sequences)]
        if merge is not None:
            against = {"go_backwards": True, "return_sequences": sequences}
            layers += [rnn("GRU", 11, F, **against), layer("Activation", activation="tanh")]
            layers = layers[:1] if not sequences else [layers[1], layers[2]]
        called = Counted(model_of(*layers), monkeypatch)
        for _ in range(3):
            close(called(x), called.by_layers(x))
        assert called.computed == 3


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> tuple[Counted, Tensor]:
    """A model whose program has computed once, and its input."""
    torch.manual_seed(0)
    called, x = Counted(tagger(), monkeypatch), torch.randn(3, 13, F)
    called(x)
    assert called.computed == 1
    return called, x


def halve_weights(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.5)


def test_a_layer_that_trains_is_called(ready: tuple[Counted, Tensor]) -> None:
    called, x = ready
    before = called(x)
    called.model.get_submodule("Dropout").train()
    assert not torch.equal(called(x), called(x))
    called.model.eval()
    close(called(x), before)


def test_gradients_do_not_come_from_a_program(ready: tuple[Counted, Tensor]) -> None:
    called, x = ready
    called.model(x).sum().backward()
    assert all(p.grad is not None for p in called.model.parameters())
    assert called.computed == 1


def test_a_model_is_mapped_layer_by_layer(ready: tuple[Counted, Tensor]) -> None:
    called, x = ready
    with torch.no_grad():
        close(torch.vmap(called.model)(x[None]), called.by_layers(x)[None])
    assert called.computed == 1


def test_an_engine_that_is_asked_for_computes(
    ready: tuple[Counted, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    called, x = ready
    k2t.set_engine(called.model, "torch")
    for _ in range(3):
        called(x)
    assert called.computed == 1
    k2t.set_engine(called.model, "auto")
    for _ in range(2):
        called(x)
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    before = called.computed
    called(x)
    assert called.computed == before


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_weights_of_its_own(copied: Any, ready: tuple[Counted, Tensor]) -> None:
    called, x = ready
    before, model = called(x), called.model
    called.model = copied(model)
    for _ in range(3):
        close(called(x), before)
    halve_weights(called.model)
    assert not torch.allclose(called(x), before)
    called.model = model
    close(called(x), before)


def test_ids_without_a_row_are_refused_as_torch_refuses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (ids,) = converted(FIXTURES / "mask_stack_bi_dense.h5")
    called = Counted(model, monkeypatch)
    called(ids)
    for wrong in (17, -1):
        with pytest.raises(IndexError):
            called(torch.full_like(ids, wrong))
    called(ids)
    assert called.computed == 2


def test_ids_that_come_as_floats_are_part_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids,) = converted(FIXTURES / "mask_stack_bi_dense.h5")
    called = Counted(model, monkeypatch)
    floats = ids.float()
    assert torch.equal(called(floats), called(ids))
    for given in (floats + 0.75, floats - 0.75 * (floats == 0)):  # the mask is of the floats
        close(called(given), called.by_layers(given))
    assert called.computed == 4
    for wrong in (17.0, -1.0, torch.nan, torch.inf, 3e9):
        with pytest.raises(IndexError) as by_layers:
            called.by_layers(torch.full_like(floats, wrong))
        with pytest.raises(IndexError) as by_program:
            called(torch.full_like(floats, wrong))
        assert str(by_program.value) == str(by_layers.value)
    called(floats)
    assert called.computed == 5


def test_several_threads_call_one_model(ready: tuple[Counted, Tensor]) -> None:
    called, _ = ready
    inputs = [torch.randn(3, 13, F) for _ in range(40)]
    wanted = [called.by_layers(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(called, inputs), wanted, strict=True):
            close(got, right)


def test_only_small_models_and_so_many_sizes_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = Counted(tagger(), monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(one_call, "SMALL_WORK", 1)
        for _ in range(3):
            called(torch.randn(3, 13, F))
    assert called.computed == 0
    for time in range(1, MAX_PROGRAMS_PER_MODEL + 5):
        called(torch.randn(1, time, F))
    assert len(called.model._one_call._found) == MAX_PROGRAMS_PER_MODEL
    assert called.computed == MAX_PROGRAMS_PER_MODEL - 1  # and the large one


def test_of_more_threads_less_work_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    called, x = Counted(tagger(), monkeypatch), torch.randn(3, 13, F)
    called(x)
    (found,) = called.model._one_call._found.values()
    monkeypatch.setattr(one_call, "SMALL_WORK", found.program._writer.work)
    for count, computed in ((2, 1), (1, 2)):
        torch.set_num_threads(count)
        called.model._one_call._found.clear()
        called(x)
        assert called.computed == computed


def test_every_call_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = converted(FIXTURES / "arch_reader.h5")
    called = Counted(model, monkeypatch)
    wanted = flat(called(*inputs))
    for _ in range(3):
        assert all(map(torch.equal, flat(called(*inputs)), wanted))
    assert called.computed == 4


def test_a_model_that_keeps_changing_is_called_by_layers(ready: tuple[Counted, Tensor]) -> None:
    called, x = ready
    for remark in range(100):
        called.model.remark = remark
        close(called(x), called.by_layers(x))
    assert called.computed == 1 + PATIENCE


def test_weights_that_change_while_they_are_packed_are_computed_with(
    ready: tuple[Counted, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    called, x = ready
    real, packed = native_program.cached_pack, []

    def pack(*args: Any, **options: Any) -> Any:
        packed.append(options)
        return real(*args, **options)

    monkeypatch.setattr(native_program, "cached_pack", pack)
    halve_weights(called.model)
    close(called(x), called.by_layers(x))
    assert {"stale": True} in packed
    count = len(packed)
    called(x)
    assert len(packed) == count


def tensors_alive() -> int:
    return sum(type(found) in (Tensor, nn.Parameter) for found in gc.get_objects())


RECORDED = ("mask_td_dense.h5", "arch_crnn_by_hand.h5", "arch_attention_by_hand.keras")


@pytest.mark.parametrize("file", RECORDED)
def test_weights_can_be_swapped_after_a_recorded_call(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.disable()  # a cycle would keep views of the weights
    try:
        for change in ("swap", "load", "double"):
            model, inputs = converted(FIXTURES / file)
            called = Counted(model, monkeypatch)
            called(*inputs)
            assert called.computed == 1
            torch.__future__.set_swap_module_params_on_conversion(True)
            if change == "swap":
                for p in model.parameters():
                    torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))
            elif change == "load":
                model.load_state_dict({n: v * 0.5 for n, v in model.state_dict().items()})
            else:
                model.double().float()
            close(called(*inputs), called.by_layers(*inputs))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
        gc.enable()


def test_what_recording_needs_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called = Counted(tagger(), monkeypatch)
    called(torch.randn(1, 2, F))
    gc.collect()
    gc.disable()
    try:
        before = tensors_alive()
        for time in range(3, 13):
            called(torch.randn(1, time, F))
        assert called.computed == 11
        # One like each output, and a few constants.
        assert tensors_alive() - before <= 5 * 10
    finally:
        gc.enable()


def test_nothing_is_recorded_while_another_profiler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    called, x = Counted(tagger(), monkeypatch), torch.randn(3, 13, F)
    before = sys.getprofile()
    sys.setprofile(lambda *_: None)
    try:
        called(x)
    finally:
        sys.setprofile(before)
    assert called.computed == 0
    for _ in range(2):
        called(x)
    assert called.computed == 2


def test_preparing_a_call_of_a_stateful_model_leaves_its_states_alone() -> None:
    """A layer that was called while it was recorded began with its own last states."""
    path = FIXTURES / "stateful_bi_lstm.keras"
    batches = [torch.from_numpy(np.load(path.with_suffix(".npz"))[f"in_{i}"]) for i in (0, 1)]
    models: Any = [k2t.convert(path) for _ in range(2)]
    wanted = [models[0](x).detach() for x in batches]  # with gradients nothing is prepared
    with torch.no_grad():
        for x, y in zip(batches, wanted, strict=True):
            torch.testing.assert_close(models[1](x), y)


def test_a_shallow_copy_is_computed_with_modules_of_its_own() -> None:
    model, inputs = converted(FIXTURES / "arch_reader.h5")
    with torch.no_grad():
        before = flat(model(*inputs))[0]
        other = copy.copy(model)
        other._modules = {name: copy.deepcopy(part) for name, part in model._modules.items()}
        for parameter in other.parameters():
            parameter.mul_(1.7)
        assert not torch.equal(flat(other(*inputs))[0], before)
