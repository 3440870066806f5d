"""Reduced precision on the native kernel: the numbers of its formats, and what is refused."""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kernel_layers import CELLS, PRECISIONS, both, gru, half, native, reduced
from sampling import in_turn
from specs import FIXTURES
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.limits import MAX_INT8_ROW
from keras2torch_birnn.rnn.engines import reduced as reduced_engine
from keras2torch_birnn.rnn.layer import Cell, RnnCall, RnnLayer
from keras2torch_birnn.rnn.native import codes, library, op, processors
from keras2torch_birnn.rnn.native.codes import REDUCED, ReducedPrecision
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array

pytestmark = pytest.mark.usefixtures("native_where_it_pays")

# Every kernel of this processor, not only the ones that it takes.
KERNELS = [
    (precision, name, bit)
    for precision in PRECISIONS[1:]
    for name, bit in library.find_sets(precision).items()
]
every_kernel = pytest.mark.parametrize(
    ("precision", "bit"),
    [(precision, bit) for precision, _, bit in KERNELS],
    ids=[f"{precision} {name}" for precision, name, _ in KERNELS],
)
every_precision = pytest.mark.parametrize("precision", PRECISIONS[1:])
# units, features, batch, time. Of 1553 features a panel is longer than one of its parts. Tiles have
# 16 rows; a task has 64 at most, or 32.
SIZES = (
    *((37, 23, 13, 5), (11, 1553, 17, 2), (11, 1553, 13, 2), (3, 1, 1, 7), (7, 41, 67, 2)),
    *((163, 13, 1, 3), (83, 13, 1, 37), (5, 7, 2, 19), (71, 29, 5, 11), (19, 5, 43, 3)),
)


@pytest.fixture
def export_apart() -> None:
    """Skip where torch says of what it compiles whole that it is exported: that is float32."""

    def tell(x: Tensor) -> tuple[Tensor, Any]:
        return x + 1, is_exporting_by_torch()

    compiled: Any = torch.compile(tell, backend="eager", fullgraph=True)
    if compiled(torch.ones(1))[1]:
        pytest.skip("this torch compiles as it exports")


# ---- a plain loop of the same formats ------------------------------------------------------------

LIMITS = {"bfloat16": 2.0**-8, "int8": 1 / 127}  # of a number of the largest of its row


def to_bfloat16(values: Array) -> Array:
    """Round to 8 bits of significand, ties to even."""
    bits = np.ascontiguousarray(values, "f4").view("u4").astype("u8")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype("u4").view("f4").astype("f8")


def to_int8(values: Array) -> Array:
    """Round to integers times a scale for each row, ties to even."""
    scale = np.abs(values).max(axis=1, keepdims=True).astype("f4") / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(values.astype("f4") * inverse).astype("f8") * scale


ROUND = {"float32": lambda values: values, "bfloat16": to_bfloat16, "int8": to_int8}
# Of those that a product of fewer bits may follow.
FUNCTIONS = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hard_sigmoid_0.2": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "relu": lambda x: np.maximum(x, 0),
}


def run_direction(
    precision: str, cell: str, weights: Any, x: Array, lengths: Array, start: Any, names: Any
) -> tuple[Array, list[Array]]:
    """Compute a forward direction in float64, all but the products, whose factors are rounded."""
    w_x, w_h, b_x, b_h = (w.astype("f8") for w in weights)
    act, gate = (FUNCTIONS[name] for name in names)
    gates, rounded = codes.GATES[codes.KINDS[cell]], ROUND[precision]
    wanted, states = np.zeros((*x.shape[:2], w_h.shape[1])), [s.astype("f8") for s in start]

    def product(values: Array, matrix: Array) -> Array:
        return rounded(values) @ rounded(matrix).T

    for step in range(x.shape[1]):
        rows = lengths > step
        given = np.split(product(x[rows, step], w_x) + b_x, gates, axis=1)
        h = states[0][rows]
        read = np.split(product(h, w_h) + b_h, gates, axis=1)
        if cell == "LSTM":
            i, f, o = (gate(given[n] + read[n]) for n in (0, 1, 3))
            states[1][rows] = c = f * states[1][rows] + i * act(given[2] + read[2])
            new = o * act(c)
        elif cell == "SimpleRNN":
            new = act(given[0] + read[0])
        else:
            reset, z = (gate(given[n] + read[n]) for n in (0, 1))
            if cell == "GRU before":
                last = slice(2 * h.shape[1], None)
                n = act(given[2] + product(reset * h, w_h[last]) + b_h[last])
            else:
                n = act(given[2] + reset * read[2])
            new = (1 - z) * n + z * h
        states[0][rows] = wanted[rows, step] = new
    return wanted, states


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype("f4")


