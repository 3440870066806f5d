"""The loop as a recording. There need not be a GPU: see ``fake_graphs``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
from fake_graphs import FakeGraph, fake_graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from step_layers import CELLS, numbers, stack_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.float32_precision import float32_precision
from keras2torch_birnn.functional.activations import FUNCTIONS
from keras2torch_birnn.limits import MAX_CALLS_PER_LAYER, MAX_GRAPHS_PER_LAYER
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.call import RnnCall, RnnResult
from keras2torch_birnn.rnn.engines import cuda_graph, engine, triton_step
from keras2torch_birnn.rnn.engines.loop import STEPS
from keras2torch_birnn.rnn.engines.select import engine_of
from keras2torch_birnn.rnn.gpu import graphs
from keras2torch_birnn.rnn.layer import Cell, RnnLayer, Weights

# An engine of GPUs, tried without one. On one, Triton 3.9 warns of its next version.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]

F, H, T, B = 5, 7, 11, 3


def layer_of(cell: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return stack_of(cell, F, H, **options).eval()


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeGraph]]:
    """All recordings from now on."""
    with fake_graphs(monkeypatch) as device:
        yield device.graphs


def by(engine: Any, rnn: Any, asked: RnnCall) -> list[Tensor]:
    """One layer's outputs and states, by the engine itself."""
    (layer,) = rnn.rnn_layers()
    return numbers(engine_of(engine).run(layer, asked))


def assert_same(rnn: Any, asked: RnnCall) -> None:
    with torch.no_grad():
        for got, wanted in zip(by("graph", rnn, asked), by("loop", rnn, asked), strict=True):
            assert torch.equal(got, wanted)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_is_played_is_what_the_loop_gives(data: st.DataObject) -> None:
    cell = data.draw(st.sampled_from(sorted(CELLS)))
    rnn = layer_of(cell, bias=data.draw(st.booleans()))
    masked, started = data.draw(st.booleans()), data.draw(st.booleans())
    merge = data.draw(st.sampled_from((None, *MERGE_MODES)))
    with pytest.MonkeyPatch.context() as patching, fake_graphs(patching) as device:
        for seed in range(4):
            torch.manual_seed(seed)
            start = None
            if started:
                each = 2 if cell == "LSTM" else 1
                start = tuple(tuple(torch.randn(B, H) for _ in range(each)) for _ in range(2))
            lengths = torch.randint(0, T + 1, (B,)) if masked else None
            assert_same(rnn, RnnCall(torch.randn(B, T, F), lengths, start, merge))
        assert len(device.graphs) == 1


def test_a_call_is_recorded_when_it_comes_again(recordings: list[FakeGraph]) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    counts = []
    for _ in range(4):
        assert_same(rnn, RnnCall(x))
        counts.append(len(recordings))
    assert counts == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("batch", lambda x: RnnCall(x[:2])),
        ("steps", lambda x: RnnCall(x[:, :7])),
        ("merge", lambda x: RnnCall(x, merge="mul")),
        ("lengths", lambda x: RnnCall(x, torch.tensor([T, 4, 0]))),
        ("start", lambda x: RnnCall(x, None, ((x[:, 0, :1].expand(B, H),) * 2,) * 2)),
    ],
)
def test_another_call_is_another_recording(
    name: str, other: Callable[[Tensor], RnnCall], recordings: list[FakeGraph]
) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    for _ in range(3):
        assert_same(rnn, RnnCall(x))
        assert_same(rnn, other(x))
    # Both calls, and, as two of as many steps came, one for any number of steps up to that.
    assert len(recordings) == 2 + (name == "lengths")


def test_what_was_given_out_stays_when_it_is_played_again(recordings: list[FakeGraph]) -> None:
    rnn = layer_of("GRU")
    with torch.no_grad():
        for _ in range(2):
            kept = by("graph", rnn, RnnCall(torch.randn(B, T, F)))
        copies = [k.clone() for k in kept]
        by("graph", rnn, RnnCall(torch.randn(B, T, F)))
    assert all(map(torch.equal, kept, copies))


