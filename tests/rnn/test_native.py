"""The native kernel: the same numbers as the reference, whatever it is given and whoever calls."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_fixtures import isa_bits
from kernel_layers import (
    CELLS,
    TOLERANCE,
    assert_close,
    both,
    cases,
    gru,
    half,
    layer_of,
    native,
    reference,
)
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.recurrent import bidirectional, recurrent
from keras2torch_birnn.rnn.activations import activation
from keras2torch_birnn.rnn.engines.select import run
from keras2torch_birnn.rnn.layer import Cell, RnnCall, RnnLayer
from keras2torch_birnn.rnn.native import codes, library, op, packing
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]


@pytest.mark.usefixtures("isa", "forced_native")
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_native_is_the_reference(case: dict[str, Any]) -> None:
    cell, merge, units, features = (case[k] for k in ("cell", "merge", "units", "features"))
    make, spec = layer_of(case)
    module = make(spec).eval()
    rng = np.random.default_rng(case["seed"])
    batch, time = case["batch"], case["time"]
    x = rng.normal(size=(batch, time, features)).astype("f4")
    mask = rng.random(size=(batch, time)) < 0.6 if case["masked"] else None
    count = (2 if cell == "LSTM" else 1) * (1 if merge in ("one", "back") else 2)
    state = None
    if case["state"]:
        state = tuple(rng.normal(size=(batch, units)).astype("f4") for _ in range(count))
    torch.set_num_threads(case["threads"])
    with torch.no_grad():
        got = module(
            torch.from_numpy(x),
            None if mask is None else torch.from_numpy(mask),
            None if state is None else [torch.from_numpy(s) for s in state],
        )
    assert_close(got, reference(spec, x, mask, state))


def through(name: str, values: Tensor, isa: int) -> Tensor:
    """The kernel's activation of each value: a SimpleRNN of one step, whose weight is 1."""
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    code = codes.ACTIVATIONS[name]
    option = {"leaky_relu": 0.2, "elu": 1.0}.get(name, 0.0)
    cell = Cell.of("SimpleRNN", "tanh", "linear")
    cell = replace(cell, codes=(codes.KINDS["SimpleRNN"], code, 0), options=(option, 0.0))
    layer = RnnLayer(cell, [one, zero, None, None])
    (out,), _ = op.run_native(layer, RnnCall(values[:, None, None]))
    return out[:, 0, 0]


@pytest.mark.parametrize("name", codes.ACTIVATIONS)
def test_every_activation_is_torchs_to_the_last_bits(name: str, isa: int) -> None:
    values = torch.cat((torch.linspace(-100, 100, 40_001), torch.logspace(-30, 1.5, 2_001)))
    values = torch.cat((values, -values))
    exact = activation(name)(values.double())
    error = (through(name, values, isa).double() - exact).abs()
    assert float((error / exact.abs().clamp(min=1.0)).max()) < 2e-7


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_small_values_have_as_many_digits(name: str, isa: int) -> None:
    values = torch.cat((torch.linspace(-20, 20, 40_001), torch.logspace(-30, 0, 2_001)))
    values = torch.cat((values, -values))
    values = values[values != 0]
    exact = activation(name)(values.double())
    got = through(name, values, isa)
    assert float((got.double() / exact - 1).abs().max()) < 2.2e-7
    assert float(got.abs().max()) <= 1


@pytest.mark.parametrize("name", codes.ACTIVATIONS)
def test_a_nan_stays_a_nan(name: str, isa: int) -> None:
    assert through(name, torch.full((3,), float("nan")), isa).isnan().all()


def test_a_closed_gate_is_zero(isa: int) -> None:
    """Infinity times it is NaN, and no number of float32 times it a valid one."""
    values = torch.tensor([-87.5, -103.0, -1e38, -float("inf")])
    assert not through("sigmoid", values, isa).any()
    module: Any = recurrent(half("LSTM", 3, 5, 1, activation="linear")).eval()
    x = torch.randn(7, 1, 5)
    x[2, 0, 1], x[3, 0, 4], x[5, 0, 0] = float("inf"), -float("inf"), 3e38
    with torch.no_grad():
        got = module(x)
        k2t.set_engine(module, "loop")
        wanted = module(x)
    assert wanted.isnan().any()
    torch.testing.assert_close(got, wanted, equal_nan=True)