def random_weights(rng: np.random.Generator, cell: str, units: int, features: int) -> list[Array]:
    """Random weights and biases, of different sizes in every channel."""
    width = codes.GATES[codes.KINDS[cell]] * units
    spread = np.exp(0.5 * rng.normal(size=(width, 1))).astype("f4")
    return [
        numbers(rng, width, features) * spread * np.float32(0.5 * features**-0.5),
        numbers(rng, width, units) * spread * np.float32(0.5 * units**-0.5),
        numbers(rng, width),
        numbers(rng, width),
    ]


def run_kernel(
    bit: int, cell: str, weights: Any, x: Array, lengths: Array, start: Any, names: Any
) -> tuple[Array, list[Array]]:
    act, gate = (codes.ACTIVATIONS[name] for name in names)
    states = (tuple(map(torch.from_numpy, start)),)
    call = RnnCall(torch.from_numpy(x), torch.from_numpy(lengths), states, "concat")
    made = replace(Cell.of(cell, "tanh", "sigmoid"), codes=(codes.KINDS[cell], act, gate))
    layer = RnnLayer(made, [torch.from_numpy(w) for w in weights])
    (out,), ends = op.run_native(layer, call, bit)
    return out.numpy(), [s.numpy() for end in ends for s in end]


def root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype("f8")))))


@native
@pytest.mark.parametrize(("kernel", "cell"), in_turn(KERNELS, CELLS), ids=str)
def test_every_kernel_computes_as_a_plain_loop_of_its_format(
    kernel: tuple[str, str, int], cell: str
) -> None:
    precision, _, bit = kernel
    rng = np.random.default_rng(7)
    for units, features, batch, time in SIZES:
        weights = random_weights(rng, cell, units, features)
        x = numbers(rng, batch, time, features)
        lengths = rng.integers(0, time + 1, batch)
        lengths[0] = time
        start = [numbers(rng, batch, units) for _ in range(2 if cell == "LSTM" else 1)]
        given = (cell, weights, x, lengths, start, ("tanh", "sigmoid"))
        out, states = run_kernel(bit, *given)
        wanted, ends = run_direction(precision, *given)
        exact, _ = run_direction("float32", *given)
        # Nonlinearities have 14 bits. Where these make a state round the other way, it is more: in
        # the first step what the last product of a GRU before reads.
        flips = LIMITS[precision] / 4 if cell == "GRU before" else 0
        assert np.abs(out[:, 0] - wanted[:, 0]).max() < 4 * 2.0**-14 + flips
        for got, loop in zip([out, *states], [wanted, *ends], strict=True):
            assert root_mean_square(got - loop) < LIMITS[precision] / 8 * root_mean_square(loop)
        error = root_mean_square(out - exact) / root_mean_square(exact)
        assert error < 2 * LIMITS[precision]


@native
@every_kernel
def test_every_activation_follows_a_product_of_fewer_bits(precision: str, bit: int) -> None:
    rng = np.random.default_rng(5)
    weights = random_weights(rng, "LSTM", 5, 7)
    x, lengths = numbers(rng, 11, 1, 7), np.full(11, 1)
    start = [numbers(rng, 11, 5) for _ in range(2)]
    for name in FUNCTIONS:
        for names in ((name, "hard_sigmoid_0.2"), ("tanh", name)):
            given = ("LSTM", weights, x, lengths, start, names)
            wanted, _ = run_direction(precision, *given)
            np.testing.assert_allclose(run_kernel(bit, *given)[0], wanted, rtol=5e-4, atol=5e-4)


