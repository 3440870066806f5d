"""The native kernel and the door to it: same numbers as the reference, chosen where it may run."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keras2torch_birnn.activations import activation
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.rnn import choice, engines
from keras2torch_birnn.rnn.asked import Asked
from keras2torch_birnn.rnn.choice import choose, native_pays
from keras2torch_birnn.rnn.engines import run
from keras2torch_birnn.rnn.layers import recurrence
from keras2torch_birnn.rnn.native import gradient, library, op, packing
from keras2torch_birnn.schema import CELL_GATES, REQUIRED, SCHEMA
from keras2torch_birnn.spec import Array, Generation, LayerSpec

native = pytest.mark.skipif(bool(library.missing()), reason=f"no kernel: {library.missing()}")

CELLS = ("LSTM", "GRU", "GRU before", "SimpleRNN")
# Gates between 0 and 1: with others a random net explodes, in float64 too.
GATES = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6")
RULES = ("zeros", "previous_output", "previous_state")
GENERATION = Generation("keras3", "3.15.1", "hard_sigmoid_1/6", "sigmoid", True, "zeros")
# Of the largest output. Sums of float32 products in another order than float64's.
TOLERANCE = 2e-6


def options_of(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    defaults = SCHEMA[class_name].options.items()
    return {k: o.default for k, o in defaults if o.default is not REQUIRED} | dict(config)


def half(cell: str, units: int, features: int, seed: int, **config: Any) -> LayerSpec:
    """One direction: random weights, biases included, too small to make the net chaotic."""
    class_name, _, before = cell.partition(" ")
    rng = np.random.default_rng(seed)
    if class_name == "GRU":
        config["reset_after"] = not before
    if class_name == "SimpleRNN":
        config.pop("recurrent_activation", None)
    width = CELL_GATES[class_name] * units
    shapes: dict[str, Any] = {
        "kernel": (features, width),
        "recurrent_kernel": (units, width),
        "bias": (2, width) if config.get("reset_after") else (width,),
    }
    scales = {"kernel": features**-0.5, "recurrent_kernel": 0.5 * units**-0.5, "bias": 0.5}
    weights = {n: (rng.normal(size=s) * scales[n]).astype("f4") for n, s in shapes.items()}
    if not config.get("use_bias", True):
        del weights["bias"]
    options = options_of(
        class_name, {"masked_output": "zeros", "return_sequences": True, **config, "units": units}
    )
    return LayerSpec(class_name, f"{class_name.lower()}_{seed}", options, weights)


def both(cell: str, units: int, features: int, merge: str | None, **config: Any) -> LayerSpec:
    forward = half(cell, units, features, 1, **config)
    backward = half(cell, units, features, 2, **{**config, "go_backwards": True})
    parts = {"forward_layer": forward, "backward_layer": backward}
    return LayerSpec("Bidirectional", "bi", {"merge_mode": merge}, {}, parts)


def reference(spec: LayerSpec, x: Array, mask: Array | None, state: Any = None) -> list[Array]:
    context = Context(GENERATION, np.float64, EQUATIONS, {}, {}, None)
    output, _ = EQUATIONS[spec.class_name](spec, x, mask, context.starting(state))
    return list(output) if isinstance(output, tuple) else [output]


def tensors(output: Any) -> list[Array]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part.numpy() for part in parts]


def assert_close(got: list[Array], wanted: list[Array]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        scale = max(1.0, float(np.abs(b).max(initial=0.0)))
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * scale)


def isa_bits() -> list[int]:
    if library.missing():
        return []
    have = library.library().k2t_instruction_sets()
    return [bit for bit in library.INSTRUCTION_SETS.values() if have & bit]


@pytest.fixture(params=isa_bits())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every instruction set of this processor in turn."""
    for module in (op, gradient):
        monkeypatch.setattr(module, "instruction_set", lambda: request.param)
    return int(request.param)


@pytest.fixture(autouse=True)
def native_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2T_ENGINE", "auto")


@pytest.fixture
def forced_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2T_ENGINE", "native")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "cell": draw(st.sampled_from(CELLS)),
        "activation": draw(st.sampled_from(list(library.ACTIVATIONS))),
        "recurrent_activation": draw(st.sampled_from(GATES)),
        "merge": draw(st.sampled_from(("concat", "sum", "mul", "ave", None, "one", "back"))),
        "units": draw(st.sampled_from((1, 7, 16, 31, 100, 257))),
        "features": draw(st.sampled_from((1, 5, 40))),
        "batch": draw(st.sampled_from((1, 2, 5, 8, 33))),
        "time": draw(st.sampled_from((1, 2, 13))),
        "threads": draw(st.sampled_from((1, 2))),
        "masked": draw(st.booleans()),
        "rule": draw(st.sampled_from(RULES)),
        "state": draw(st.booleans()),
        "return_sequences": draw(st.booleans()),
        "use_bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@native