def test_states_that_are_not_wanted_are_not_given(recordings: list[FakeGraph]) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    (layer,) = rnn.rnn_layers()
    with torch.no_grad():
        for final in (True, True, False):
            _, states = engine_of("graph").run(layer, RnnCall(x, return_state=final))
            assert len(states) == (2 if final else 0)
    assert len(recordings) == 1


@pytest.mark.parametrize("how", ["in place", "through data", "a new tensor", "a new parameter"])
def test_changed_weights_are_never_stale(how: str, recordings: list[FakeGraph]) -> None:
    rnn, x = layer_of("GRU before"), torch.randn(B, T, F)
    for _ in range(3):
        assert_same(rnn, RnnCall(x))
    with torch.no_grad():
        if how == "in place":
            rnn.weight_hh_l0.mul_(0.5)
        elif how == "through data":
            rnn.weight_hh_l0_reverse.data.mul_(0.5)
        elif how == "a new tensor":
            rnn.weight_ih_l0_reverse.data = rnn.weight_ih_l0_reverse.data * 0.5
        else:
            rnn.bias_ih_l0 = nn.Parameter(rnn.bias_ih_l0 + 1.0)
    for _ in range(3):
        assert_same(rnn, RnnCall(x))
    assert len(recordings) == (1 if how in ("in place", "through data") else 2)


def test_cells_that_share_their_weights_have_recordings_of_their_own(
    recordings: list[FakeGraph],
) -> None:
    one, x = layer_of("GRU before"), torch.randn(B, T, F)
    others = [
        layer_of("GRU before", recurrent_activation="hard_sigmoid_0.2"),
        layer_of("GRU before", bias=False),
    ]
    for other in others:
        for name, _ in tuple(other.named_parameters()):
            setattr(other, name, getattr(one, name))
    for _ in range(3):
        for rnn in (one, *others):
            assert_same(rnn, RnnCall(x))


def test_recordings_go_with_their_weights_and_with_the_place_where_these_lay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A graph knows where the weights lie, and does not keep them.
    monkeypatch.setattr(graphs, "capture", lambda compute, device: (lambda copy: copy(), compute()))
    graphs._layers.clear()
    rnn, x = layer_of("LSTM"), torch.zeros(B, T, F)
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64):
            rnn.to(dtype)
            for _ in range(3):
                by("graph", rnn, RnnCall(x.to(dtype)))
            (found,) = graphs._layers.values()
            assert len(found.graphs) == 1
    del rnn, found
    assert not graphs._layers


def test_shapes_in_turn_that_have_no_room_do_not_drive_out_each_other(
    recordings: list[FakeGraph],
) -> None:
    rnn = layer_of("SimpleRNN")
    for _ in range(3):
        for rows in range(1, MAX_GRAPHS_PER_LAYER + 4):
            assert_same(rnn, RnnCall(torch.randn(rows, T, F)))
    assert len(recordings) == MAX_GRAPHS_PER_LAYER


def test_what_comes_now_takes_the_place_of_what_came_long_ago(recordings: list[FakeGraph]) -> None:
    rnn = layer_of("SimpleRNN")
    for rows in range(1, MAX_GRAPHS_PER_LAYER + 1):
        for _ in range(2):
            assert_same(rnn, RnnCall(torch.randn(rows, T, F)))
    before = len(recordings)
    for _ in range(4):
        assert_same(rnn, RnnCall(torch.randn(30, T, F)))
    assert len(recordings) == before + 1
    (layer,) = graphs._layers.values()
    assert len(layer.graphs) == MAX_GRAPHS_PER_LAYER