@native
@every_kernel
def test_a_number_that_is_not_finite_stays_in_its_row(precision: str, bit: int) -> None:
    rng = np.random.default_rng(3)
    weights = random_weights(rng, "GRU", 5, 19)
    x, lengths = numbers(rng, 4, 1, 19), np.full(4, 1)
    x[1, 0, 17], x[2, 0, 3] = np.nan, np.inf
    out, _ = run_kernel(
        bit, "GRU", weights, x, lengths, [numbers(rng, 4, 5)], ("linear", "sigmoid")
    )
    assert np.isfinite(out[[0, 3]]).all()
    assert not np.isfinite(out[[1, 2]]).any()


@native
@every_kernel
def test_zeros_and_denormal_numbers_give_the_biases(precision: str, bit: int) -> None:
    rng = np.random.default_rng(4)
    weights = random_weights(rng, "SimpleRNN", 3, 5)
    weights[1][:] = 1e-42
    x = np.zeros((2, 1, 5), "f4")
    x[1] = 1e-41
    for state in (0.0, 1.0):
        start = [np.full((2, 3), state, "f4")]
        given = ("SimpleRNN", weights, x, np.full(2, 1), start, ("linear", "linear"))
        out, _ = run_kernel(bit, *given)
        np.testing.assert_array_equal(out[:, 0], np.stack([weights[2] + weights[3]] * 2))


@native
@every_kernel
def test_ties_are_rounded_to_even(precision: str, bit: int) -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -2.5, -3.5], "f4")
    if precision == "bfloat16":
        halves += 256 * np.sign(halves)  # of which it keeps multiples of 2
        halves = np.trunc(halves)
    x = np.array([[[127.0, *halves]]], "f4")  # in int8 a scale of 1
    weights = [np.eye(7, dtype="f4")[1:], *(np.zeros(s, "f4") for s in ((6, 6), 6, 6))]
    start = [np.zeros((1, 6), "f4")]
    out, _ = run_kernel(bit, "SimpleRNN", weights, x, np.full(1, 1), start, ("linear", "linear"))
    wanted = ROUND[precision](x[0])[0, 1:]
    assert (wanted != halves).any()
    np.testing.assert_allclose(out[0, 0], wanted, rtol=1e-6)


def test_the_loop_rounds_as_torch_does() -> None:
    values = numbers(np.random.default_rng(1), 1000) * np.float32(1e3)
    np.testing.assert_array_equal(to_bfloat16(values), torch.from_numpy(values).bfloat16().double())


# ---- modules -------------------------------------------------------------------------------------


def relative_errors(module: Any, x: Tensor) -> dict[str, float]:
    """The error of each precision against float64, of the output's root mean square."""
    with torch.inference_mode():
        exact = deepcopy(module).double()(x.double())
        found = {}
        for precision in PRECISIONS:
            k2t.set_precision(module, cast(Any, precision))
            found[precision] = root_mean_square((module(x) - exact).numpy())
    k2t.set_precision(module, "float32")
    return {name: error / root_mean_square(exact.numpy()) for name, error in found.items()}


@reduced
@pytest.mark.parametrize("cell", CELLS)
def test_errors_are_the_ones_that_the_documentation_states(cell: str) -> None:
    found = relative_errors(
        bidirectional(both(cell, 64, 64, "concat")).eval(), torch.randn(5, 30, 64)
    )
    limits = {"float32": (0, 1e-6), "bfloat16": (5e-4, 0.004), "int8": (1e-3, 0.014)}
    for precision, error in found.items():
        least, most = limits[precision]
        assert least < error < most, precision


@reduced
@every_precision
def test_merges_masks_and_threads_change_nothing(precision: ReducedPrecision) -> None:
    spec = both("LSTM", 131, 67, None)
    apart: Any = bidirectional(spec)
    x = torch.randn(17, 19, 67)
    mask = torch.arange(19) < torch.randint(0, 20, (17, 1))
    k2t.set_precision(apart, precision)
    with torch.inference_mode():
        forward, backward = apart(x, mask)
        torch.set_num_threads(2)
        for name, mode in MERGE_MODES.items():
            merged = mode.on_tensors(forward, backward)
            spec.config["merge_mode"] = name
            module: Any = bidirectional(spec)
            k2t.set_precision(module, precision)
            assert torch.equal(module(x, mask), merged)