@pytest.mark.usefixtures("isa", "forced_native")
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_native_is_the_reference(case: dict[str, Any]) -> None:
    config = {
        key: case[key]
        for key in ("activation", "recurrent_activation", "return_sequences", "use_bias")
    }
    config |= {"return_state": True, "masked_output": case["rule"]}
    cell, merge, units, features = (case[k] for k in ("cell", "merge", "units", "features"))
    if merge in ("one", "back"):
        spec = half(cell, units, features, 1, go_backwards=merge == "back", **config)
        module = recurrent(spec)
    else:
        spec = both(cell, units, features, merge, **config)
        module = bidirectional(spec)
    rng = np.random.default_rng(case["seed"])
    batch, time = case["batch"], case["time"]
    x = rng.normal(size=(batch, time, features)).astype("f4")
    mask = rng.random(size=(batch, time)) < 0.6 if case["masked"] else None
    count = (2 if cell == "LSTM" else 1) * (1 if merge in ("one", "back") else 2)
    state = None
    if case["state"]:
        state = tuple(rng.normal(size=(batch, units)).astype("f4") for _ in range(count))
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        with torch.no_grad():
            got = module(
                torch.from_numpy(x),
                None if mask is None else torch.from_numpy(mask),
                None if state is None else [torch.from_numpy(s) for s in state],
            )
    finally:
        torch.set_num_threads(before)
    assert_close(tensors(got), reference(spec, x, mask, state))


def through(name: str, values: Tensor, isa: int) -> Tensor:
    """The kernel's activation of each value: a SimpleRNN of one step, whose weight is 1."""
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    code = library.ACTIVATIONS[name]
    options = {"leaky_relu": 0.2, "elu": 1.0}
    cell = library.NativeCell(library.KINDS["SimpleRNN"], code, 0, (options.get(name, 0.0), 0.0))
    (out,), _ = op.run_native(cell, [(one, zero, None, None)], Asked(values[:, None, None]))
    return out[:, 0, 0]


@native
@pytest.mark.parametrize("name", library.ACTIVATIONS)
def test_every_activation_is_torchs_to_the_last_bits(name: str, isa: int) -> None:
    values = torch.cat((torch.linspace(-100, 100, 40_001), torch.logspace(-30, 1.5, 2_001)))
    values = torch.cat((values, -values))
    exact = activation(name)(values.double())
    error = (through(name, values, isa).double() - exact).abs()
    assert float((error / exact.abs().clamp(min=1.0)).max()) < 2e-7


@native
@pytest.mark.parametrize("name", library.ACTIVATIONS)
def test_a_nan_stays_a_nan(name: str, isa: int) -> None:
    assert through(name, torch.full((3,), float("nan")), isa).isnan().all()


def gru(**config: Any) -> tuple[Any, Tensor]:
    spec = both("GRU", 24, 5, "sum", activation="tanh", recurrent_activation="sigmoid", **config)
    return bidirectional(spec), torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0))


@native
def test_changed_parameters_are_seen() -> None:
    module, x = gru()
    with torch.no_grad():
        first = module(x)
        module.weight_hh_l0.mul_(2.0)
        second = module(x)
        module.weight_ih_l0_reverse.data = module.weight_ih_l0_reverse.data * 2.0
        third = module(x)
        module.bias_ih_l0 = nn.Parameter(module.bias_ih_l0 + 1.0)
        fourth = module(x)
        fresh = deepcopy(module)(x)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert not torch.equal(third, fourth)
    assert torch.equal(fourth, fresh)


@native
def test_weights_that_two_kinds_of_cells_share_are_packed_for_each() -> None:
    after, x = gru()
    before = deepcopy(after)
    before.cell, before.native = (
        replace(after.cell, kind="GRU before"),
        library.native_numbers("GRU before", "tanh", "sigmoid"),
    )
    for name, weight in after.named_parameters():
        setattr(before, name, weight)
    with torch.no_grad():
        wanted = run(recurrence(before)._replace(engine="loop"), Asked(x, merge="sum"))[0][0]
        first = after(x)
        torch.testing.assert_close(before(x), wanted, rtol=0, atol=TOLERANCE)
        assert torch.equal(after(x), first)