def test_shapes_that_never_come_again_are_forgotten(recordings: list[FakeGraph]) -> None:
    rnn = layer_of("SimpleRNN")
    with torch.no_grad():
        for rows in range(1, MAX_CALLS_PER_LAYER + 2):
            by("graph", rnn, RnnCall(torch.randn(rows, 1, F)))
    (layer,) = graphs._layers.values()
    assert len(layer.calls) == MAX_CALLS_PER_LAYER
    assert not recordings


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("masked", [False, True])
def test_one_recording_is_for_any_number_of_steps_up_to_its_own(
    cell: str, masked: bool, recordings: list[FakeGraph]
) -> None:
    rnn = layer_of(cell)
    for steps in (13, 16, 14, 15, 13):
        lengths = torch.randint(0, steps + 1, (B,)) if masked else None
        call = RnnCall(torch.randn(B, steps, F), lengths, merge="sum")
        with torch.no_grad():
            got, wanted = by("graph", rnn, call), by("loop", rnn, call)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    # the second time 13 steps come, they have their own
    assert len(recordings) == 2


@pytest.mark.parametrize(
    ("steps", "padded"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (6, 6), (7, 8), (9, 12), (13, 16), (500, 512)],
)
def test_steps_are_padded_by_half_at_most(steps: int, padded: int) -> None:
    x, lengths = graphs.pad(RnnCall(torch.zeros(B, steps, F))).like
    assert x.shape == (B, padded, F)
    assert lengths.shape == (B,)
    assert padded <= 1.5 * steps


def test_graphs_share_the_memory_of_one_that_is_alive_and_a_stream_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch refuses the memory of graphs that are gone, and frees what ran outside of graphs."""
    streams = []

    def compute() -> list[Tensor]:
        streams.append(device.stream)
        return [torch.ones(3)]

    def capture() -> tuple[graphs.Play, object]:
        play, _ = graphs.capture(compute, torch.device("cpu"))
        return play, device.graphs.pop().memory  # from now on play alone keeps the graph

    with fake_graphs(monkeypatch) as device:
        (first, memory), (second, same) = capture(), capture()
        assert same is memory
        del first
        third, same = capture()
        assert same is memory
        del second, third
        _, other = capture()
        assert other is not memory
        outside = {device.stream, *streams[::2]}
    (of_graphs,) = {*streams[1::2]}
    assert of_graphs not in outside


def test_a_replay_waits_for_the_results_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(kind: Any, name: str) -> None:
        monkeypatch.setattr(kind, name, lambda *_: done.append(name))

    with fake_graphs(monkeypatch) as device:
        play, _ = graphs.capture(lambda: [torch.ones(3)], torch.device("cpu"))
        note(type(device.stream), "wait_event")
        note(FakeGraph, "replay")
        note(type(graphs._place(torch.device("cpu")).turn), "record")
        play(lambda: done.append("copy") or [])
    assert done == ["wait_event", "replay", "copy", "record"]


def test_another_precision_of_products_is_another_recording(
    recordings: list[FakeGraph],
) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    for _ in range(2):
        assert_same(rnn, RnnCall(x))
    with float32_precision("tf32"):
        for _ in range(2):
            assert_same(rnn, RnnCall(x))
    assert len(recordings) == 2


def test_inference_mode_and_no_grad_share_recordings(recordings: list[FakeGraph]) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    wanted = by("loop", rnn, RnnCall(x))
    for mode in (torch.inference_mode, torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            given = x.clone()
            got = by("graph", rnn, RnnCall(given))
            assert all(map(torch.equal, got, wanted))
            assert [t.is_inference() for t in got] == [mode is torch.inference_mode] * len(got)
    assert len(recordings) == 1


def test_what_cannot_be_recorded_runs_step_by_step_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def fails(*_: Any) -> Any:
        nonlocal asked
        asked += 1
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(graphs, "capture", fails)
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    assert_same(rnn, RnnCall(x))
    message = "runs step by step, slower: it cannot be recorded: operation not permitted"
    with pytest.warns(RuntimeWarning, match=message):
        assert_same(rnn, RnnCall(x))
    assert_same(rnn, RnnCall(x))
    assert asked == 1


def test_a_graph_is_of_the_fastest_way(
    recordings: list[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn, asked = layer_of("LSTM"), RnnCall(torch.randn(B, T, F))
    (layer,) = rnn.rnn_layers()
    compute, offered = partial(engine_of("loop").run, layer), []

    def run_other(call: RnnCall) -> RnnResult:
        outputs, states = compute(call)
        return tuple(2 * out for out in outputs), states

    def find_fastest(what: Any, ways: Any, device: torch.device) -> int:
        offered.append([way()[0] for way in ways])
        return best

    monkeypatch.setattr(graphs, "find_fastest", find_fastest)
    monkeypatch.setattr(cuda_graph, "_recorded_engine", lambda *_: triton_step.ENGINE)
    monkeypatch.setattr(triton_step.ENGINE, "run", lambda _, call: compute(call))
    monkeypatch.setattr(triton_step.ENGINE, "ways", lambda *_: [compute, run_other])
    for best in (1, 2):
        graphs._layers.clear()
        with torch.no_grad():
            first, second, third = (by("graph", rnn, asked) for _ in range(3))
        recorded, other, direct = offered.pop()
        assert torch.equal(recorded, first[0])
        assert torch.equal(other, 2 * first[0])
        assert torch.equal(direct, first[0])
        assert torch.equal(second[0], (2 if best == 1 else 1) * first[0])
        assert torch.equal(third[0], second[0])


def test_threads_do_not_take_each_others_numbers(recordings: list[FakeGraph]) -> None:
    rnn = layer_of("GRU")
    inputs = [torch.randn(B, T, F) for _ in range(24)]
    start = threading.Barrier(4)

    def several(number: int) -> None:
        start.wait()
        for x in inputs[number::4] * 5:
            assert_same(rnn, RnnCall(x))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(several, range(4)))
    assert len(recordings) == 1


# ---- what may be recorded -----------------------------------------------------------------------


class Transfers(TorchDispatchMode):
    """Record operations that read or return a tensor on another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
        devices = {t.device.type for t in tensors if isinstance(t, Tensor)}
        if devices - {"meta"}:
            self.found.append(str(func))
        return out