@reduced
@every_precision
def test_changed_weights_are_packed_again(precision: ReducedPrecision) -> None:
    module, x = gru()
    k2t.set_precision(module, precision)
    with torch.inference_mode():
        first = module(x)
        module.weight_hh_l0.data[2, 3] += 5.0
        second = module(x)
    changed = deepcopy(module)
    with torch.inference_mode():
        assert not torch.equal(first, second)
        assert torch.equal(changed(x), second)


@reduced
def test_float32_goes_back_and_parameters_never_change() -> None:
    module, x = gru()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.inference_mode():
        wanted = module(x)
        k2t.set_precision(module, "int8")
        assert "precision='int8'" in repr(module)
        assert not torch.equal(module(x), wanted)
        assert module.state_dict().keys() == before.keys()
        assert all(torch.equal(before[name], p) for name, p in module.state_dict().items())
        k2t.set_precision(module, "float32")
        assert "precision" not in repr(module)
        assert torch.equal(module(x), wanted)


@reduced
@every_precision
def test_a_stack_runs_every_layer(precision: ReducedPrecision) -> None:
    stack: Any = k2t.BiGRU(7, 11, 2, merge_mode=["mul", "concat"], batch_first=True)
    single = [k2t.BiGRU(7, 11, merge_mode="mul"), k2t.BiGRU(11, 11)]
    x = torch.randn(3, 5, 7)
    for number, layer in enumerate(single):
        layer.batch_first = True
        for name, value in layer.named_parameters():
            value.data = stack.get_parameter(name.replace("_l0", f"_l{number}")).data
    for module in (stack, *single):
        k2t.set_precision(module, precision)
    with torch.inference_mode():
        assert torch.equal(stack(x)[0], single[1](single[0](x)[0])[0])
        reasons = {choice.reason for choice in k2t.explain(stack)[""]}
    assert reasons == {reason_of(precision)}
    assert f"precision='{precision}'" in repr(stack)


def reason_of(precision: ReducedPrecision) -> str:
    return f"{precision} by {next(iter(library.find_sets(precision)))}"