@native
@pytest.mark.parametrize("how", ["in place", "through data", "a new tensor"])
def test_changed_weights_are_never_stale(how: str) -> None:
    module, x = gru()
    with torch.no_grad():
        before = module(x)
        if how == "in place":
            module.weight_hh_l0.mul_(0.5)
        elif how == "through data":
            module.weight_hh_l0.data.mul_(0.5)
        else:
            module.weight_hh_l0.data = module.weight_hh_l0.data * 0.5
        after, fresh = module(x), deepcopy(module)(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


@native
@pytest.mark.parametrize(("units", "steps"), [(7, 5), (181, 103), (419, 11)])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0_reverse", "bias_ih_l0_reverse"])
def test_one_changed_number_is_noticed_however_the_layer_is_shared_out(
    name: str, units: int, steps: int
) -> None:
    spec = both("LSTM", units, 3, "sum", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec)
    x = torch.randn(1, steps, 3)
    parameter = getattr(module, name).data.view(-1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with torch.no_grad():
                first = module(x)
                parameter[-1] += 0.5
                second, fresh = module(x), deepcopy(module)(x)
            assert not torch.equal(first, second)
            assert torch.equal(second, fresh)
    finally:
        torch.set_num_threads(before)


def print_of(isa: int, arrays: list[Array]) -> int:
    at = [library.Array(a.ctypes.data if a.size else None, a.size) for a in arrays]
    found: int = library.library().k2t_print(isa, (library.Array * 4)(*at))
    return found


@native
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_every_change_of_weights_changes_their_fingerprint(data: st.DataObject) -> None:
    isa = data.draw(st.sampled_from(isa_bits()))
    sizes = data.draw(st.lists(st.integers(0, 700), min_size=4, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = [rng.normal(size=n).astype("f4") for n in sizes]
    before = print_of(isa, arrays)
    assert print_of(isa, [a.copy() for a in arrays]) == before
    which = data.draw(st.sampled_from([i for i in range(4) if sizes[i] > 1] or [None]))
    if which is None:
        return
    changed, n = arrays[which], sizes[which]
    i = data.draw(st.integers(0, n - 1))
    how = data.draw(st.sampled_from(("one", "bit", "swap", "negate", "all", "shift", "shorter")))
    if how == "one":
        changed[i] += 1
    elif how == "bit":
        changed.view("u4")[i] ^= np.uint32(1 << data.draw(st.integers(0, 31)))
    elif how == "swap":
        j = (i + data.draw(st.integers(1, n - 1))) % n
        changed[[i, j]] = changed[[j, i]]
    elif how == "negate":  # an even number of signs
        changed[[i, (i + data.draw(st.integers(1, n - 1))) % n]] *= -1
    elif how == "all":
        changed *= -1
    elif how == "shift":
        changed[:] = np.roll(changed, 1)
    else:
        arrays[which] = changed[:-1]
    assert print_of(isa, arrays) != before


def test_what_the_kernel_answers_is_an_error_in_words() -> None:
    op.done(0)
    for code, error, words in (
        (1, MemoryError, "no memory for the native kernel's scratch"),
        (2, ValueError, "a length is below 0 or above the number of steps"),
        (3, RuntimeError, "another thread changes the weights while they are read"),
    ):
        with pytest.raises(error, match=words):
            op.done(code)


@native
def test_packed_weights_go_with_their_module() -> None:
    module, x = gru()
    with torch.no_grad():
        module(x)
    keys = {key for key in packing._kept if key[0] == id(module.weight_hh_l0)}
    assert keys
    del module
    assert not keys & packing._kept.keys()


@native
def test_inputs_of_any_stride_and_an_empty_batch() -> None:
    module, x = gru()
    wide = torch.randn(11, 3, 10)[..., ::2].transpose(0, 1)
    with torch.no_grad():
        assert torch.equal(module(wide), module(wide.contiguous()))
        assert torch.equal(module(x[:, :, :]), module(x))
        assert module(x[:0]).shape == (0, 11, 24)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), max_size=4),
    turned=st.booleans(),
    by_torch=st.booleans(),
)
def test_padded_rows_are_told_from_others(
    rows: list[list[bool]], turned: bool, by_torch: bool
) -> None:
    mask = torch.tensor(rows, dtype=torch.bool).view(-1, 5)
    if turned:  # a view whose steps do not lie side by side
        mask = mask.T.contiguous().T
    with pytest.MonkeyPatch.context() as patched:
        if by_torch:
            patched.setattr(op, "missing", lambda: "it was not built")
        found = op.lengths_of_padded(mask)
    if all(row == sorted(row, reverse=True) for row in rows):
        assert found is not None
        assert found.tolist() == [sum(row) for row in rows]
    else:
        assert found is None


@native
@pytest.mark.parametrize("length", [-1, 12])
@pytest.mark.parametrize("training", [False, True])
def test_lengths_that_do_not_fit_are_refused(length: int, training: bool) -> None:
    module, x = gru()
    lengths = torch.tensor([3, length, 11])
    with pytest.raises(ValueError, match="a length is below 0 or above the number of steps"):
        module.train(training).run_sequence(Asked(x, lengths))


@native
@pytest.mark.parametrize("training", [False, True])
def test_what_does_not_fit_the_input_is_refused_before_memory_is_read(training: bool) -> None:
    module, x = gru()
    module.train(training)
    for size in ((2, 11), (3, 10), (1, 3, 11), (3,)):
        with pytest.raises(ValueError, match=r"a mask \[3, 11\] is expected"):
            module(x, torch.ones(size, dtype=torch.bool))
    for size in ((2, 24), (3, 23), (1, 24)):
        with pytest.raises(ValueError, match=r"a state \[3, 24\] is expected"):
            module(x, None, [torch.zeros(size), torch.zeros(3, 24)])
    with pytest.raises(ValueError, match=r"lengths \[3\] are expected"):
        module.run_sequence(Asked(x, torch.tensor([11, 11])))
    with pytest.raises(ValueError, match=r"an input \(batch, time, 5\) is expected"):
        module(x[None])
    for name, size in (("weight_ih_l0_reverse", (71, 5)), ("bias_hh_l0", (3,))):
        kept = getattr(module, name)
        setattr(module, name, nn.Parameter(torch.zeros(size)))
        with pytest.raises(ValueError, match=r"a weight .* is expected"):
            module(x)
        setattr(module, name, kept)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: [p[0][:, :4], *p[1:]], "an input of 4 features is expected, found 5"),
        (lambda p: [None, *p[1:]], "weight_ih and weight_hh of two dimensions are expected"),
        (lambda p: [p[0], p[1][0], *p[2:]], "weight_ih and weight_hh of two dimensions"),
        (lambda p: [*p[:2], p[2][1:], *p[3:]], r"a weight \[72\] is expected, found \[71\]"),
    ],
)
def test_the_operator_refuses_weights_that_do_not_fit(change: Any, message: str) -> None:
    module, x = gru()
    given = change([p.detach() for w in recurrence(module).weights for p in w])
    with pytest.raises(ValueError, match=message):
        torch.ops.k2t.rnn(x, given, None, [], [1, 1, 2], [0.0, 0.0], 0)


