"""Training by CUDA graphs of the Triton kernels. There need not be a GPU: see ``fake_graphs``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_graphs import FakeDevice, FakeGraph, FakeStream, fake_graphs
from ranks import run_ranks
from step_layers import CELLS, stack_of
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import keras2torch_birnn as k2t
from keras2torch_birnn.limits import MAX_GRAPHS_PER_LAYER
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.engines import cuda_graph, select, triton_step
from keras2torch_birnn.rnn.gpu import graphs, self_check, step_gradient

# An engine of GPUs, tried without one. The interpreter computes with NumPy, which warns of what is
# replaced later.
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning"),
]

B, T, F, H = 2, 2, 3, 5


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    """Select engines as on a GPU, and capture without one."""
    monkeypatch.setattr(select, "_asks_for_gpu", lambda _: True)
    for module in (triton_step, cuda_graph):
        monkeypatch.setattr(module, "why_not_on_gpu", lambda *_: "")
    monkeypatch.setattr(engines, "GPU_KERNELS", "trusted")
    monkeypatch.setattr(triton_step, "triton_version", lambda: "3.4.0")  # two launches a step alone
    monkeypatch.setattr(self_check, "_reasons", {})
    with fake_graphs(monkeypatch) as made:
        yield made


class Pair:
    """A layer that is recorded, and one with the same weights that runs the loop."""

    def __init__(self, cell: str = "LSTM", **options: Any) -> None:
        torch.manual_seed(3)
        self.rnn: Any = stack_of(cell, F, H, **options).double()
        self.loop: Any = copy.deepcopy(self.rnn)
        self.rnn.engine, self.loop.engine = "graph", "loop"

    def compare(self, run: Callable[[Any], Tensor]) -> None:
        """Compare what both give, and their gradients."""
        found = []
        for rnn in (self.rnn, self.loop):
            rnn.zero_grad()
            out = run(rnn)
            out.sin().sum().backward()
            found.append([out.detach(), *(p.grad for p in rnn.parameters())])
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)

    def learn(self) -> None:
        """Change the weights of both in place, as an optimizer does."""
        with torch.no_grad():
            for rnn in (self.rnn, self.loop):
                for p in rnn.parameters():
                    p -= 0.1 * p.grad


def draw(steps: int = T, rows: int = B) -> Tensor:
    return torch.randn(rows, steps, F, dtype=torch.float64)


def outputs(x: Tensor, mask: Tensor | None = None) -> Callable[[Any], Tensor]:
    """Call a layer; its outputs and states in one tensor."""

    def run(rnn: Any) -> Tensor:
        out, states = rnn(x, mask=mask)
        states = states if isinstance(states, tuple) else (states,)
        return torch.cat([out.flatten(), *(s.flatten() for s in states)])

    return run


@pytest.mark.parametrize(
    ("cell", "masked"),
    [("LSTM", True), ("GRU", False), ("GRU before", True), ("SimpleRNN", False)],
)
def test_weights_that_an_optimizer_changed_are_seen_by_forward_and_backward(
    cell: str, masked: bool, device: FakeDevice
) -> None:
    pair = Pair(cell, merge_mode="mul")
    assert [c.engine for c in pair.rnn.explain()] == ["graph"]
    for seed in range(4):
        torch.manual_seed(seed)
        pair.compare(outputs(draw(), torch.rand(B, T) < 0.7 if masked else None))
        pair.learn()
    # recorded at the second call, checked then, and replayed in it and in those behind it
    assert device.replays() == [4, 4]


def test_one_recording_is_for_any_number_of_steps_up_to_its_own(device: FakeDevice) -> None:
    pair = Pair("GRU")
    for number, count in enumerate((7, 8, 7, 8)):
        x = draw(count).requires_grad_()
        mask = torch.rand(B, count) < 0.6 if number % 2 else None
        pair.compare(outputs(x, mask))
        pair.learn()
    # forward for up to 8 steps, which serves the last call, too; both for 7; backward for 8
    assert device.replays() == [3, 2, 2, 2]


def test_two_calls_before_their_gradients_keep_their_numbers(device: FakeDevice) -> None:
    pair, x, other = Pair("LSTM"), draw(), draw()

    def both(rnn: Any) -> Tensor:
        first = rnn(x)[0]
        return first * rnn(first[..., :F])[0] + rnn(other)[0]

    for _ in range(2):
        pair.compare(both)
        pair.learn()
    assert len(device.graphs) == 3  # forward; backward without and with the gradient of x


def test_a_call_without_gradients_comes_between_a_call_and_its_gradients(
    device: FakeDevice,
) -> None:
    pair, x = Pair("GRU before"), draw()

    def run(rnn: Any) -> Tensor:
        out = rnn(x)[0]
        with torch.no_grad():
            shift = rnn(2 * x)[0]
            with torch.enable_grad():
                rnn(3 * x)
        return out + shift

    for _ in range(3):
        pair.compare(run)
        pair.learn()
    assert len(device.graphs) == 3


def test_gradients_are_wanted_twice(device: FakeDevice) -> None:
    pair, x = Pair(), draw()
    for _ in range(3):
        out = pair.rnn(x)[0].cos().sum()
        out.backward(retain_graph=True)
        once = [p.grad.clone() for p in pair.rnn.parameters()]
        out.backward()
        twice = [p.grad for p in pair.rnn.parameters()]
        torch.testing.assert_close(twice, [2 * g for g in once])
        pair.rnn.zero_grad()
    assert len(device.graphs) == 2


def test_gradients_have_gradients(device: FakeDevice) -> None:
    pair, x = Pair("GRU"), draw()
    for _ in range(3):
        found = []
        for rnn in (pair.rnn, pair.loop):
            weights = list(rnn.parameters())
            first = torch.autograd.grad(rnn(x)[0].sin().sum(), weights, create_graph=True)
            total = torch.stack([(g * g).sum() for g in first]).sum()
            found.append(torch.autograd.grad(total, weights))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)
    assert len(device.graphs) == 2  # of the output alone: the loop has those of gradients


def test_each_combination_of_wanted_gradients_is_its_own_recording(device: FakeDevice) -> None:
    pair = Pair("LSTM")
    for x in (draw(), draw().requires_grad_()):
        for of_states in (False, True):
            for _ in range(2):
                pair.compare(lambda rnn, x=x, s=of_states: rnn(x)[1][0] if s else rnn(x)[0])
    assert len(device.graphs) == 1 + 4


def test_weights_in_another_place_are_recorded_anew(device: FakeDevice) -> None:
    pair, x = Pair(), draw()
    for number in range(4):
        if number == 2:
            for rnn in (pair.rnn, pair.loop):
                rnn.weight_hh_l0.data = rnn.weight_hh_l0.data * 0.5
        pair.compare(outputs(x))
    assert len(device.graphs) == 4


def test_weights_that_changed_before_their_gradients_are_refused(device: FakeDevice) -> None:
    pair, x = Pair(), draw()
    for _ in range(3):
        out = pair.rnn(x)[0].sum()
        with torch.no_grad():
            pair.rnn.weight_hh_l0.mul_(0.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_under_autocast_the_recording_casts_the_weights(device: FakeDevice) -> None:
    torch.manual_seed(5)
    rnn = stack_of("LSTM", F, H)
    x = torch.randn(B, T, F)
    for _ in range(3):
        found = []
        for engine in ("graph", "triton"):
            rnn.engine = engine
            rnn.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                out = rnn(x)[0]
            out.float().sum().backward()
            found.append([out.detach(), *(p.grad for p in rnn.parameters())])
        torch.testing.assert_close(*found, rtol=0, atol=0)
        assert found[0][0].dtype is torch.bfloat16
        assert {g.dtype for g in found[0][1:]} == {torch.float32}
        with torch.no_grad():
            for p in rnn.parameters():
                p -= 0.1 * p.grad
    assert len(device.graphs) == 2


def test_calls_on_another_stream_are_recorded_for_it(device: FakeDevice) -> None:
    pair, x = Pair(), draw()
    for stream in (device.stream, FakeStream()):
        with device.on_stream(stream):
            for _ in range(2):
                pair.compare(outputs(x))
    assert len(device.graphs) == 4


@pytest.mark.parametrize("how", ["checkpoint", "saved on the host"])
def test_what_is_kept_may_be_computed_again_or_moved(how: str, device: FakeDevice) -> None:
    pair, x = Pair("GRU before"), draw().requires_grad_()

    def run(rnn: Any) -> Tensor:
        if how == "checkpoint":
            found = checkpoint(lambda x: rnn(x)[0], x, use_reentrant=False)
            assert isinstance(found, Tensor)
            return found
        hooks: Any = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)
        with hooks:
            return outputs(x)(rnn)

    for _ in range(3):
        pair.compare(run)
        pair.learn()
    assert device.graphs


@pytest.mark.own_processes
def test_ddp_trains_by_recordings(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        + """
import pytest, torch
import test_recorded_training as page
from fake_graphs import fake_graphs
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

store, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
with pytest.MonkeyPatch.context() as patching:
    device = next(page.device.__wrapped__(patching))
    pair = page.Pair("GRU")
    torch.manual_seed(rank)
    inputs = [page.draw() for _ in range(3)]
    ours, loop = map(DistributedDataParallel, (pair.rnn, pair.loop))
    for x in inputs:
        for model in (ours, loop):
            model.zero_grad()
            model(x)[0].sin().sum().backward()
        grads = [[p.grad for p in m.parameters()] for m in (ours, loop)]
        torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
        pair.learn()
    assert len(device.graphs) == 2, device.graphs
distributed.destroy_process_group()
"""
    )
    run_ranks(2, str(script), tmp_path / "store")


def test_shapes_of_training_share_the_room_of_a_layer(device: FakeDevice) -> None:
    pair = Pair("SimpleRNN")
    for rows in range(1, MAX_GRAPHS_PER_LAYER // 2 + 2):
        for _ in range(2):
            pair.compare(outputs(draw(1, rows)))
    (layer,) = graphs._layers.values()
    assert len(layer.graphs) == MAX_GRAPHS_PER_LAYER


@pytest.mark.parametrize("failing", ["capture", "replay"])
def test_what_cannot_be_recorded_is_trained_step_by_step_and_says_why(
    failing: str, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failing == "capture":
        device.failure = RuntimeError("operation not permitted")
        reason = "operation not permitted"
    else:
        monkeypatch.setattr(torch.cuda, "graph", forgetful(device))
        reason = "its replay gives other numbers"
    pair, x = Pair(), draw()
    pair.compare(outputs(x))
    message = f"runs step by step, slower: it cannot be recorded: {reason}"
    with pytest.warns(RuntimeWarning, match=message) as said:
        pair.compare(outputs(x))
    assert len({str(one.message) for one in said}) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            pair.learn()
            pair.compare(outputs(x))


def forgetful(device: FakeDevice) -> Any:
    """Capture all operations but the last."""

    @contextmanager
    def capture(graph: FakeGraph, **options: Any) -> Iterator[None]:
        with device.capture(graph, **options):
            yield
            del graph.tape[-1]

    return capture


def test_nothing_is_recorded_where_that_is_not_faster(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = []

    def find_fastest(what: Any, ways: Any, place: torch.device) -> int:
        offered.append(len(ways))
        return len(ways) - 1

    monkeypatch.setattr(graphs, "find_fastest", find_fastest)
    pair, x = Pair(), draw()
    for _ in range(3):
        pair.compare(outputs(x))
        pair.learn()
    assert offered == [2, 2]
    assert device.replays() == [1, 1]  # for the comparison


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no C compiler")


@pytest.mark.parametrize("where", ["run_steps", "run_steps_back"])
def test_a_kernel_that_fails_in_training_leaves_its_layer_to_the_loop(
    where: str, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_gradient, where, fail)
    monkeypatch.setattr(engines, "GPU_KERNELS", "auto")
    monkeypatch.setattr(self_check, "_check", lambda *_: "")
    pair, x = Pair("SimpleRNN"), draw()
    with pytest.warns(RuntimeWarning, match="without the Triton kernels, slower: OSError") as said:
        pair.compare(outputs(x))
    assert len(said) == 1
    pair.rnn.engine = None
    pair.compare(outputs(x))
    (layer,) = pair.rnn.rnn_layers()
    assert select.explain_call(layer, select.RnnCall(x)).engine == "loop"


def test_what_takes_too_much_memory_is_not_recorded(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sums of 4 gates, and two states, in two directions
    monkeypatch.setattr(cuda_graph, "MAX_RECORDED_BYTES", 6 * H * 2 * B * T * 8 - 1)
    pair = Pair()
    pair.rnn.engine = None
    for steps, engine in ((T, "triton"), (T - 1, "graph")):
        call = select.RnnCall(draw(steps))
        (layer,) = pair.rnn.rnn_layers()
        assert select.explain_call(layer, call).engine == engine
    reason = cuda_graph.ENGINE.why_not(layer, select.RnnCall(draw(T)))
    assert reason == "more than 0 MB of the steps are kept for the gradient"


def test_gradients_of_the_loop_are_not_recorded(device: FakeDevice) -> None:
    rnn: Any = k2t.BiLSTM(F, H, activation="sparsemax", batch_first=True, engine="graph")
    with pytest.raises(k2t.UsageError, match="gradients and dropout cannot be recorded"):
        rnn(torch.zeros(B, T, F))
    with torch.no_grad():
        assert [c.engine for c in rnn.explain()] == ["graph"]


# ---- on a GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("units", [7, 263])
@pytest.mark.parametrize("cell", sorted(CELLS))
def test_a_gpu_trains_by_graphs_as_step_by_step(
    cell: str, units: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def prefer_graphs(what: Any, ways: Any, place: torch.device) -> int:
        taken.append(len(ways))
        return 0

    monkeypatch.setattr(graphs, "find_fastest", prefer_graphs)
    torch.manual_seed(3)
    rnn = stack_of(cell, F, units, merge_mode="sum").cuda().to(dtype)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=0.01)
    inputs = [torch.randn(B, steps, F, device="cuda", dtype=dtype) for steps in (13, 16, 14, 13)]
    bound = 100 * torch.finfo(dtype).eps
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "a? ?recurrent layer")
        for x in inputs * 2:
            found = []
            for engine in ("graph", "triton"):
                rnn.engine = engine
                optimizer.zero_grad()
                out = rnn(x)[0]
                out.sin().sum().backward()
                found.append([out.detach(), *(p.grad.clone() for p in rnn.parameters())])
            for got, wanted in zip(*found, strict=True):
                size = max(1.0, float(wanted.abs().max()))
                torch.testing.assert_close(got, wanted, rtol=0, atol=bound * size)
            optimizer.step()
    assert len(taken) >= 2


@pytest.mark.gpu
def test_a_gpu_trains_two_layers_on_two_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "find_fastest", lambda *_: 0)
    rnns = [stack_of("LSTM", F, H).cuda() for _ in range(2)]
    loops: list[Any] = [copy.deepcopy(rnn) for rnn in rnns]
    streams = [torch.cuda.Stream() for _ in rnns]
    x = torch.randn(B, T, F, device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        for rnn, loop, stream in zip(rnns, loops, streams, strict=True):
            found = []
            for model, engine in ((rnn, "graph"), (loop, "loop")):
                model.engine = engine
                model.zero_grad()
                with torch.cuda.stream(stream):
                    model(x)[0].sin().sum().backward()
                    found.append([p.grad for p in model.parameters()])
            stream.synchronize()
            torch.testing.assert_close(*found, rtol=0, atol=1e-5)