@pytest.fixture
def older_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2 alone."""
    of_float32 = {"AVX2": 2, "plain": 1}
    monkeypatch.setattr(library, "find_sets", lambda one: of_float32 if one == "float32" else {})


@native
@pytest.mark.usefixtures("older_processor")
@pytest.mark.parametrize(
    ("precision", "lacks"),
    [("bfloat16", "AMX, AVX512-BF16"), ("int8", "AMX, AVX512-VNNI, AVX-VNNI")],
)
def test_a_processor_without_the_instructions_is_told_which(
    precision: Any, lacks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = gru()
    with pytest.raises(UsageError) as refused:
        k2t.set_precision(module, precision)
    assert str(refused.value) == (
        f"precision {precision}: this processor has no {lacks}; "
        'use k2t.set_precision(model, "float32")'
    )
    assert module.precision is None
    k2t.set_precision(module, "float32")


def test_the_best_instructions_are_taken_by_the_table() -> None:
    assert list(REDUCED["bfloat16"]) == ["AMX", "AVX512-BF16"]
    assert list(REDUCED["int8"]) == ["AMX", "AVX512-VNNI", "AVX-VNNI"]


@reduced
@every_precision
def test_packed_weights_take_less_memory(precision: ReducedPrecision) -> None:
    shape = library.Shape(codes.KINDS["LSTM"], 128, 128)
    sizes = [
        library.library().k2t_packed_size(bit, shape)
        for bit in (library.instruction_set(), op.reduced_instruction_set(precision))
    ]
    assert sizes[1] / sizes[0] < {"bfloat16": 0.51, "int8": 0.275}[precision]


@pytest.mark.usefixtures("export_apart")
@reduced
@every_precision
def test_a_compiled_module_computes_the_same(precision: ReducedPrecision) -> None:
    module, x = k2t.BiGRU(5, 7).requires_grad_(False), torch.randn(3, 11, 5)
    k2t.set_precision(module, precision)
    wanted, _ = module(x)
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[0], wanted)


@pytest.mark.thorough
@pytest.mark.usefixtures("export_apart")
@reduced
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles with a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_torchs_compiler_makes_a_program_with_the_operator() -> None:
    module: Any = k2t.BiGRU(7, 11, merge_mode="mul", batch_first=True).eval()
    x = torch.randn(3, 5, 7)
    for precision in ("float32", "int8"):
        k2t.set_precision(module, precision)
        torch.compiler.reset()
        compiled: Any = torch.compile(module, fullgraph=True)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(x), module(x))


@reduced
@every_precision
def test_a_frozen_model_computes_in_the_precision_of_its_model(precision: ReducedPrecision) -> None:
    model, x = k2t.BiGRU(5, 7, 2, batch_first=True).eval(), torch.randn(3, 11, 5)
    k2t.set_precision(model, precision)
    with torch.inference_mode():
        assert torch.equal(k2t.freeze(model)(x)[0], model(x)[0])


@reduced
def test_an_input_of_no_steps_gives_no_outputs() -> None:
    module, x = gru(return_state=True)
    k2t.set_precision(module, "int8")
    with torch.inference_mode():
        out, *states = module(x[:, :0])
    assert out.shape == (3, 0, 24)
    assert all(not state.any() for state in states)


# ---- refusals ------------------------------------------------------------------------------------


@reduced
def test_training_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "bfloat16")
    with pytest.raises(UsageError, match=r"precision bfloat16: there is no gradient; .*inference"):
        module(x)
    with pytest.raises(UsageError, match="there is no gradient"):
        k2t.explain(module)
    module.requires_grad_(False)(x)


@reduced
def test_dropout_is_refused() -> None:
    module, x = gru(dropout=0.5)
    k2t.set_precision(module, "int8")
    with torch.no_grad(), pytest.raises(UsageError, match=r"no dropout; use model\.eval\(\)"):
        module.train()(x)
    with torch.no_grad():
        module.eval()(x)


@reduced
def test_another_dtype_is_refused_before_and_in_a_call() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    with torch.no_grad(), pytest.raises(UsageError, match=r"found torch\.float64 on cpu"):
        module.double()(x.double())
    k2t.set_precision(module, "float32")
    found = r"precision int8: float32 weights on the CPU are needed, found torch\.float64 on cpu"
    with pytest.raises(UsageError, match=found):
        k2t.set_precision(module, "int8")
    with pytest.raises(UsageError, match=r"found torch\.float32 on meta"):
        k2t.set_precision(module.float().to("meta"), "bfloat16")


@reduced
def test_tensors_that_are_not_plain_are_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    with torch.no_grad(), pytest.raises(UsageError, match="plain float32 tensors on the CPU"):
        torch.func.vmap(module)(x[:, None])


@reduced
def test_another_engine_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    k2t.set_engine(module, "loop")
    with torch.no_grad(), pytest.raises(UsageError, match="engine loop computes float32; use"):
        module(x)
    k2t.set_engine(module, "native")
    with torch.no_grad():
        module(x)


@reduced
def test_an_export_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    module.requires_grad_(False)
    with pytest.raises(Exception, match="exported computes float32"):
        torch.export.export(module, (x,))


@reduced
@pytest.mark.parametrize("suffix", ["onnx", "py", "pt2"])
def test_a_model_in_reduced_precision_is_not_exported(tmp_path: Path, suffix: str) -> None:
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5")
    k2t.set_precision(model.bidirectional_1, "int8")
    found = "an export computes float32, and the precision of bidirectional_1 is int8; use k2t"
    with pytest.raises(UsageError, match=found):
        k2t.export(model, tmp_path / f"model.{suffix}")
    assert list(tmp_path.iterdir()) == []


@reduced
def test_precision_is_no_part_of_a_file(tmp_path: Path) -> None:
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5")
    k2t.set_precision(model, "int8")
    k2t.save(model, tmp_path / "int8.pt")
    loaded: Any = k2t.load(tmp_path / "int8.pt")
    assert model.bidirectional_1.precision == "int8"
    assert loaded.bidirectional_1.precision is None


@reduced
def test_cells_without_kernel_are_named_and_nothing_changes() -> None:
    spec = half("LSTM", 3, 5, 1, activation="exponential")
    model = nn.ModuleDict({"odd": recurrent(spec), "even": gru()[0]})
    with pytest.raises(UsageError, match="precision int8: odd: the native kernel lacks an activ"):
        k2t.set_precision(model, "int8")
    assert cast(Any, model["even"]).precision is None


def test_a_machine_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = gru()
    monkeypatch.setattr(reduced_engine, "_why_missing", lambda: "no compiler")
    with pytest.raises(UsageError, match="there is no native kernel: no compiler; install it, or"):
        k2t.set_precision(module, "int8")


@reduced
def test_rows_that_exceed_32_bits_are_refused() -> None:
    with torch.device("meta"):
        wide = k2t.BiRNN(MAX_INT8_ROW + 1, 1)
    k2t.set_precision(wide, "float32")
    layer = wide.rnn_layers()[0]
    weight = torch.empty(1, 1).expand(1, MAX_INT8_ROW + 1)
    layer = layer._replace(parameters=[weight, torch.empty(1, 1), None, None])
    refusal = reduced_engine.why_not_layer(layer, "int8")
    assert refusal == ("sums of 131073 products exceed 32 bits", "use bfloat16")
    assert reduced_engine.why_not_layer(layer, "bfloat16") is None


def test_an_unknown_precision_is_refused() -> None:
    module, _ = gru()
    with pytest.raises(ValueError, match="precision=int4: one of float32, bfloat16, int8 is"):
        k2t.set_precision(module, cast(Any, "int4"))


@reduced
def test_a_model_without_recurrent_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="the model has no LSTM, GRU or SimpleRNN"):
        k2t.set_precision(nn.LSTM(2, 3), "int8")
    k2t.set_precision(nn.LSTM(2, 3), "float32")


NATIVE = Path(library.__file__).parent


@pytest.mark.parametrize("one", processors.INSTRUCTION_SETS, ids=lambda one: one.file)
def test_flags_are_for_x86_and_optional_ones_leave_an_empty_table(
    one: processors.InstructionSet,
) -> None:
    for file in one.files():
        always = processors.REDUCED_FLAGS if file.startswith("reduced_") else []
        for machine, system in (("x86_64", "Linux"), ("AMD64", "FreeBSD")):
            found = processors.flags_of(file, machine=machine, system=system)
            assert found == ([*always, *one.flags], [*one.optional])
        assert processors.flags_of(file, machine="aarch64", system="Linux") == (always, [])
        # One compilation for both processors: the order of bits holds for both, the rest for one.
        for machine in ("arm64", "x86_64"):
            own, optional = processors.flags_of(file, machine=machine, system="Darwin")
            own = own[len(always) :]
            assert own[::2] == ["-Xarch_x86_64"] * len(one.flags)
            assert own[1::2] == [*one.flags]
            assert optional[::2] == ["-Xarch_x86_64"] * len(one.optional)
            assert optional[1::2] == [*one.optional]
        assert ("{};" in (NATIVE / file).read_text()) == bool(one.optional)


def test_the_header_of_the_kernel_is_the_table() -> None:
    assert (NATIVE / "processors.h").read_text() == processors.make_header()


def test_every_source_of_a_kernel_is_in_the_table() -> None:
    sources = {file.name for end in ("isa", "reduced") for file in NATIVE.glob(f"{end}_*.cpp")}
    assert sources == {file for one in processors.INSTRUCTION_SETS for file in one.files()}


def test_every_kernel_has_a_bit_of_its_own() -> None:
    numbers = [n for one in processors.INSTRUCTION_SETS for n in one.kernels.values()]
    assert sorted(numbers) == list(range(len(numbers)))