@native
@pytest.mark.usefixtures("threads")
def test_many_python_threads_at_once_give_the_right_numbers() -> None:
    spec = both("LSTM", 40, 16, "concat", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec)
    inputs = [torch.randn(b, 9, 16) for b in range(1, 13)]

    def call(x: Tensor) -> Any:
        with torch.no_grad():
            return module(x)

    wanted = [call(x) for x in inputs]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(10):
            for got, exact in zip(threads.map(call, inputs), wanted, strict=True):
                assert torch.equal(got, exact)


@pytest.fixture(params=["torch's", "our own"])
def threads(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both kinds of threads that the kernel can run on."""
    if request.param == "our own":
        library.library().k2t_use_threads_of(None)
    elif not op.use_torch_threads():
        pytest.skip("torch has no OpenMP runtime here")
    yield request.param
    op.use_torch_threads.cache_clear()


@native
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("merge", ["concat", "sum", "mul", "ave"])
def test_directions_that_meet_merge_every_step_once(merge: str) -> None:
    spec = both("SimpleRNN", 3, 2, merge, activation="tanh")
    module: Any = bidirectional(spec)
    x = torch.randn(5, 4001, 2)
    mask = torch.arange(4001) < torch.tensor([4001, 4000, 0, 1, 2003])[:, None]
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            wanted = module(x, mask)
            torch.set_num_threads(2)
            for _ in range(50):
                assert torch.equal(module(x, mask), wanted)
    finally:
        torch.set_num_threads(before)
    assert_close(tensors(wanted), reference(spec, x.numpy(), mask.numpy()))


@native
def test_memory_does_not_grow_with_calls() -> None:
    module, x = gru()
    with torch.no_grad():
        for _ in range(300):
            module(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3000):
            module(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


@native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("threads")
def test_a_forked_child_computes_too() -> None:
    module, _ = gru()
    x = torch.randn(16, 60, 5)
    with torch.no_grad():
        torch.set_num_threads(2)
        wanted = module(x)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(2)
            os._exit(0 if torch.equal(module(x), wanted) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


@native
def test_compiled_models_hold_the_operator_and_give_the_same_numbers() -> None:
    # Not an nn.GRU: torch.compile leaves those, and what is made from them, out of its graphs.
    spec = both("GRU before", 6, 5, "sum", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec)
    x = torch.randn(3, 11, 5)
    nodes: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x), module(x))
    assert any("k2t" in node for node in nodes)


@native
@pytest.mark.parametrize("merge", library.MERGES.values(), ids=library.MERGES)
def test_the_operator_is_registered_well(merge: int) -> None:
    module, x = gru()
    parameters = [
        getattr(module, f"{name}_l0{suffix}").detach()
        for suffix in ("", "_reverse")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    torch.library.opcheck(
        op._operator,
        (x, parameters, torch.tensor([11, 4, 0]), [], [1, 1, 2], [0.0, 0.0], merge),
        test_utils=("test_schema", "test_faketensor"),
    )


# ---- the door ----------------------------------------------------------------------------------


def calls_of_native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the batches that reach the native kernel from now on."""
    seen: list[int] = []

    def counted(cell: Any, parameters: Any, asked: Asked) -> Any:
        seen.append(asked.x.shape[0])
        return op.run_native(cell, parameters, asked)

    monkeypatch.setattr(engines, "run_native", counted)
    return seen


def gradients_by_native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes of the calls of the kernel's gradient, from now on."""
    seen: list[int] = []
    original = engines.gradient

    def counted(cell: Any, parameters: Any, asked: Asked, *rest: Any, **keywords: Any) -> Any:
        seen.append(asked.x.shape[0])
        return original(cell, parameters, asked, *rest, **keywords)

    monkeypatch.setattr(engines, "gradient", counted)
    return seen


@native
def test_native_runs_float32_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    module, x = gru()
    module.double()(x.double())
    assert seen == []
    module.float()
    with torch.inference_mode():
        module(x)
    module.requires_grad_(False)(x)
    module.requires_grad_(True).eval()(x)
    assert seen == [3, 3, 3]


@native
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_through_the_kernel_are_those_of_torch(
    cell: str, masked: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First ones of x, states and weights; second ones of x."""
    seen = gradients_by_native(monkeypatch)
    spec = both(cell, 7, 5, "mul", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec).train(training)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 5, generator=rng).requires_grad_()
    states = 4 if cell == "LSTM" else 2
    start = [torch.randn(2, 7, generator=rng).requires_grad_() for _ in range(states)]
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool() if masked else None
    wanted = [x, *start, *module.requires_grad_(True).parameters()]

    def gradients() -> list[Tensor | None]:
        loss = module(x, mask=mask, initial_state=start).sin().sum()
        alone = torch.autograd.grad(loss, wanted, retain_graph=True)
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        penalty = first[0].square().sum()
        second = torch.autograd.grad(penalty, wanted, allow_unused=True)
        return [*alone, *first, *second]

    got = gradients()
    # Gradients of gradients are torch's, but what they say of the output goes back by the kernel.
    assert seen == [2, 2]
    monkeypatch.setenv("K2T_ENGINE", "loop")
    for a, b in zip(got, gradients(), strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@native
@pytest.mark.usefixtures("isa", "forced_native")
@settings(max_examples=60, deadline=None)
@given(case=cases(), training=st.booleans())
def test_gradients_are_those_of_the_loop_in_float64(case: dict[str, Any], training: bool) -> None:
    """Of random sums of all outputs and final states, for x, the states before, and all weights."""
    config = {
        key: case[key]
        for key in ("activation", "recurrent_activation", "return_sequences", "use_bias")
    }
    config |= {"return_state": True, "masked_output": case["rule"]}
    cell, merge, units, features = (case[k] for k in ("cell", "merge", "units", "features"))
    if merge in ("one", "back"):
        make, spec = (
            recurrent,
            half(cell, units, features, 1, go_backwards=merge == "back", **config),
        )
    else:
        make, spec = bidirectional, both(cell, units, features, merge, **config)
    rng = torch.Generator().manual_seed(case["seed"])
    batch, time = case["batch"], case["time"]
    x = torch.randn(batch, time, features, generator=rng)
    mask = torch.rand(batch, time, generator=rng) < 0.6 if case["masked"] else None
    count = (2 if cell == "LSTM" else 1) * (1 if merge in ("one", "back") else 2)
    start = [torch.randn(batch, units, generator=rng) for _ in range(count if case["state"] else 0)]

    def gradients(dtype: torch.dtype, engine: str, factor: float = 1.0) -> list[Tensor]:
        module: Any = make(spec).to(dtype).train(training)
        module.engine = engine
        inputs = [(t.to(dtype) * factor).requires_grad_() for t in (x, *start)]
        module.requires_grad_(True)  # torch's second bias, too
        found = module(inputs[0], mask, inputs[1:] or None)
        outputs = found if isinstance(found, tuple) else (found,)
        weigh = torch.Generator().manual_seed(1)
        loss = sum((y * torch.randn(y.shape, generator=weigh).to(dtype)).sum() for y in outputs)
        return list(
            torch.autograd.grad(loss, [*inputs, *module.parameters()], materialize_grads=True)
        )

    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        got = gradients(torch.float32, "native")
    finally:
        torch.set_num_threads(before)
    wanted = gradients(torch.float64, "loop")

    def worst(found: list[Tensor]) -> float:
        return max(
            float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max()))
            for a, b in zip(found, wanted, strict=True)
        )

    # At a bend of relu or of a hard_sigmoid rounding decides between two gradients.
    nearby = (gradients(torch.float64, "loop", 1 + step) for step in (-1e-5, 1e-5))
    assume(all(worst(found) < 1e-2 for found in nearby))
    assert worst(got) <= 1e-5


@native
def test_training_runs_by_the_kernel_and_learns_what_the_loop_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = gradients_by_native(monkeypatch)

    def trained(engine: str) -> list[Tensor]:
        module, x = gru()
        module.train().engine = engine
        optimizer = torch.optim.SGD(module.parameters(), 0.3)
        mask = torch.tensor([5, 11, 0])[:, None] > torch.arange(11)
        for _ in range(20):
            optimizer.zero_grad()
            (module(x, mask) - x.mean()).square().mean().backward()
            optimizer.step()
        return [p.detach() for p in module.parameters()]

    start = [p.detach() for p in gru()[0].parameters()]
    by_kernel, by_loop = trained("auto"), trained("loop")
    assert seen == [3] * 20
    for a, b, before in zip(by_kernel, by_loop, start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert (a - before).abs().max() > 1e-3


@native
def test_training_in_a_checkpoint_twice_and_on_nothing_gives_the_same_gradients() -> None:
    module, x = gru()
    module.train()
    weights = list(module.parameters())
    loss = module(x).sum()
    wanted = torch.autograd.grad(loss, weights, retain_graph=True)
    again = torch.autograd.grad(loss, weights)
    inside = checkpoint(module, x, use_reentrant=False).sum()
    for a, b, c in zip(wanted, again, torch.autograd.grad(inside, weights), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    nothing = torch.zeros(3, 11, dtype=torch.bool)
    for empty in (module(x[:0]), module(x, nothing)):
        assert not any(g.any() for g in torch.autograd.grad(empty.sum(), weights))


@native
def test_torchs_default_dtype_and_device_change_nothing() -> None:
    module, x = gru()
    mask = torch.arange(11) < torch.tensor([11, 4, 0])[:, None]

    def computed() -> list[Tensor]:
        loss = module.train()(x, mask).square().sum()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            return [module.eval()(x, mask), module(x), *gradients]

    wanted = computed()
    torch.set_default_dtype(torch.float64)
    try:
        packing._kept.clear()  # so that weights are packed anew
        with torch.device("meta"):
            got = computed()
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@native
def test_several_threads_train_at_once() -> None:
    module, _ = gru()
    weights = list(module.train().parameters())
    inputs = [torch.randn(b, 9, 5) for b in range(1, 9)]

    def gradients(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x).square().sum(), weights)

    wanted = [gradients(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        for got, exact in zip(threads.map(gradients, inputs), wanted, strict=True):
            for a, b in zip(got, exact, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@native
def test_what_is_frozen_gets_no_gradient_and_the_rest_its_own() -> None:
    module, x = gru()
    module.train()
    wanted = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    module.weight_hh_l0.requires_grad_(False)
    module(x).sum().backward()
    for (name, p), gradient_of in zip(module.named_parameters(), wanted, strict=True):
        if name == "weight_hh_l0":
            assert p.grad is None
        else:
            assert p.grad is not None and torch.equal(p.grad, gradient_of)


@native
def test_weights_changed_between_forward_and_backward_are_refused() -> None:
    module, x = gru()
    loss = module.train()(x).sum()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@native
def test_a_cell_without_a_gradient_of_its_own_trains_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """silu falls and rises again: its derivative cannot be told from its output."""
    seen = calls_of_native(monkeypatch)
    kept = gradients_by_native(monkeypatch)
    spec = both("LSTM", 5, 3, "sum", activation="silu", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec).train()
    module(torch.randn(2, 7, 3)).sum().backward()
    assert seen == kept == []
    assert module.weight_hh_l0.grad is not None
    slopes = {"name": "leaky_relu", "negative_slope": -0.1}
    cell = library.native_numbers("LSTM", slopes, "sigmoid")
    assert cell is not None and not cell.differentiable


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_traced_module_computes_what_it_is_given_later(cell: str, masked: bool) -> None:
    spec = both(cell, 7, 5, "mul", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec).eval()
    first, second = torch.randn(3, 6, 5), torch.randn(3, 6, 5)
    masks = [torch.arange(6) < torch.tensor(n)[:, None] for n in ([6, 2, 0], [1, 5, 6])]
    given = [(x, mask) if masked else (x,) for x, mask in zip((first, second), masks, strict=True)]
    traced = torch.jit.trace(module, given[0])
    for arguments in given:
        np.testing.assert_allclose(
            traced(*arguments).detach(), module(*arguments).detach(), rtol=0, atol=2e-6
        )


@native
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_forced_kernel_cannot_be_traced(forced_native: None) -> None:
    module, x = gru()
    with pytest.raises(UsageError, match=r"what torch\.jit traces must be torch's"):
        torch.jit.trace(module, (x,))


@native
def test_a_transform_of_functions_runs_without_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    spec = both("GRU before", 6, 5, "sum", activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec)
    x = torch.randn(3, 11, 5)
    with torch.no_grad():
        wanted = module(x)
        assert seen == [3]
        got = torch.func.vmap(module)(x[:, None])[:, 0]
    assert seen == [3]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)


def test_an_input_of_another_width_is_refused() -> None:
    module, x = gru()
    with pytest.raises(ValueError, match=r"an input \(batch, time, 5\) is expected, found"):
        module(x[..., :-1])


@native
def test_several_rows_of_a_wide_lstm_run_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_native(monkeypatch)
    monkeypatch.setattr(choice, "MANY_WEIGHTS", 4 * 64 - 1)
    for cell in ("LSTM", "GRU"):
        spec = both(cell, 8, 5, "mul", activation="tanh", recurrent_activation="sigmoid")
        module: Any = bidirectional(spec)
        with torch.no_grad():
            module(torch.randn(3, 3, 5))
            module(torch.randn(4, 3, 5))
            module(torch.randn(4, 3, 5), torch.ones(4, 3))
    assert seen == [3, 4, 3, 4, 4]
    monkeypatch.undo()
    assert native_pays("LSTM", 4, 4 * 512**2)
    assert not native_pays("LSTM", 4, 4 * 513**2)
    assert native_pays("LSTM", 3, 4 * 513**2)
    assert native_pays("GRU", 4, 4 * 513**2)


@native
@pytest.mark.usefixtures("forced_native")
def test_wide_inputs_are_taken_in_larger_blocks_of_steps() -> None:
    spec = both("LSTM", 257, 263, "sum", activation="tanh", recurrent_activation="sigmoid")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 97, 263)).astype("f4")
    mask = np.arange(97) < np.array([97, 89, 41])[:, None]
    with torch.no_grad():
        found = bidirectional(spec)(torch.from_numpy(x), torch.from_numpy(mask))
    assert_close(tensors(found), reference(spec, x, mask))


# Features, units, steps: each direction by several threads, and one direction after the other; with
# more steps than one block has, and with fewer.
SHARED_ROWS = ((29, 181, 103), (7, 419, 101), (31, 433, 7))


@native
@pytest.mark.parametrize("own_threads", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("features", "units", "steps"), SHARED_ROWS)
def test_a_single_row_is_the_same_by_any_number_of_threads(
    cell: str, features: int, units: int, steps: int, own_threads: bool
) -> None:
    activations = {"activation": "tanh", "recurrent_activation": "hard_sigmoid_0.2"}
    spec = both(cell, units, features, "mul", **activations)
    module: Any = bidirectional(spec)
    number, weights = module.native, recurrence(module).weights
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, steps, features, generator=draw)
    h, c = (torch.randn(1, units, generator=draw) for _ in range(2))
    state = (h, c)[: number.states]
    asked = [
        Asked(x, merge="mul"),
        Asked(x, torch.tensor([steps - 2]), (state, state[::-1]), "mul"),
        Asked(x, torch.tensor([steps - 3]), None, None),
        Asked(x, torch.tensor([0]), (state, state), "sum"),
    ]

    def by(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        given = [(weights, one) for one in asked]
        given.append((weights[:1], Asked(x, None, (state,))))  # one direction
        results = [op.run_native(number, w, one) for w, one in given]
        return [t for out, states in results for t in (*out, *(s for d in states for s in d))]

    before = torch.get_num_threads()
    op.use_torch_threads()
    try:
        if own_threads:
            library.library().k2t_use_threads_of(None)
        wanted = by(1)
        for threads in (2, 3, 5):
            for a, b in zip(by(threads), wanted, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)
        op.use_torch_threads.cache_clear()
        op.use_torch_threads()
    assert_close([wanted[0].numpy()], reference(spec, x.numpy(), None))


@pytest.mark.parametrize("engine", ["fused", "loop", "native"])
def test_every_forced_engine_gives_the_same_numbers(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "native" and library.missing():
        pytest.skip(library.missing())
    module, x = gru()
    with torch.no_grad():
        wanted = module(x)
        monkeypatch.setenv("K2T_ENGINE", engine)
        np.testing.assert_allclose(module(x), wanted, rtol=0, atol=2e-6)


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2T_ENGINE", "warp")
    with pytest.raises(
        UsageError, match=r"K2T_ENGINE=warp: one of auto, torch, fused, folded, loop, graph, native"
    ):
        gru()


def test_what_torch_lacks_cannot_be_forced_to_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = half("GRU before", 4, 3, 0, activation="tanh", recurrent_activation="sigmoid")
    module: Any = recurrent(spec)
    monkeypatch.setenv("K2T_ENGINE", "fused")
    with pytest.raises(UsageError, match=r"K2T_ENGINE=fused: nn.GRU resets after the product"):
        choose(spec)
    with pytest.raises(UsageError, match=r"K2T_ENGINE=fused: torch has no kernel"):
        module(torch.zeros(1, 2, 3))


@native
def test_what_the_kernel_lacks_cannot_be_forced_to_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2T_ENGINE", "native")
    spec = half("LSTM", 4, 3, 0, activation="softmax", recurrent_activation="sigmoid")
    with pytest.raises(UsageError, match="native kernel lacks an activation"):
        choose(spec)
    module, x = gru()
    with pytest.raises(UsageError, match="float32 on CPU, without dropout"):
        module.double()(x.double())


def test_without_the_library_torch_runs_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from keras2torch_birnn.rnn import choice, layers

    monkeypatch.setattr(library, "missing", lambda: "it was not built")
    monkeypatch.setattr(layers, "missing", lambda: "it was not built")
    monkeypatch.setattr(choice, "missing", lambda: "it was not built")
    library.say_once_if_missing.cache_clear()
    with pytest.warns(RuntimeWarning, match="without the native kernel") as said:
        module, x = gru()
        gru()
    assert len(said) == 1
    assert module.native is None
    assert module(x).shape == (3, 11, 24)
    assert (
        choose(half("GRU", 4, 3, 0, activation="tanh", recurrent_activation="sigmoid")).engine
        == "fused"
    )
    library.say_once_if_missing.cache_clear()


@native
def test_the_choice_says_why() -> None:
    def chosen(cell: str, **config: Any) -> tuple[str, str]:
        found = choose(half(cell, 4, 3, 0, **config))
        return found.engine, found.reason

    sigma = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    assert chosen("GRU", **sigma)[0] == "native"
    assert "rows" not in chosen("LSTM", **sigma)[1]
    small = half("LSTM", 4, 3, 0, **sigma)
    wide = choose(replace(small, config={**small.config, "units": 513}))
    assert wide.reason.endswith("also for 4 rows and more without mask")
    assert "loop" in chosen("GRU before", **sigma)[1]
    odd = {"activation": {"name": "relu", "negative_slope": 0.1, "max_value": None}}
    assert chosen("LSTM", **{**sigma, **odd})[0] == "loop"
