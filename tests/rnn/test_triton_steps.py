"""The engine "triton". Without a GPU its kernels run under Triton's interpreter, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from functools import partial
from itertools import cycle, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton_compile_child
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import assert_close, both, half, reference
from sampling import examples, rest_thorough
from seen_operators import SeenOperators
from step_layers import CELLS, numbers, stack_of
from torch import Tensor
from triton_compile_child import LEFT_OUT, TARGETS, VERSION

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.functional.activations import FUNCTIONS, HALVING, activation
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines import cuda_graph, engine, loop, select, triton_step
from keras2torch_birnn.rnn.engines.select import engine_of
from keras2torch_birnn.rnn.engines.static import why_not_triton
from keras2torch_birnn.rnn.gpu import self_check, steps, timing
from keras2torch_birnn.rnn.gpu.function_options import FUNCTION_OPTIONS
from keras2torch_birnn.rnn.gpu.launcher import Launcher
from keras2torch_birnn.rnn.gpu.self_check import CheckedKind
from keras2torch_birnn.rnn.gpu.step_cell import Form, StepCell, to_step_cell
from keras2torch_birnn.rnn.gpu.step_gradient import run_call
from keras2torch_birnn.rnn.layer import Cell, DropoutRates, RnnLayer
from keras2torch_birnn.schema.options import ACTIVATION_OPTIONS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
B, T, F, H = 3, 5, 2, 7
# The interpreter computes with NumPy, which warns of what is replaced later. Triton 3.9 warns that
# 3.10 will not fuse a product and a sum, unless that is asked for.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def module_of(
    cell: str, dtype: torch.dtype = torch.float64, units: int = H, features: int = F, **options: Any
) -> Any:
    torch.manual_seed(3)
    return stack_of(cell, features, units, **options).to(DEVICE, dtype)


def layer_of(cell: str, dtype: torch.dtype = torch.float64, **options: Any) -> RnnLayer:
    layer: RnnLayer
    (layer,) = module_of(cell, dtype, **options).rnn_layers()
    return layer


def call_of(layer: RnnLayer, *, masked: bool, started: bool = True, merge: Any = None) -> RnnCall:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=layer.parameters[0].dtype).to(DEVICE).requires_grad_()

    states = tuple(tuple(draw(B, H) for _ in range(layer.state_count())) for _ in range(2))
    # Not contiguous, as lengths that are a column of a table.
    lengths = torch.tensor([[T, 9], [0, 9], [3, 9]], device=DEVICE)[:, 0] if masked else None
    return RnnCall(draw(B, T, F), lengths, states if started else None, merge)


def gradients(result: RnnResult, layer: RnnLayer, call: RnnCall, **options: Any) -> list[Tensor]:
    total = torch.stack([(n.sin() * (1.0 + i)).sum() for i, n in enumerate(numbers(result))]).sum()
    return list(torch.autograd.grad(total, engine.float_tensors(layer, call), **options))


def words_of(cell: Cell, form: Form = "steps") -> StepCell:
    found = to_step_cell(cell)
    assert found is not None
    return found._replace(form=form)


def run_triton(layer: RnnLayer, call: RnnCall, form: Form = "steps") -> RnnResult:
    return run_call(words_of(layer.cell, form), layer, call)


def assert_like_the_loop(layer: RnnLayer, call: RnnCall, form: Form) -> None:
    """Compare outputs, states and gradients, and what is computed without gradients."""
    got = run_triton(layer, call, form)
    wanted = loop.run_directions(layer, call)
    torch.testing.assert_close(numbers(got), numbers(wanted), **EXACT)
    torch.testing.assert_close(gradients(got, layer, call), gradients(wanted, layer, call), **EXACT)
    with torch.no_grad():
        alone = numbers(run_triton(layer, call, form))
    torch.testing.assert_close(alone, numbers(wanted), **EXACT)


LACKING = VERSION < triton_step.FEWER_LAUNCHES_SINCE
needs_products = pytest.mark.skipif(LACKING, reason="this Triton is too old for them")


def by(form: Form, *rest: Any, thorough: bool = False) -> Any:
    """Return a row for ``parametrize`` that ends with a form."""
    marks = [needs_products] * (form != "steps") + [pytest.mark.thorough] * thorough
    return pytest.param(*rest, form, marks=marks)


FORMS: tuple[Form, ...] = ("steps", "fused", "persistent")
by_form = pytest.mark.parametrize("form", [by(form) for form in FORMS])
# Each cell by one kind of kernels: what all have in common is compared above.
by_either = pytest.mark.parametrize(
    ("cell", "form"),
    [
        by("steps", "GRU"),
        by("fused", "SimpleRNN"),
        by("persistent", "GRU before"),
        by("persistent", "LSTM"),
    ],
)


# Each cell by each form, with a mask and without one in turn.
@pytest.mark.parametrize(
    ("cell", "masked", "form"),
    [
        by(
            form,
            cell,
            (row + column) % 2 == 0,
            thorough=(cell, form) not in (("LSTM", "steps"), ("GRU before", "persistent")),
        )
        for row, cell in enumerate(sorted(CELLS))
        for column, form in enumerate(FORMS)
    ],
)
def test_steps_and_their_gradients_are_those_of_the_loop(
    cell: str, masked: bool, form: Form
) -> None:
    layer = layer_of(cell)
    call = call_of(layer, masked=masked, merge="mul")
    assert_like_the_loop(layer, call, form)


@pytest.mark.thorough
@by_either
def test_layers_without_biases_and_without_states_begin_at_zero(cell: str, form: Form) -> None:
    layer = layer_of(cell, bias=False)
    call = call_of(layer, masked=True, started=False, merge="concat")
    assert_like_the_loop(layer, call, form)


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 1), (5, 1, 1), (1, 1, 17), (17, 2, 3)])
@by_either
def test_one_row_one_step_and_one_unit_are_computed(
    cell: str, sizes: tuple[int, int, int], form: Form
) -> None:
    rows, steps_, units = sizes
    layer = layer_of(cell, units=units)
    x = torch.randn(rows, steps_, F, dtype=torch.float64).to(DEVICE).requires_grad_()
    lengths = torch.randint(0, steps_ + 1, (rows,), dtype=torch.int32).to(DEVICE)
    masked = cell in ("SimpleRNN", "GRU before")
    assert_like_the_loop(layer, RnnCall(x, lengths if masked else None, merge="ave"), form)


@pytest.mark.parametrize("form", [by(form, thorough=form != "steps") for form in FORMS])
@settings(max_examples=examples(18), deadline=None)
@given(data=st.data())
def test_any_size_is_computed_as_by_the_loop(form: Form, data: st.DataObject) -> None:
    """Draw cell, features, units, rows, steps, direction, lengths, states and merge."""
    cell = data.draw(st.sampled_from(sorted(CELLS)))
    features, units, rows, steps_ = (data.draw(st.integers(1, most)) for most in (7, 35, 18, 5))
    layer = layer_of(cell, units=units, features=features, bias=data.draw(st.booleans()))
    torch.manual_seed(data.draw(st.integers(0, 99)))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(DEVICE).requires_grad_()

    of_rows = st.lists(st.integers(0, steps_), min_size=rows, max_size=rows)
    lengths = data.draw(st.none() | of_rows)
    dtype = data.draw(st.sampled_from([torch.int32, torch.int64]))
    states = tuple(tuple(draw(rows, units) for _ in range(layer.state_count())) for _ in range(2))
    call = RnnCall(
        draw(rows, steps_, features),
        None if lengths is None else torch.tensor(lengths, dtype=dtype, device=DEVICE),
        states if data.draw(st.booleans()) else None,
        data.draw(st.sampled_from([*MERGE_MODES, None])),
    )
    assert_like_the_loop(layer, call, form)


# (not by kernels that multiply: the interpreter multiplies the bits of bfloat16)
@pytest.mark.thorough
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_bfloat16_is_as_near_to_float64_as_the_loop_is(cell: str) -> None:
    layer = layer_of(cell, torch.bfloat16)
    call = call_of(layer, masked=True)
    exact = engine.cast_as_autocast(layer, call, torch.float64)
    wanted = numbers(loop.run_directions(*exact))
    errors = [
        max(
            float((a.double() - b).abs().max().detach()) for a, b in zip(found, wanted, strict=True)
        )
        for found in (numbers(run_triton(layer, call)), numbers(loop.run_directions(layer, call)))
    ]
    assert errors[0] <= max(2 * errors[1], 1e-2)


@pytest.mark.thorough
@by_form
def test_one_direction_of_several_tiles_of_rows_and_units(form: Form) -> None:
    (rows, steps_, units) = (5, 2, 131)
    torch.manual_seed(5)
    width = 3 * units
    shapes = ((width, F), (width, units), (width,), (width,))
    cell = Cell("GRU", FUNCTIONS["tanh"], FUNCTIONS["hard_sigmoid_0.2"])
    made = [torch.randn(s, dtype=torch.float64) * s[-1] ** -0.5 for s in shapes]
    layer = RnnLayer(cell, [p.to(DEVICE).requires_grad_() for p in made])
    x = torch.randn(rows, steps_, F, dtype=torch.float64).to(DEVICE).requires_grad_()
    assert_like_the_loop(layer, RnnCall(x), form)


# Wide layers run so; two or three tiles of 32 units show what nine of them would.
@needs_products
@pytest.mark.parametrize(
    ("cell", "sizes", "masked"),
    rest_thorough(
        [
            ("LSTM", (3, 2, 71), True),
            ("GRU", (17, 2, 65), True),
            ("GRU before", (1, 2, 37), True),
            ("SimpleRNN", (2, 3, 80), False),
        ],
        [("GRU before", (1, 2, 37), True)],
    ),
)
def test_a_fused_step_of_several_tiles_is_that_of_the_loop(
    cell: str, sizes: tuple[int, int, int], masked: bool
) -> None:
    rows, steps_, units = sizes
    layer = layer_of(cell, units=units)
    x = torch.randn(rows, steps_, F, dtype=torch.float64).to(DEVICE).requires_grad_()
    lengths = torch.arange(rows).remainder(steps_ + 1).to(DEVICE) if masked else None
    assert_like_the_loop(layer, RnnCall(x, lengths, merge="sum"), "fused")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "allowed", "form"),
    [*(by(form, torch.float16, 4e-3) for form in FORMS), by("persistent", torch.float32, 2e-6)],
)
def test_shorter_floats_are_computed_in_float32(
    dtype: torch.dtype, allowed: float, form: Form
) -> None:
    layer = layer_of("LSTM", dtype)
    call = call_of(layer, masked=True)
    parameters = [p.double() for p in layer.parameters]
    exact = loop.run_directions(
        layer._replace(parameters=parameters),
        RnnCall(
            call.x.double(),
            call.lengths,
            tuple(tuple(s.double() for s in state) for state in call.initial_state or ()),
        ),
    )
    got = numbers(run_triton(layer, call, form))
    assert {n.dtype for n in got} == {dtype}
    doubles = [n.double() for n in got]
    torch.testing.assert_close(doubles, numbers(exact), rtol=0, atol=allowed)


@pytest.mark.thorough
def test_gradients_have_gradients() -> None:
    layer = layer_of("GRU", activation="tanh", recurrent_activation="softsign")
    call = call_of(layer, masked=True)
    found = []
    for run in (run_triton, loop.run_directions):
        first = gradients(run(layer, call), layer, call, create_graph=True)
        total = torch.stack([(g * g).sum() for g in first]).sum()
        found.append(torch.autograd.grad(total, engine.float_tensors(layer, call)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.thorough
def test_only_what_is_differentiated_has_a_gradient() -> None:
    layer = layer_of("LSTM")
    call = call_of(layer, masked=False)
    call = call._replace(x=call.x.detach())
    outputs, _ = run_triton(layer, call)
    wanted, _ = loop.run_directions(layer, call)
    (hh,) = torch.autograd.grad(outputs[1].sum(), layer.parameters[5])
    (right,) = torch.autograd.grad(wanted[1].sum(), layer.parameters[5])
    torch.testing.assert_close(hh, right, **EXACT)


@pytest.mark.thorough
@by_either
def test_numbers_at_masked_steps_reach_nothing(cell: str, form: Form) -> None:
    layer = layer_of(cell)
    call = call_of(layer, masked=True)
    spoiled = call.x.detach().clone()
    spoiled[2, 3:] = float("nan")
    spoiled[1] = float("inf")
    other = call._replace(x=spoiled.requires_grad_())
    got, wanted = (run_triton(layer, one, form) for one in (other, call))
    with torch.no_grad():
        quiet = numbers(run_triton(layer, other, form))
    torch.testing.assert_close(quiet, numbers(wanted), **EXACT)
    torch.testing.assert_close(numbers(got), numbers(wanted), **EXACT)
    torch.testing.assert_close(
        gradients(got, layer, other), gradients(wanted, layer, call), **EXACT
    )


# ---- launches -----------------------------------------------------------------------------------

# Operations that only describe memory.
VIEWS = {"select", "slice", "unbind", "view", "transpose", "as_strided", "detach", "alias"}


def launches(
    monkeypatch: pytest.MonkeyPatch, cell: str, time: int, form: Form = "steps"
) -> list[list[str]]:
    """Everything that is launched forward and backward, kernels of Triton by their names."""
    layer = layer_of(cell)
    kind = words_of(layer.cell, form)
    operands = steps.join_weights(kind, layer.get_weights())
    x = torch.randn(B, time, F, dtype=torch.float64, device=DEVICE)
    d_states = [torch.zeros(2, B, H, dtype=x.dtype, device=DEVICE) for _ in range(2)]
    forward, backward = SeenOperators(), SeenOperators()

    def launch(self: Launcher, kernel: Any, *_: Any, **__: Any) -> None:
        current.names.append(kernel.fn.__name__)

    monkeypatch.setattr(Launcher, "launch", launch)
    with torch.no_grad():
        with forward as current:
            kept = steps.run_steps(kind, operands, x, None, None, keep=True)
        with backward as current:
            steps.run_steps_back(kind, operands.hh, kept, None, kept.out, d_states)
    return [[name for name in one.names if name not in VIEWS] for one in (forward, backward)]


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_step_is_two_launches_and_four_where_the_reset_comes_first(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = launches(monkeypatch, cell, 4), launches(monkeypatch, cell, 6)
    before = cell == "GRU before"
    forward = ["bmm", "reset_state", "bmm", "advance"] if before else ["bmm", "advance"]
    backward = (
        ["retreat", "bmm", "retreat_reset", "baddbmm_"] if before else ["retreat", "baddbmm_"]
    )
    for short, long, step in zip(few, many, (forward, backward), strict=True):
        assert len(long) - len(short) == 2 * len(step)
        assert long[-6 * len(step) :] == step * 6


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_fused_step_is_one_launch_and_two_where_the_reset_comes_first(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, backward = launches(monkeypatch, cell, 6, "fused")
    each = 2 if cell == "GRU before" else 1
    assert forward[-6 * each :] == ["fused_forward"] * 6 * each
    assert backward[-6 * each - 1 :] == [*["fused_backward"] * 6 * each, "baddbmm_"]
    assert not {"bmm", "baddbmm_"}.intersection(forward, backward[:-1])


@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_persistent_kernel_is_one_launch_whatever_the_steps(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (launches(monkeypatch, cell, time, "persistent") for time in (4, 6))
    assert few == many
    assert [found[-1] for found in few] == ["run_forward", "run_backward"]
    assert not {"bmm", "baddbmm_"}.intersection(*few)


# ---- activations --------------------------------------------------------------------------------

POINTS = torch.cat(
    (torch.linspace(-9.0, 9.0, 199), torch.tensor([-30.0, -2e-4, 0.0, 3e-4, 30.0]))
).double()
VARIANTS: list[Any] = [
    *FUNCTION_OPTIONS,
    {"name": "relu", "negative_slope": -0.3, "max_value": 4.0, "threshold": 0.7},
    {"name": "leaky_relu", "negative_slope": 0.4},
    {"name": "elu", "alpha": 1.7},
    {"name": "celu", "alpha": 0.5},  # torch rounds 1 / alpha to float32
    {"name": "gelu", "approximate": True},
    {"name": "hard_shrink", "threshold": 1.3},
    {"name": "soft_shrink", "threshold": 1.3},
    {"name": "squareplus", "b": 2.5},
    {"name": "softmax", "axis": 1},
]


@pytest.mark.thorough
@pytest.mark.parametrize("value", VARIANTS, ids=str)
def test_every_activation_and_its_gradient_is_torchs(value: Any) -> None:
    from triton_points import apply

    function = activation(value)
    cell = words_of(Cell("SimpleRNN", function, FUNCTIONS["linear"]))
    x = POINTS.expand(2, -1).clone().to(DEVICE)
    d_y = torch.linspace(0.5, 2.0, x.numel(), dtype=x.dtype, device=DEVICE).view_as(x)
    if cell.needs_whole_rows:
        x = x / 9.0
    # A GPU rounds exponents, quotients and roots of float32 by up to two units in the last place,
    # and some of these functions are small differences of larger numbers.
    rounded = 2e-6 if DEVICE.type == "cpu" else 3e-5
    for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, rounded)):
        given = x.to(dtype)
        exact = given.double().requires_grad_()
        wanted = function(exact)
        (d_wanted,) = torch.autograd.grad(wanted, exact, d_y.to(dtype).double())
        y, d_x = apply(given, d_y.to(dtype), cell.activation)
        torch.testing.assert_close(y.double(), wanted.detach(), rtol=allowed, atol=allowed / 10)
        torch.testing.assert_close(d_x.double(), d_wanted, rtol=allowed, atol=allowed)


@pytest.mark.parametrize(
    ("name", "at"),
    [("tanh", 2e-4), ("elu", -2e-4), ("celu", -2e-4), ("selu", -2e-4), ("softplus", -15.0)],
)
def test_small_results_keep_their_digits(name: str, at: float) -> None:
    from triton_points import apply

    x = torch.full((2, 3), at, device=DEVICE)
    cell = words_of(Cell("SimpleRNN", FUNCTIONS[name], FUNCTIONS["linear"]))
    y, _ = apply(x, torch.ones_like(x), cell.activation)
    torch.testing.assert_close(y.double(), FUNCTIONS[name](x.double()), rtol=2e-6, atol=0)


def test_the_kernels_have_all_activations_but_two() -> None:
    assert set(FUNCTIONS) - set(FUNCTION_OPTIONS) == {"sparsemax", *HALVING}
    for name, options in FUNCTION_OPTIONS.items():
        known = ACTIVATION_OPTIONS.get(name, {})
        assert set(options) == set(known) - {"axis"}
        for key, default in options.items():
            assert known[key].default == default


@pytest.mark.parametrize("value", ["sparsemax", {"name": "softmax", "axis": 0}], ids=str)
def test_other_activations_are_left_to_the_loop(value: Any) -> None:
    assert to_step_cell(Cell("LSTM", activation(value), FUNCTIONS["sigmoid"])) is None
    assert to_step_cell(Cell("LSTM", FUNCTIONS["tanh"], activation(value))) is None
    assert to_step_cell(Cell("LSTM", torch.tanh, lambda x: x)) is None


# ---- selection, and the check of the kernels ----------------------------------------------------


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Select engines as on a GPU, by kernels that were not checked yet."""
    monkeypatch.setattr(cuda_graph, "why_not_on_gpu", lambda *_: "it is not what is tested")
    if DEVICE.type == "cpu":
        monkeypatch.setattr(select, "_asks_for_gpu", lambda _: True)
        monkeypatch.setattr(triton_step, "why_not_on_gpu", lambda *_: "")
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(self_check, "_reasons", {})
    monkeypatch.setattr(triton_step, "triton_version", lambda: "3.4.0")  # two launches a step alone


