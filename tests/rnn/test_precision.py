"""Reduced precision on the native kernel: the bits of its definition, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kernel_layers import CELLS, both, gru, half, native
from reduced_emulation import product_of, ratio_of, run_direction, to_bfloat16
from sampling import in_turn
from specs import FIXTURES
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.limits import MAX_INT8_ROW
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn.call import RnnCall
from keras2torch_birnn.rnn.engines import reduced
from keras2torch_birnn.rnn.native import codes, library, measuring, op, processors
from keras2torch_birnn.rnn.native import precision as precision_of
from keras2torch_birnn.rnn.native.codes import REDUCED, ReducedPrecision
from keras2torch_birnn.rnn.native.measuring import Size
from keras2torch_birnn.rnn.native.precision import ReducedKernel, choose, reduced_kernel
from keras2torch_birnn.rnn.tensor_memory import is_exporting_by_torch
from keras2torch_birnn.spec import Array

pytestmark = pytest.mark.usefixtures("native_where_it_pays")

KERNELS = [
    (precision, name, bit)
    for precision, kernels in REDUCED.items()
    for name, bit in kernels.items()
]
ORDER = {bit: product_of(precision, name) for precision, name, bit in KERNELS}
every_kernel = pytest.mark.parametrize(
    ("precision", "bit"),
    [(precision, bit) for precision, _, bit in KERNELS],
    ids=[f"{precision} {name}" for precision, name, _ in KERNELS],
)
every_precision = pytest.mark.parametrize("precision", list(REDUCED))
# units, features, batch, time; with 1553 features a panel is longer than one of its parts, on all
# kernels. Weights are widened ahead (reduced.h) where batch * time is 32 or more, the recurrent
# ones from 3 rows on.
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


def skip_without(bit: int) -> None:
    if not library.library().k2t_instruction_sets() & bit:
        pytest.skip("this processor does not have these instructions")


def numbers(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype("f4")


def random_parameters(
    rng: np.random.Generator, cell: str, units: int, features: int
) -> list[list[Array]]:
    """Random weights of both directions, biases too, of different sizes in every channel."""
    width = codes.GATES[codes.KINDS[cell]] * units
    spread = np.exp(rng.normal(size=(width, 1))).astype("f4")
    return [
        [
            numbers(rng, width, features) * spread * np.float32(0.3),
            numbers(rng, width, units) * spread * np.float32(0.3),
            numbers(rng, width),
            numbers(rng, width),
        ]
        for _ in range(2)
    ]


def emulate(
    bit: int, cell: str, weights: Any, x: Array, lengths: Array, start: Any, names: Any
) -> tuple[Array, list[Array]]:
    """Return both directions side by side, and all final states."""
    act, gate = map(ratio_of, names)
    product = ORDER[bit]
    with np.errstate(all="ignore"):  # both branches of a choice are computed
        given = [
            run_direction(cell, product, act, gate, w, x, lengths, s, backward=d == 1)
            for d, (w, s) in enumerate(zip(weights, start, strict=True))
        ]
    return np.concatenate([out for out, _ in given], axis=2), [s for _, end in given for s in end]


def run_kernel(
    bit: int, cell: str, weights: Any, x: Array, lengths: Array, start: Any, names: Any
) -> tuple[Array, list[Array]]:
    act, gate = (codes.ACTIVATIONS[name] for name in names)
    options = {"leaky_relu": 0.2, "elu": 1.0}
    native_cell = library.NativeCell(
        codes.KINDS[cell], act, gate, (options.get(names[0], 0.0), options.get(names[1], 0.0))
    )
    states = tuple(tuple(map(torch.from_numpy, s)) for s in start)
    call = RnnCall(torch.from_numpy(x), torch.from_numpy(lengths), states, "concat")
    parameters = [torch.from_numpy(w) for one in weights for w in one]
    (out,), ends = op.run_native(native_cell, parameters, call, bit)
    return out.numpy(), [s.numpy() for end in ends for s in end]


def assert_same_bits(found: Sequence[Array], wanted: Sequence[Array]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@native
@pytest.mark.parametrize(("kernel", "cell"), in_turn(KERNELS, CELLS), ids=str)
def test_every_kernel_gives_the_bits_of_the_emulation(
    kernel: tuple[str, str, int], cell: str
) -> None:
    *_, bit = kernel
    skip_without(bit)
    rng = np.random.default_rng(7)
    for units, features, batch, time in SIZES:
        weights = random_parameters(rng, cell, units, features)
        x = numbers(rng, batch, time, features)
        lengths = rng.integers(0, time + 1, batch)
        lengths[0] = time
        count = 2 if cell == "LSTM" else 1
        start = [[numbers(rng, batch, units) for _ in range(count)] for _ in range(2)]
        names = ("tanh", "linear" if cell == "SimpleRNN" else "sigmoid")
        given = (cell, weights, x, lengths, start, names)
        out, states = run_kernel(bit, *given)
        wanted, ends = emulate(bit, *given)
        assert np.isfinite(wanted).all()
        assert_same_bits([out, *states], [wanted, *ends])


@native
@every_kernel
def test_every_activation_gives_the_bits_of_the_emulation(precision: str, bit: int) -> None:
    skip_without(bit)
    rng = np.random.default_rng(5)
    weights = random_parameters(rng, "LSTM", 5, 7)
    x, lengths = numbers(rng, 11, 3, 7) * np.float32(2), np.full(11, 3)
    start = [[numbers(rng, 11, 5) for _ in range(2)] for _ in range(2)]
    for name in codes.ACTIVATIONS:
        for names in ((name, "hard_sigmoid_0.2"), ("tanh", name)):
            given = ("LSTM", weights, x, lengths, start, names)
            out, states = run_kernel(bit, *given)
            wanted, ends = emulate(bit, *given)
            assert_same_bits([out, *states], [wanted, *ends])


@native
@every_kernel
def test_a_number_that_is_not_finite_stays_in_its_row(precision: str, bit: int) -> None:
    skip_without(bit)
    rng = np.random.default_rng(3)
    weights = random_parameters(rng, "GRU", 5, 19)
    start = [[numbers(rng, 4, 5)] for _ in range(2)]
    x, lengths = numbers(rng, 4, 1, 19), np.full(4, 1)
    x[1, 0, 17], x[2, 0, 3] = np.nan, np.inf
    out, _ = run_kernel(bit, "GRU", weights, x, lengths, start, ("linear", "sigmoid"))
    assert np.isfinite(out[[0, 3]]).all()
    assert not np.isfinite(out[[1, 2]]).any()


@native
@every_kernel
def test_zeros_and_denormal_numbers_give_the_biases(precision: str, bit: int) -> None:
    skip_without(bit)
    rng = np.random.default_rng(4)
    weights = random_parameters(rng, "SimpleRNN", 3, 5)
    weights[1][1][:] = 1e-42
    x = np.zeros((2, 1, 5), "f4")
    x[1] = 1e-41
    start = [[np.full((2, 3), s, "f4")] for s in (0.0, 1.0)]
    given = ("SimpleRNN", weights, x, np.full(2, 1), start, ("linear", "linear"))
    out, _ = run_kernel(bit, *given)
    biases = np.concatenate([w[2] + w[3] for w in weights])
    np.testing.assert_array_equal(out[:, 0], np.stack([biases, biases]))


@native
@pytest.mark.parametrize("bit", REDUCED["int8"].values(), ids=REDUCED["int8"])
def test_ties_are_rounded_to_even(bit: int) -> None:
    skip_without(bit)
    halves = np.array([0.5, 1.5, 2.5, -0.5, -2.5, -3.5], "f4")
    x = np.array([[[127.0, *halves]]], "f4")  # a scale of 1
    choose = np.eye(7, dtype="f4")[1:]
    weights = [[choose, np.zeros((6, 6), "f4"), np.zeros(6, "f4"), np.zeros(6, "f4")]]
    start = [[np.zeros((1, 6), "f4")]]
    given = ("SimpleRNN", weights, x, np.full(1, 1), start, ("linear", "linear"))
    out, _ = run_kernel(bit, *given)
    np.testing.assert_allclose(out[0, 0], [0, 2, 2, 0, -2, -4], rtol=1e-6)


def test_the_emulation_rounds_as_torch_does() -> None:
    values = numbers(np.random.default_rng(1), 1000) * np.float32(1e3)
    wanted = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(to_bfloat16(values), wanted)


# ---- modules -------------------------------------------------------------------------------------


def errors_of(module: Any, x: Tensor) -> dict[str, float]:
    """The largest error of each precision against float64."""
    with torch.inference_mode():
        exact = deepcopy(module).double()(x.double())
        found = {}
        for precision in ("float32", "bfloat16", "int8"):
            k2t.set_precision(module, cast(Any, precision))
            found[precision] = float((module(x) - exact).abs().max())
    k2t.set_precision(module, "float32")
    return found


@native
@pytest.mark.parametrize("cell", CELLS)
def test_errors_are_those_of_the_format(cell: str) -> None:
    spec = both(cell, 37, 23, "sum")
    found = errors_of(bidirectional(spec).eval(), torch.randn(5, 11, 23))
    assert found["float32"] < 2e-6
    assert 1e-4 < found["bfloat16"] < 0.03
    assert 1e-4 < found["int8"] < 0.1


@native
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


@native
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


@native
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


@native
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
    """Return what is said of the layers of the stack, whose sizes are of one class."""
    size = Size("GRU", 16, 16, 1)
    return f"{precision} by {reduced_kernel(precision).describe(precision, size)}"


@native
@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.31, "slower than float32: measured 1.31 of its time (LSTM, 8 x 128 x 128)"),
        (0.42, "measured 0.42 of float32's time (LSTM, 8 x 128 x 128)"),
    ],
)
def test_a_precision_that_is_slower_than_float32_is_told(
    ratio: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_of, "time_ratio", lambda *_: ratio)
    assert ReducedKernel("plain", 64).describe("int8") == f"plain, {words}"


# ---- what is measured ----------------------------------------------------------------------------


@native
@every_precision
def test_the_kernel_is_one_that_was_timed_and_none_that_emulates(
    precision: ReducedPrecision,
) -> None:
    seconds = measuring.time_kernels(precision, measuring.TYPICAL)
    assert reduced_kernel(precision).name in seconds
    assert all(taken > 0 for taken in seconds.values())
    assert "emulated AMX" not in seconds


@every_precision
def test_code_for_any_processor_is_timed_only_where_there_is_no_other(
    precision: ReducedPrecision, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring.usable_sets.cache_clear()
    for have, timed in ({"AVX2": 2, "plain": 1}, {"AVX2": 2}), ({"plain": 1}, {"plain": 1}):
        monkeypatch.setattr(measuring, "find_sets", lambda _, have=have: have)
        assert measuring.usable_sets(precision) == timed
        measuring.usable_sets.cache_clear()


def test_the_fastest_is_chosen_and_amx_only_where_it_is_clearly_faster() -> None:
    sets = {"AMX": 1, "AVX512-BF16": 2, "AVX-512": 4}
    for amx, bfloat16, int8 in (
        (1.0, "AMX", "AMX"),
        (2.5, "AVX-512", "AMX"),
        (7, *["AVX-512"] * 2),
    ):
        seconds = {"AMX": amx, "AVX512-BF16": 5.0, "AVX-512": 3.0}
        assert choose(sets, seconds, "bfloat16").name == bfloat16
        assert choose(sets, seconds, "int8").name == int8


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (("GRU", 1, 1, 1), ("GRU", 16, 16, 1)),
        (("GRU", 17, 64, 7), ("GRU", 32, 64, 8)),
        (("LSTM", 129, 4096, 64), ("LSTM", 128, 128, 32)),
    ],
)
def test_sizes_are_timed_by_classes(given: Any, found: Any) -> None:
    assert measuring.size_class(*given) == Size(*found)


@pytest.fixture
def as_if_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """The kernels of a processor whose AMX is computed by others; empty caches before and after."""
    bits = {one: {**sets} for one, sets in REDUCED.items()}
    cached: Any = (measuring._compute_as_emulated, measuring.usable_sets)
    for function in cached:
        function.cache_clear()
    stands_for = {
        "bfloat16": bits["bfloat16"]["emulated AMX"],
        "int8": bits["int8"]["emulated AMX"],
    }
    for one in bits:
        bits[one]["AMX"] = stands_for[one]
    monkeypatch.setattr(codes, "REDUCED", bits)
    found = {**bits, "float32": codes.INSTRUCTION_SETS}
    monkeypatch.setattr(measuring, "find_sets", lambda one: {**found[one]})
    yield bits["bfloat16"]
    for function in cached:
        function.cache_clear()


@native
def test_tiles_that_give_the_numbers_of_their_definition_are_used(
    as_if_amx: dict[str, int], recwarn: pytest.WarningsRecorder
) -> None:
    assert "AMX" in measuring.usable_sets("bfloat16")
    assert "AMX" in measuring.usable_sets("int8")
    assert not recwarn.list


@native
def test_tiles_that_give_other_numbers_are_turned_off_with_one_warning(
    as_if_amx: dict[str, int],
) -> None:
    as_if_amx["AMX"] = as_if_amx["plain"]  # of another order of sums
    with pytest.warns(
        RuntimeWarning, match="AMX is not used: its bfloat16 numbers for LSTM"
    ) as told:
        assert "AMX" not in measuring.usable_sets("bfloat16")
        assert "AMX" not in measuring.usable_sets("int8")
    assert len(told) == 1


@native
@every_precision
def test_packed_weights_take_less_memory(precision: ReducedPrecision) -> None:
    shape = library.Shape(codes.KINDS["LSTM"], 128, 128)
    sizes = [
        library.library().k2t_packed_size(bit, shape)
        for bit in (library.instruction_set(), reduced_kernel(precision).bit)
    ]
    assert sizes[1] / sizes[0] < {"bfloat16": 0.51, "int8": 0.27}[precision]


@pytest.mark.usefixtures("export_apart")
@native
@every_precision
def test_a_compiled_module_computes_the_same(precision: ReducedPrecision) -> None:
    module, x = k2t.BiGRU(5, 7).requires_grad_(False), torch.randn(3, 11, 5)
    k2t.set_precision(module, precision)
    wanted, _ = module(x)
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[0], wanted)


@pytest.mark.thorough
@pytest.mark.usefixtures("export_apart")
@native
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


@native
def test_an_input_of_no_steps_gives_no_outputs() -> None:
    module, x = gru(return_state=True)
    k2t.set_precision(module, "int8")
    with torch.inference_mode():
        out, *states = module(x[:, :0])
    assert out.shape == (3, 0, 24)
    assert all(not state.any() for state in states)


# ---- refusals ------------------------------------------------------------------------------------


@native
def test_training_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "bfloat16")
    with pytest.raises(UsageError, match=r"precision bfloat16: there is no gradient; .*inference"):
        module(x)
    with pytest.raises(UsageError, match="there is no gradient"):
        k2t.explain(module)
    module.requires_grad_(False)(x)


@native
def test_dropout_is_refused() -> None:
    module, x = gru(dropout=0.5)
    k2t.set_precision(module, "int8")
    with torch.no_grad(), pytest.raises(UsageError, match=r"no dropout; use model\.eval\(\)"):
        module.train()(x)
    with torch.no_grad():
        module.eval()(x)


@native
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


@native
def test_tensors_that_are_not_plain_are_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    with torch.no_grad(), pytest.raises(UsageError, match="plain float32 tensors on the CPU"):
        torch.func.vmap(module)(x[:, None])


@native
def test_another_engine_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    k2t.set_engine(module, "loop")
    with torch.no_grad(), pytest.raises(UsageError, match="engine loop computes float32; use"):
        module(x)
    k2t.set_engine(module, "native")
    with torch.no_grad():
        module(x)


@native
def test_an_export_is_refused() -> None:
    module, x = gru()
    k2t.set_precision(module, "int8")
    module.requires_grad_(False)
    with pytest.raises(Exception, match="exported computes float32"):
        torch.export.export(module, (x,))


@native
@pytest.mark.parametrize("suffix", ["onnx", "py", "pt2"])
def test_a_model_in_reduced_precision_is_not_exported(tmp_path: Path, suffix: str) -> None:
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5")
    k2t.set_precision(model.bidirectional_1, "int8")
    found = "an export computes float32, and the precision of bidirectional_1 is int8; use k2t"
    with pytest.raises(UsageError, match=found):
        k2t.export(model, tmp_path / f"model.{suffix}")
    assert list(tmp_path.iterdir()) == []


@native
def test_precision_is_no_part_of_a_file(tmp_path: Path) -> None:
    model: Any = k2t.convert(FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5")
    k2t.set_precision(model, "int8")
    k2t.save(model, tmp_path / "int8.pt")
    loaded: Any = k2t.load(tmp_path / "int8.pt")
    assert model.bidirectional_1.precision == "int8"
    assert loaded.bidirectional_1.precision is None


@native
def test_cells_without_kernel_are_named_and_nothing_changes() -> None:
    spec = half("LSTM", 3, 5, 1, activation="exponential")
    model = nn.ModuleDict({"odd": recurrent(spec), "even": gru()[0]})
    with pytest.raises(UsageError, match="precision int8: odd: the native kernel lacks an activ"):
        k2t.set_precision(model, "int8")
    assert cast(Any, model["even"]).precision is None


def test_a_machine_without_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = gru()
    monkeypatch.setattr(reduced, "_why_missing", lambda: "no compiler")
    with pytest.raises(UsageError, match="there is no native kernel: no compiler; install it, or"):
        k2t.set_precision(module, "int8")


@native
def test_rows_that_exceed_32_bits_are_refused() -> None:
    with torch.device("meta"):
        wide = k2t.BiRNN(MAX_INT8_ROW + 1, 1)
    k2t.set_precision(wide, "float32")
    layer = wide.rnn_layers()[0]
    weight = torch.empty(1, 1).expand(1, MAX_INT8_ROW + 1)
    layer = layer._replace(parameters=[weight, torch.empty(1, 1), None, None])
    refusal = reduced.why_not_layer(layer, "int8")
    assert refusal == ("sums of 131073 products exceed 32 bits", "use bfloat16")
    assert reduced.why_not_layer(layer, "bfloat16") is None


def test_an_unknown_precision_is_refused() -> None:
    module, _ = gru()
    with pytest.raises(ValueError, match="precision=int4: one of float32, bfloat16, int8 is"):
        k2t.set_precision(module, cast(Any, "int4"))


@native
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