# Each function with one of the steps, which do not know it; "glu" gives half of what it takes.
@pytest.mark.parametrize(
    ("name", "kind"),
    [*zip(sorted(FUNCTIONS.keys() - {"glu"}), cycle(sorted(STEPS)), strict=False)],
)
def test_the_loop_looks_at_no_values_and_moves_nothing_between_devices(
    name: str, kind: str
) -> None:
    """A captured graph could not hold either. Tested with tensors without values."""
    function, gates = FUNCTIONS[name], {"LSTM": 4, "SimpleRNN": 1}.get(kind, 3)
    with torch.device("meta"):
        sizes = ((gates * H, F), (gates * H, H), (gates * H,), (gates * H,))
        weights = tuple(Weights(*map(torch.empty, sizes)) for _ in range(2))
        layer = RnnLayer(Cell(kind, function, function), [p for w in weights for p in w])
        x, lengths = torch.empty(B, T, F), torch.empty(B, dtype=torch.int64)
    with torch.no_grad(), Transfers() as transfers:
        for asked in (RnnCall(x, merge="mul"), RnnCall(x, lengths)):
            engine_of("loop").run(layer, asked)
    assert transfers.found == []


def test_the_choice_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rnn, x = layer_of("LSTM"), torch.randn(B, T, F)
    rnn.engine = "graph"

    def refused(message: str) -> None:
        with pytest.raises(UsageError, match=message):
            rnn(x)

    refused("gradients and dropout cannot be recorded")
    with torch.no_grad():
        refused("it is for dense tensors on one CUDA device; use auto")
        with monkeypatch.context() as patching:
            patching.setattr(cuda_graph, "is_exporting", lambda: True)
            refused("what is compiled or exported cannot be recorded")
        with monkeypatch.context() as patching, torch.autocast("cpu", torch.bfloat16):
            patching.setattr(cuda_graph, "why_not_capture", lambda *_: "")
            refused("autocast is on")
        with monkeypatch.context() as patching:
            patching.setattr(engines, "GPU_KERNELS", "off")
            refused("K2T_GPU_KERNELS=off")
            patching.setattr(engines, "GPU_KERNELS", "never")
            refused("K2T_GPU_KERNELS=never: one of auto, off, trusted is expected")