def test_weights_that_two_kinds_of_cells_share_are_packed_for_each() -> None:
    after, x = gru()
    before = deepcopy(after)
    before.cell = Cell.of("GRU before", "tanh", "sigmoid")
    for name, weight in after.named_parameters():
        setattr(before, name, weight)
    with torch.no_grad():
        wanted = run(before.rnn_layer()._replace(engine="loop"), RnnCall(x, merge="sum"))[0][0]
        first = after(x)
        torch.testing.assert_close(before(x), wanted, rtol=0, atol=TOLERANCE)
        assert torch.equal(after(x), first)


@pytest.mark.parametrize(("units", "steps"), [(7, 5), (181, 103), (419, 11)])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0_reverse", "bias_ih_l0_reverse"])
def test_one_changed_number_is_noticed_however_the_layer_is_shared_out(
    name: str, units: int, steps: int
) -> None:
    module: Any = bidirectional(both("LSTM", units, 3, "sum"))
    x = torch.randn(1, steps, 3)
    parameter = getattr(module, name).data.view(-1)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        with torch.no_grad():
            first = module(x)
            parameter[-1] += 0.5
            second, fresh = module(x), deepcopy(module)(x)
        assert not torch.equal(first, second)
        assert torch.equal(second, fresh)


def print_of(isa: int, arrays: list[Array]) -> int:
    at = [library.Array(a.ctypes.data if a.size else None, a.size) for a in arrays]
    return library.fingerprint(isa, (library.Array * 4)(*at))


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


def keys_of(weight: Tensor) -> set[tuple[int, ...]]:
    """Return the keys of the packed weights that were made of a weight."""
    return {key for key in packing._cache if weight.data_ptr() in key}


def test_packed_weights_go_with_their_module() -> None:
    module, x = gru()
    with torch.no_grad():
        module(x)
    keys = keys_of(module.weight_hh_l0)
    assert keys
    del module
    assert not keys & packing._cache.keys()


def test_inputs_of_any_stride_and_an_empty_batch() -> None:
    module, x = gru()
    wide = torch.randn(11, 3, 10)[..., ::2].transpose(0, 1)
    with torch.no_grad():
        assert torch.equal(module(wide), module(wide.contiguous()))
        assert torch.equal(module(x[:, :, :]), module(x))
        assert module(x[:0]).shape == (0, 11, 24)


@pytest.mark.parametrize("length", [-1, 12])
@pytest.mark.parametrize("training", [False, True])
def test_lengths_that_do_not_fit_are_refused(length: int, training: bool) -> None:
    module, x = gru()
    lengths = torch.tensor([3, length, 11])
    with pytest.raises(ValueError, match="a length is below 0 or above the number of steps"):
        module.train(training).run_sequence(RnnCall(x, lengths))


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
        module.run_sequence(RnnCall(x, torch.tensor([11, 11])))
    with pytest.raises(ValueError, match=r"an input \(batch, time, 5\) is expected"):
        module(x[None])
    for name, size in (("weight_ih_l0_reverse", (71, 5)), ("bias_hh_l0", (3,))):
        kept = getattr(module, name)
        setattr(module, name, nn.Parameter(torch.zeros(size)))
        with pytest.raises(ValueError, match=r"a weight .* is expected"):
            module(x)
        setattr(module, name, kept)


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
    given = change([p.detach() for p in module.rnn_layer().parameters])
    with pytest.raises(ValueError, match=message):
        torch.ops.k2t.rnn(x, given, None, [], [1, 1, 2], [0.0, 0.0], 0)


@pytest.mark.usefixtures("threads")
def test_many_python_threads_at_once_give_the_right_numbers() -> None:
    module: Any = bidirectional(both("LSTM", 40, 16, "concat"))
    inputs = [torch.randn(b, 9, 16) for b in range(1, 13)]

    def call(x: Tensor) -> Any:
        with torch.no_grad():
            return module(x)

    wanted = [call(x) for x in inputs]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(10):
            for got, exact in zip(threads.map(call, inputs), wanted, strict=True):
                assert torch.equal(got, exact)