@pytest.fixture
def persistent_ones(as_on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> list[CheckedKind]:
    """Have persistent kernels, which pay; return the kinds that were measured."""
    measured: list[CheckedKind] = []

    def pays(_: Cell, kind: CheckedKind, rows: int, units: int) -> bool:
        measured.append(kind)
        return True

    monkeypatch.setattr(triton_step, "WIDEST_PERSISTENT", H)
    monkeypatch.setattr(triton_step, "triton_version", lambda: "3.5.0")
    monkeypatch.setattr(triton_step, "fewer_launches_pay", pays)
    return measured


def chosen(module: Any) -> list[str]:
    return [choice.engine for choice in k2t.explain(module)[""]]


@pytest.mark.thorough
@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(
    ("cell", "rule", "options", "form"),
    [
        by("steps", "LSTM", "previous_state", {}),
        by("persistent", "GRU before", "previous_output", {"return_state": True}),
        by("fused", "GRU", "zeros", {"return_sequences": False, "activation": "mish"}),
    ],
)
def test_a_masked_layer_computes_what_the_reference_does(
    cell: str, rule: str, options: dict[str, Any], form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = triton_step._choose
    monkeypatch.setattr(
        triton_step, "_choose", lambda *given: (choose(*given)[0]._replace(form=form), [])
    )
    config = {"recurrent_activation": "hard_sigmoid_0.2", **options}
    spec = both(cell, H, F, "ave", masked_output=rule, **config)
    module: Any = bidirectional(spec).to(DEVICE).double()
    k2t.set_engine(module, "triton")
    x = np.random.default_rng(1).normal(size=(B, T, F))
    mask = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
    got = module(torch.from_numpy(x).to(DEVICE), torch.from_numpy(mask).to(DEVICE))
    assert_close(got, reference(spec, x, mask))


@pytest.mark.thorough
@pytest.mark.usefixtures("as_on_gpu")
def test_a_layer_that_reads_backwards_computes_what_the_reference_does() -> None:
    config = {"activation": "elu", "recurrent_activation": "hard_sigmoid_1/6"}
    spec = half("GRU before", H, F, 1, go_backwards=True, **config)
    module: Any = recurrent(spec).to(DEVICE).double()
    k2t.set_engine(module, "triton")
    x = np.random.default_rng(2).normal(size=(B, T, F))
    got = module(torch.from_numpy(x).to(DEVICE))
    assert_close(got, reference(spec, x, None))


@pytest.mark.usefixtures("as_on_gpu")
def test_it_is_chosen_in_training_where_torch_has_no_kernel() -> None:
    lacking, standard = module_of("LSTM"), module_of("LSTM", recurrent_activation="sigmoid")
    assert chosen(lacking) == ["triton"]
    assert chosen(standard) == ["fused"]
    lacking.engine = "torch"
    assert chosen(lacking) == ["loop"]


def test_fewer_launches_are_taken_where_they_are_right_and_faster(
    monkeypatch: pytest.MonkeyPatch, persistent_ones: list[CheckedKind]
) -> None:
    def choose(units: int = H, **options: Any) -> tuple[str, int]:
        """Return how a layer runs, and the number of ways for a graph."""
        layer = layer_of("LSTM", torch.float32, units=units, **options)
        call = RnnCall(torch.zeros(B, T, F, device=DEVICE))
        how = triton_step.ENGINE.reason(layer, call).partition(":")[0]
        return how, len(triton_step.ENGINE.ways(layer, call))

    once, each = "one launch", "steps of two launches"
    monkeypatch.setattr(self_check, "_check", lambda *_: "")
    assert choose() == (once, 2)
    (kind,) = persistent_ones
    assert kind.cell.form == "persistent"
    assert kind.tile == (4, 8)
    assert choose(H + 1) == ("steps of one launch", 2)
    assert persistent_ones[-1].cell.form == "fused"
    assert choose(H + 1, activation="softmax") == (each, 1)
    with monkeypatch.context() as patching:
        patching.setattr(triton_step, "COUNTED_BY_32_BITS", 4 * (H + 1) ** 2)
        assert choose(H + 1) == (each, 1)
        assert choose(H) == (once, 2)
    with monkeypatch.context() as patching:
        patching.setattr(triton_step, "triton_version", lambda: "3.4.0")
        assert choose() == (each, 1)
    with torch.no_grad():  # a graph will choose
        assert choose() == (each, 2)
    with monkeypatch.context() as patching:
        patching.setattr(triton_step, "fewer_launches_pay", lambda *_: False)
        assert choose() == (each, 2)
    monkeypatch.setattr(self_check, "_reasons", {})
    monkeypatch.setattr(self_check, "_check", lambda *_: "their numbers are off")
    with pytest.warns(RuntimeWarning, match="without persistent Triton kernels, slower: their n"):
        assert choose() == (each, 1)
    with pytest.warns(RuntimeWarning, match="without fused Triton kernels, slower: their n"):
        assert choose(H + 1) == (each, 1)


@needs_products
@pytest.mark.usefixtures("as_on_gpu")
def test_it_is_measured_once_for_each_size_whether_fewer_launches_are_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = []

    def find_fastest(what: Any, ways: Any, device: torch.device) -> int:
        for way in ways:
            way()
        measured.append(what[1:])
        return 1

    layer = layer_of("SimpleRNN", torch.float32)
    call = call_of(layer, masked=True)
    kind = self_check.kind_of(words_of(layer.cell, "persistent"), layer, call)
    monkeypatch.setattr(self_check, "_faster", {})
    monkeypatch.setattr(self_check, "TIMED_STEPS", 2)
    monkeypatch.setattr(self_check, "find_fastest", find_fastest)
    with monkeypatch.context() as patching:
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not self_check.fewer_launches_pay(layer.cell, kind, 2, 5)
    assert self_check.fewer_launches_pay(layer.cell, kind, 2, 5)
    assert self_check.fewer_launches_pay(layer.cell, kind, 2, 5)
    assert measured == [(2, 5)]
    monkeypatch.setattr(self_check, "find_fastest", fail)
    with pytest.warns(RuntimeWarning, match="without persistent Triton kernels, slower: OSError"):
        assert not self_check.fewer_launches_pay(layer.cell, kind, 3, 5)
    assert "OSError" in self_check.why_not_trusted(layer.cell, kind)


def test_the_fastest_way_is_that_of_the_least_time_behind_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, seconds = 0.0, {"a": iter((9.0, 3.0, 1.0, 2.0)), "b": iter((0.0, 2.0, 2.0, 2.0))}

    def spend(way: str) -> None:
        nonlocal now
        now += next(seconds[way])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(timing, "MEASURED", {})
    ways = [partial(spend, "b"), partial(spend, "a")]
    assert timing.find_fastest("what", ways, torch.device("cpu")) == 1
    assert timing.MEASURED == {"what": (2.0, 1.0)}
    assert timing.find_fastest("what", ways[:1], torch.device("cpu")) == 0


@pytest.mark.usefixtures("as_on_gpu")
def test_each_kind_of_layer_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[CheckedKind] = []
    monkeypatch.setattr(self_check, "_check", lambda _, kind: seen.append(kind) or "")
    layer = layer_of("LSTM")
    other = layer_of("LSTM", recurrent_activation="hard_sigmoid_1/6")
    masked, plain = (call_of(layer, masked=m) for m in (True, False))
    for _ in range(2):
        for asked, call in ((layer, masked), (layer, plain), (other, plain)):
            assert triton_step.ENGINE.why_not(asked, call) == ""
    bare, single = layer_of("LSTM", bias=False), plain._replace(x=plain.x[:1], initial_state=None)
    with torch.no_grad():
        for asked, call in ((layer, plain), (bare, plain), (layer, single)):
            assert triton_step.ENGINE.why_not(asked, call) == ""
    assert [(k.masked, k.gradient, k.biases[1][0], k.tile) for k in seen] == [
        (True, True, True, (4, 8)),
        (False, True, True, (4, 8)),
        (False, True, True, (4, 8)),
        (False, False, True, (4, 8)),
        (False, False, False, (4, 8)),
        (False, False, True, (1, 8)),
    ]


@pytest.mark.parametrize(
    ("activation", "form"), [("softmax", "steps"), *(("tanh", form) for form in FORMS)]
)
def test_the_check_computes_in_the_tiles_of_the_call(activation: str, form: Form) -> None:
    cell = Cell("SimpleRNN", FUNCTIONS[activation], FUNCTIONS["sigmoid"])
    words = words_of(cell, form)
    every = (1, 3, 31, 32, 33, 128, 160, 161, 500, 512), (1, 2, 3, 7, 8, 9, 64, 1000)
    for units, batch in product(*every):
        shapes = ((units, F), (units, units), (units,), None)
        parameters = [None if shape is None else torch.zeros(shape) for shape in shapes]
        layer = RnnLayer(cell, parameters)
        kind = self_check.kind_of(words, layer, RnnCall(torch.zeros(batch, T, F)))
        small, call = self_check._draw(cell, kind, 1)
        assert self_check.kind_of(words, small, call) == kind, (units, batch)
        assert call.x.shape[0] <= 2 * kind.tile[0]
        assert kind.units % 16 == units % 16
        assert kind.biases == ((True, False),)


@pytest.mark.usefixtures("as_on_gpu")
def test_numbers_that_are_wrong_every_other_time_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from keras2torch_birnn.rnn.gpu import step_gradient

    run_steps, calls = step_gradient.run_steps, iter(range(9))

    def run(*arguments: Any, **options: Any) -> Any:
        return (spoil_numbers(run_steps) if next(calls) % 2 else run_steps)(*arguments, **options)

    monkeypatch.setattr(step_gradient, "run_steps", run)
    layer = layer_of("SimpleRNN")
    with pytest.warns(RuntimeWarning, match="their numbers are"):
        assert "off" in triton_step.ENGINE.why_not(layer, call_of(layer, masked=False))


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.thorough
def test_half_precision_is_judged_by_the_loop_in_half_precision() -> None:
    options: Any = {"activation": "relu", "recurrent_activation": "hard_sigmoid_1/6"}
    made = k2t.BiGRU(F, 128, batch_first=True, reset_after=False, **options)
    (layer,) = made.to(DEVICE, torch.bfloat16).rnn_layers()
    call = RnnCall(torch.zeros(B, T, F, dtype=torch.bfloat16, device=DEVICE))
    assert triton_step.ENGINE.why_not(layer, call) == ""


@pytest.mark.thorough
@pytest.mark.usefixtures("as_on_gpu")
def test_no_draw_of_the_check_is_at_a_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("SimpleRNN", torch.float32, activation="relu")
    kind = self_check.kind_of(words_of(layer.cell), layer, call_of(layer, masked=False))
    draw, seeds = self_check._draw, []

    def at_a_kink_first(cell: Cell, kind: CheckedKind, seed: int) -> Any:
        drawn, call = draw(cell, kind, seed)
        seeds.append(seed)
        if seed == 1:  # all sums of the first step are 0
            for tensor in (call.x, *call.states(), *drawn.parameters[2:4]):
                tensor.data.zero_()
        return drawn, call

    monkeypatch.setattr(self_check, "_draw", at_a_kink_first)
    assert self_check._check(layer.cell, kind) == ""
    assert seeds == [1, 2, 3]


@pytest.mark.usefixtures("as_on_gpu")
def test_a_kernel_that_fails_after_its_check_leaves_the_layer_to_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rnn = module_of("GRU")
    x = torch.randn(B, T, F, dtype=torch.float64, device=DEVICE)
    with torch.no_grad():
        assert chosen(rnn) == ["triton"]
        rnn(x)
        monkeypatch.setattr(triton_step, "run_call", fail)
        with pytest.warns(RuntimeWarning, match="OSError: no C compiler") as said:
            got = rnn(x)[0]
        (layer,) = rnn.rnn_layers()
        assert torch.equal(got, loop.run_directions(layer, RnnCall(x, merge="concat"))[0][0])
        assert torch.equal(rnn(x)[0], got)
        assert "OSError" in triton_step.ENGINE.why_not(layer, RnnCall(x))
    assert len(said) == 1


@pytest.mark.usefixtures("as_on_gpu")
def test_memory_that_is_used_up_is_no_fault_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(triton_step, "run_call", full)
    layer = layer_of("GRU")
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        triton_step.ENGINE.run(layer, call_of(layer, masked=False))


@pytest.mark.thorough
@pytest.mark.usefixtures("as_on_gpu")
def test_the_check_leaves_random_numbers_and_settings_alone() -> None:
    layer = layer_of("GRU")
    call = call_of(layer, masked=True)
    random, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    with float32_precision("ieee"):
        assert torch.get_float32_matmul_precision() == "highest"
    assert triton_step.ENGINE.why_not(layer, call) == ""
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_float32_matmul_precision() == precision


def spoil_numbers(run: Any) -> Any:
    def wrong(*arguments: Any, **options: Any) -> Any:
        found = run(*arguments, **options)
        found.h[..., 0, 3] += 1e-3
        return found

    return wrong


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no C compiler\nand a second line")


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (spoil_numbers, "their numbers are .*e-0. off"),
        (lambda _: fail, "OSError: no C compiler"),
    ],
    ids=["wrong numbers", "an error"],
)
@pytest.mark.parametrize("gradient", rest_thorough([False, True], [False]))
def test_kernels_that_fail_their_check_run_nothing_and_warn_once(
    fault: Any, message: str, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras2torch_birnn.rnn.gpu import step_gradient

    monkeypatch.setattr(step_gradient, "run_steps", fault(step_gradient.run_steps))
    rnns = [module_of(cell) for cell in ("LSTM", "SimpleRNN")]
    x = torch.randn(B, T, F, dtype=torch.float64, device=DEVICE)
    with (
        torch.set_grad_enabled(gradient),
        pytest.warns(
            RuntimeWarning,
            match=f"run without the Triton kernels, slower: {message} "
            r"\(LSTM, tanh, hard_sigmoid_0.2, float64, tiles of 4 x 8\)",
        ) as said,
    ):
        for rnn in rnns * 2:
            (layer,) = rnn.rnn_layers()
            wanted = loop.run_directions(layer, RnnCall(x, merge="concat"))
            assert torch.equal(rnn(x)[0], wanted[0][0])
            assert chosen(rnn) == ["loop"]
    assert len(said) == 1
    rnns[0].engine = "triton"
    with pytest.raises(UsageError, match=message):
        rnns[0](x)


@pytest.mark.usefixtures("as_on_gpu")
def test_what_the_kernels_cannot_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(layer: RnnLayer, call: RnnCall | None = None) -> str:
        return triton_step.ENGINE.why_not(layer, call or call_of(layer, masked=False))

    layer = layer_of("LSTM")
    dropped = layer._replace(dropout=DropoutRates(0.5), training=True)
    assert reason(dropped) == "the Triton kernels have no dropout"
    lacking = layer_of("LSTM", activation="sparsemax")
    assert reason(lacking) == "the Triton kernels lack an activation of this layer"
    with pytest.raises(TypeError, match="a layer that the Triton kernels cannot compute"):
        triton_step.ENGINE.run(lacking, call_of(lacking, masked=False))
    wide: Any = k2t.BiRNN(F, 2049, activation="softmax").to(DEVICE)
    most = "the Triton kernels have softmax of at most 2048 units"
    assert reason(wide.rnn_layers()[0], RnnCall(torch.zeros(B, T, F, device=DEVICE))) == most
    alike = "the Triton kernels compute directions alike, of one float type"
    mixed = layer._replace(parameters=[p.float() for p in layer.parameters])
    assert reason(mixed, call_of(layer, masked=False)) == alike
    with monkeypatch.context() as patching:
        patching.setattr(triton_step, "is_exporting", lambda: True)
        assert reason(layer) == "what is compiled or exported must be torch's"
    with monkeypatch.context() as patching:
        patching.setattr(triton_step, "triton_version", lambda: "")
        patching.setattr(triton_step, "find_triton", lambda: ("", "no Triton: it is broken"))
        assert reason(layer) == "no Triton: it is broken"
    with monkeypatch.context() as patching:
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        unchecked = "a graph is being recorded, and the kernels were not checked before"
        assert reason(layer) == unchecked
        patching.setattr(self_check, "_check", lambda *_: "")
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert reason(layer) == ""
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert reason(layer) == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "Triton is not installed"),
        ("", "no Triton: AttributeError: module 'triton' has no attribute '__version__'"),
        ("import triton_lib", "no Triton: ModuleNotFoundError: No module named 'triton_lib'"),
        ("raise OSError('libcuda.so.1: no file')", "no Triton: OSError: libcuda.so.1: no file"),
    ],
)
def test_a_triton_that_cannot_be_used_is_named(
    source: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        (tmp_path / "triton.py").write_text(source)
        monkeypatch.delitem(sys.modules, "triton", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
    assert triton_step.find_triton.__wrapped__() == ("", reason)


@pytest.mark.usefixtures("as_on_gpu")
def test_the_variable_turns_the_kernels_off_or_their_check(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("LSTM")
    call = call_of(layer, masked=False)
    monkeypatch.setattr(self_check, "_check", lambda *_: "their numbers are off")
    monkeypatch.setattr(engines, "GPU_KERNELS", "trusted")
    assert triton_step.ENGINE.why_not(layer, call) == ""
    monkeypatch.setattr(engines, "GPU_KERNELS", "off")
    assert triton_step.ENGINE.why_not(layer, call) == "K2T_GPU_KERNELS=off"
    monkeypatch.setattr(engines, "GPU_KERNELS", "auto")
    with pytest.warns(RuntimeWarning, match="their numbers are off"):
        assert triton_step.ENGINE.why_not(layer, call) == "their numbers are off"


@pytest.mark.thorough
@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("cell", ["GRU before", "LSTM"])
def test_under_autocast_the_kernels_compute_in_its_type(cell: str) -> None:
    layer = layer_of(cell, torch.float32)
    call = call_of(layer, masked=True, merge="sum")
    inputs = engine.float_tensors(layer, call)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert triton_step.ENGINE.why_not(layer, call) == ""
        got = numbers(triton_step.ENGINE.run(layer, call))
        found = torch.autograd.grad(torch.stack([n.float().sum() for n in got]).sum(), inputs)
    half, asked = engine.cast_as_autocast(layer, call, torch.bfloat16)
    wanted = numbers(run_triton(half, asked))
    right = torch.autograd.grad(torch.stack([n.float().sum() for n in wanted]).sum(), inputs)
    assert {n.dtype for n in got} == {torch.bfloat16}
    assert {g.dtype for g in found} == {torch.float32}
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(found, right, rtol=2e-2, atol=2e-2)
    double = layer_of(cell)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        kept = numbers(triton_step.ENGINE.run(double, call_of(double, masked=True)))
    assert {n.dtype for n in kept} == {torch.float64}


@pytest.mark.usefixtures("as_on_gpu")
def test_a_graph_records_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "why_not_on_gpu", lambda *_: "")
    rnn: Any = layer_of("GRU before")
    recorded: list[type] = []

    def run_captured(
        compute: Any, ways: Any, requests: Any, weights: Any, what: Any, cut: Any
    ) -> Any:
        recorded.append(what[-1])
        assert len(ways()) == 1
        return compute(requests[0].like)

    monkeypatch.setattr(cuda_graph, "run_captured", run_captured)
    call = call_of(rnn, masked=True)
    with torch.no_grad():
        wanted = numbers(loop.run_directions(rnn, call))
        for engine_name in (None, "torch"):
            layer = rnn._replace(engine=engine_name)
            got = numbers(engine_of("graph").run(layer, call))
            torch.testing.assert_close(got, wanted, **EXACT)
            assert ("Triton" in engine_of("graph").reason(layer, call)) == (not engine_name)
    assert recorded == [type(triton_step.ENGINE), type(loop.ENGINE)]


def test_inspection_knows_what_the_kernels_lack() -> None:
    options = {"activation": {"name": "relu", "max_value": 3.0}, "recurrent_activation": "softmax"}
    assert why_not_triton(half("LSTM", H, F, 1, **options)) == ""
    options["recurrent_activation"] = "sparsemax"
    found = why_not_triton(half("LSTM", H, F, 1, **options))
    assert found == "the Triton kernels lack an activation of this layer"


# Of the kernels that multiply, those of a GRU that resets before are made of all kernels of a step.
COMPILED = {
    card: [] if LACKING else [f"persistent:{once}:256", f"fused:{each}:512"]
    for card, once, each in zip(
        TARGETS, *map(cycle, (("LSTM", "GRU before"), ("GRU before", "LSTM"))), strict=False
    )
}
if not LACKING:
    COMPILED["sm_90"].append("persistent:GRU before:1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Compile the jobs of all cards in one process; return the rows of each."""
    folder = str(tmp_path_factory.mktemp("triton"))
    cards = [card for card in COMPILED if card not in LEFT_OUT]
    jobs = [f"{card}:{job}" for card in cards for job in ("steps", *COMPILED[card])]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": folder}
    command = [sys.executable, triton_compile_child.__file__, *jobs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = defaultdict(list)
    for row in map(json.loads, done.stdout.splitlines()):
        found[row["job"]].append(row)
    assert [*found] == jobs
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("card", COMPILED)
def test_the_kernels_compile_for_a_card_that_is_not_here(
    card: str, compiled: dict[str, list[Any]]
) -> None:
    """The interpreter accepts more than the compiler does, and knows no registers."""
    if card in LEFT_OUT:
        pytest.skip("this Triton alone cannot compile for the card")
    rows = compiled[f"{card}:steps"]
    assert len(rows) == 10
    assert {row["dtype"] for row in rows} == {*TARGETS[card][1]}
    assert max(row["registers"] for row in rows) <= 96
    assert {row["spilled"] for row in rows} == {0}
    assert max(row["shared"] for row in rows) <= 2048
    for job in COMPILED[card]:
        rows = compiled[f"{card}:{job}"]
        name, spilled = ("run", 128) if job.startswith("persistent") else ("fused", 0)
        assert {row["kernel"] for row in rows} == {f"{name}_forward", f"{name}_backward"}
        assert max(row["registers"] for row in rows) <= 128  # of 65536 for 512 threads
        assert max(row["spilled"] for row in rows) <= spilled
        assert max(row["shared"] for row in rows) <= 20 * 1024
        assert not any(row["cached"] for row in rows)  # a load past what was stored