def test_what_is_on_a_gpu_and_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(*shape: int, **options: Any) -> str:
        return cuda_graph.why_not_capture(
            RnnCall(torch.empty(*shape, device="cuda")), [torch.empty(1, **options)]
        )

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode():
        assert reason(B, T, F) == "it is for dense tensors on one CUDA device"
        assert reason(B, T, F, device="cuda:1") == "it is for dense tensors on one CUDA device"
        on = {"device": "cuda:0"}
        for shape in ((0, T, F), (B, 0, F)):
            assert reason(*shape, **on) == "there is nothing to compute"
        assert reason(B, T, F, **on) == "it is for plain tensors outside torch.func"
        monkeypatch.setattr(engine, "is_plain", lambda _: True)
        assert reason(B, T, F, **on) == ""
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert reason(B, T, F, **on) == "a graph is being recorded already"


def test_it_is_chosen_where_torch_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.select._asks_for_gpu", lambda _: True)
    monkeypatch.setattr(cuda_graph, "why_not_capture", lambda *_: "")
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    standard, other = k2t.BiLSTM(F, H).eval(), layer_of("LSTM")
    with torch.no_grad():
        assert [rnn.explain()[0].engine for rnn in (standard, other)] == ["fused", "graph"]
        assert [c.engine for c in k2t.BiGRU(F, H, engine="graph").explain()] == ["graph"]
        other.engine = "loop"
        assert other.explain()[0].engine == "loop"
    other.engine = None
    assert other.explain()[0].engine == "loop"  # gradients are wanted
    assert standard.explain()[0].engine == "fused"


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_gpu_plays_what_it_computes_step_by_step(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "find_fastest", lambda *_: 0)
    rnn = layer_of(cell, num_layers=2, merge_mode=["sum", "mul"]).cuda().to(dtype)
    seen = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", "a? ?recurrent layer")
        for number in range(4):
            x = torch.randn(B, T, F, dtype=dtype, device="cuda")
            mask = torch.rand(B, T, device="cuda") < 0.7 if number % 2 else None
            for _ in range(3):
                rnn.engine = "graph"
                got, states = rnn(x, mask=mask)
                rnn.engine = "loop"
                wanted, ends = rnn(x, mask=mask)
                torch.testing.assert_close((got, states), (wanted, ends), rtol=0, atol=5e-6)
            with torch.no_grad():
                rnn.weight_hh_l0.mul_(0.9)
            rnn.engine = None
            seen += [c.engine for c in rnn.explain()]
    assert set(seen) == {"graph"}
    assert any(
        recording for layer in graphs._layers.values() for recording in layer.graphs.values()
    )


@pytest.mark.gpu
def test_streams_and_threads_of_a_gpu_do_not_mix_their_numbers() -> None:
    rnn = layer_of("GRU before").cuda()
    inputs = [torch.randn(B, T, F, device="cuda") for _ in range(12)]
    torch.cuda.synchronize()

    def several(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for x in inputs[number::3] * 5:
                got = by("graph", rnn, RnnCall(x))
                wanted = by("loop", rnn, RnnCall(x))
                torch.cuda.current_stream().synchronize()
                torch.testing.assert_close(got, wanted, rtol=0, atol=5e-6)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(several, range(3)))