@pytest.mark.every(3)
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("merge", MERGE_MODES)
def test_directions_that_meet_merge_every_step_once(merge: str) -> None:
    spec = both("SimpleRNN", 3, 2, merge)
    module: Any = bidirectional(spec)
    x = torch.randn(5, 4001, 2)
    mask = torch.arange(4001) < torch.tensor([4001, 4000, 0, 1, 2003])[:, None]
    with torch.no_grad():
        wanted = module(x, mask)
        torch.set_num_threads(2)
        for _ in range(50):
            assert torch.equal(module(x, mask), wanted)
    assert_close(wanted, reference(spec, x.numpy(), mask.numpy()))


@pytest.mark.parametrize("merge", MERGE_MODES)
@pytest.mark.parametrize("step", [0, 10])
def test_a_merge_hands_on_the_nan_of_either_direction(merge: str, step: int, isa: int) -> None:
    """One direction is NaN at all steps, the other at the last that it reads."""
    spec = both("GRU", 19, 3, merge, activation="tanh", recurrent_activation="sigmoid")
    module: Any = bidirectional(spec)
    x = torch.randn(2, 11, 3)
    x[0, step, 1] = float("nan")
    with torch.no_grad():
        got = module(x)
        k2t.set_engine(module, "loop")
        wanted = module(x)
    assert wanted[0].isnan().sum() >= wanted[0].numel() / 2
    torch.testing.assert_close(got, wanted, equal_nan=True)


def test_memory_does_not_grow_with_calls() -> None:
    resource = pytest.importorskip("resource")
    module, x = gru()
    with torch.no_grad():
        for _ in range(300):
            module(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3000):
            module(x)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


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


def test_compiled_models_hold_the_operator_and_give_the_same_numbers() -> None:
    # Not an nn.GRU: torch.compile leaves those, and what is made from them, out of its graphs.
    module: Any = bidirectional(both("GRU before", 6, 5, "sum"))
    x = torch.randn(3, 11, 5)
    nodes: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        found, wanted = compiled(x), module(x)
    assert torch.equal(found, wanted)
    assert any("k2t" in node for node in nodes)


@pytest.mark.parametrize("merge", [m.native_code for m in MERGE_MODES.values()], ids=MERGE_MODES)
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


@pytest.mark.usefixtures("forced_native")
def test_wide_inputs_are_taken_in_larger_blocks_of_steps() -> None:
    spec = both("LSTM", 257, 263, "sum")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 97, 263)).astype("f4")
    mask = np.arange(97) < np.array([97, 89, 41])[:, None]
    with torch.no_grad():
        found = bidirectional(spec)(torch.from_numpy(x), torch.from_numpy(mask))
    assert_close(found, reference(spec, x, mask))


# Features, units, steps: each direction by several threads, and one direction after the other; with
# more steps than one block has, and with fewer.
SHARED_ROWS = ((29, 181, 103), (7, 419, 101), (31, 433, 7))


@pytest.mark.parametrize("own_threads", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("features", "units", "steps"), SHARED_ROWS)
def test_a_single_row_is_the_same_by_any_number_of_threads(
    cell: str, features: int, units: int, steps: int, own_threads: bool
) -> None:
    spec = both(cell, units, features, "mul", recurrent_activation="hard_sigmoid_0.2")
    module: Any = bidirectional(spec)
    layer = module.rnn_layer()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, steps, features, generator=draw)
    h, c = (torch.randn(1, units, generator=draw) for _ in range(2))
    state = (h, c)[: layer.state_count()]
    asked = [
        RnnCall(x, merge="mul"),
        RnnCall(x, torch.tensor([steps - 2]), (state, state[::-1]), "mul"),
        RnnCall(x, torch.tensor([steps - 3]), None, None),
        RnnCall(x, torch.tensor([0]), (state, state), "sum"),
    ]

    def by(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        given = [(layer, one) for one in asked]
        single = layer._replace(parameters=layer.parameters[:4])
        given.append((single, RnnCall(x, None, (state,))))
        results = [op.run_native(*each) for each in given]
        return [t for out, states in results for t in (*out, *(s for d in states for s in d))]

    op.use_torch_threads()
    try:
        if own_threads:
            library.library().k2t_use_threads_of(None)
        wanted = by(1)
        for threads in (2, 3, 5):
            for a, b in zip(by(threads), wanted, strict=True):
                assert torch.equal(a, b)
    finally:
        op.use_torch_threads.cache_clear()
        op.use_torch_threads()
    assert_close(wanted[0], reference(spec, x.numpy(), None))
