"""Layers as citizens of torch: lazy views, transforms, modes, subclasses and empty things."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_fixtures import isa_bits
from kernel_layers import both, gru, native
from sampling import rest_thorough
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch_features_child import CHECKS

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.recurrent import bidirectional
from keras2torch_birnn.rnn import tensor_memory
from keras2torch_birnn.rnn.native import library, op, packing

# Torch's own, at the first dual number.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

B, T, F, H = 3, 5, 7, 11
CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (k2t.BiLSTM, {}),
    "GRU": (k2t.BiGRU, {}),
    "GRU before": (k2t.BiGRU, {"reset_after": False}),
    "SimpleRNN": (k2t.BiRNN, {}),
}
MASK = torch.arange(T) < torch.tensor([5, 3, 0])[:, None]
GAPS = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)


def layer_of(cell: str, units: int = H, **options: Any) -> Any:
    torch.manual_seed(0)
    made, special = CELLS[cell]
    return made(F, units, batch_first=True, **{**special, **options})


def by_loop(layer: Any) -> Any:
    reference = deepcopy(layer).double()
    reference.engine = "loop"
    return reference


def gradients(layer: Any, x: Tensor, **given: Any) -> list[Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x, **given)[0]
    return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]


def assert_same(got: Sequence[Tensor], wanted: Sequence[Tensor], limit: float = 1e-5) -> None:
    for a, b in zip(got, wanted, strict=True):
        a, b = a.detach().double(), b.detach().double()
        assert torch.equal(a.isfinite(), b.isfinite())
        torch.testing.assert_close(a[a.isfinite()], b[b.isfinite()], rtol=0, atol=limit)


# ---- what is read raw ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_lazily_negated_input_is_read_with_its_sign(cell: str) -> None:
    made, special = CELLS[cell]
    layer = made(1, H, batch_first=True, **special).eval()
    x = torch.fft.ihfft(torch.randn(B, 2 * T - 2)).imag.unsqueeze(-1)
    assert x.is_neg()
    with torch.no_grad():
        assert_same(layer(x)[0], layer(x.clone())[0])
        if cell == "LSTM":
            compiled = torch.compile(layer, backend="eager", fullgraph=True)
            assert_same(compiled(x)[0], layer(x.clone())[0])


@native
def test_lazily_negated_tensors_are_resolved_by_the_operator() -> None:
    module, x = gru()
    weights = [p.detach() for w in (module._parameters,) for p in w.values()]
    ih, hh, bias_ih, bias_hh = weights[:4]
    h = torch.randn(3, 24)
    wanted = torch.ops.k2t.rnn(x, [ih, hh, bias_ih, bias_hh], None, [h], [1, 1, 2], [0.0, 0.0], 0)
    lazy = [torch._neg_view(-t) for t in (x, ih, hh, bias_ih, bias_hh, h)]
    got = torch.ops.k2t.rnn(lazy[0], lazy[1:5], None, lazy[5:], [1, 1, 2], [0.0, 0.0], 0)
    assert_same(got, wanted)


@pytest.fixture(scope="module")
def held() -> list[str]:
    """The checks that held in a process of its own."""
    child = Path(__file__).parents[1] / "support" / "torch_features_child.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", child], capture_output=True, text=True, check=False
    )
    return [*done.stdout.splitlines(), done.stderr]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHECKS)
def test_tensors_without_memory_of_their_own_end_no_interpreter(name: str, held: list[str]) -> None:
    assert name in held, held[-1]


def test_only_plain_tensors_pass_the_gate() -> None:
    x = torch.randn(B, T)
    assert tensor_memory.is_plain([x, nn.Parameter(x), torch.empty(0, T)])
    for other in (
        torch._neg_view(x),
        torch.complex(x, x).conj().imag,
        x.to_sparse(),
        torch.empty(B, T, device="meta"),
        x.as_subclass(type("Named", (Tensor,), {})),
    ):
        assert not tensor_memory.is_plain([x, other])
    with forward_ad.dual_level():
        assert tensor_memory.is_plain([x])
        assert not tensor_memory.is_plain([forward_ad.make_dual(x, x)])
    seen: list[bool] = []

    def transformed(y: Tensor) -> Tensor:
        seen.extend((tensor_memory.is_plain([x]), tensor_memory.is_plain([y])))
        return y.sum()

    torch.func.grad(transformed)(x)
    torch.func.vmap(transformed)(x)
    assert seen == [False] * 4


# ---- NaN and Inf --------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("units", [6, 16, 19])
def test_an_infinite_input_spoils_no_gradient_but_its_own(cell: str, units: int, isa: int) -> None:
    layer = layer_of(cell, units).train()
    x = torch.randn(2, T, F)
    x[0, 2, 1] = float("inf")
    found = {}
    for engine in ("native", "torch", "loop"):
        layer.engine = engine
        found[engine] = gradients(layer, x)
    assert found["loop"][1].isfinite().all()
    for engine in ("native", "torch"):
        assert_same(found[engine], found["loop"])


@pytest.mark.parametrize("mask", [MASK, GAPS])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", [{}, {"activation": "silu"}])
@pytest.mark.parametrize("cell", CELLS)
def test_garbage_in_masked_steps_reaches_no_gradient(
    cell: str, options: dict[str, Any], training: bool, mask: Tensor
) -> None:
    layer = layer_of(cell, merge_mode="sum", **options).train(training)
    x = torch.randn(B, T, F) * 0.1
    wanted = gradients(by_loop(layer), x.double().masked_fill(~mask[..., None], 0), mask=mask)
    for garbage in (float("nan"), float("inf"), 1e30):
        dirty = x.masked_fill(~mask[..., None], garbage)
        for engine in (None, "torch", "loop"):
            layer.engine = engine
            assert_same(gradients(layer, dirty, mask=mask), wanted, 1e-4)
        twice = deepcopy(layer).double()
        twice.engine = None
        assert_same(gradients(twice, dirty.double(), mask=mask), wanted)


def test_a_state_beside_which_a_step_would_overflow_is_not_stepped_from_where_masked() -> None:
    layer = layer_of("SimpleRNN", activation="exponential", engine="loop").double()
    start = torch.full((2, B, H), 1e4, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(B, T, dtype=torch.bool)
    with torch.no_grad():
        for weight in (layer.weight_hh_l0, layer.weight_hh_l0_reverse):
            weight.abs_()
    out, h = layer(torch.randn(B, T, F).double(), start, mask=mask)
    (found,) = torch.autograd.grad(out.sum() + h.sum(), start)
    assert_same([found], [torch.ones_like(start)])


# ---- derivatives and transforms -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["trainable", "frozen", "no_grad"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
def test_forward_mode_gives_torchs_tangents(cell: str, how: str) -> None:
    layer = layer_of(cell).requires_grad_(how != "frozen")
    # Torch has no forward mode of its LSTM in float32 on CPU.
    made: Any = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}[cell]
    torchs = made(F, H, batch_first=True, bidirectional=True, dtype=torch.float64)
    torchs.load_state_dict(layer.state_dict())
    x, along = torch.randn(B, T, F), torch.randn(B, T, F)
    wanted = torch.autograd.functional.jvp(lambda y: torchs(y)[0], x.double(), along.double())[1]
    with torch.set_grad_enabled(how != "no_grad"), forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along))[0]).tangent
    assert_same([found], [wanted])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_batch_of_gradients_is_that_of_each(cell: str, training: bool) -> None:
    layer = layer_of(cell, engine="torch").train(training)
    x = torch.randn(B, T, F, requires_grad=True)
    out = layer(x)[0]
    many = torch.randn(3, *out.shape)
    of = [x, *layer.parameters()]
    found = torch.autograd.grad(out, of, many, is_grads_batched=True, retain_graph=True)
    for k, one in enumerate(many):
        assert_same([f[k] for f in found], torch.autograd.grad(out, of, one, retain_graph=True))


def test_a_tangent_of_the_outputs_gradient_is_kept() -> None:
    layer, x = layer_of("LSTM", engine="loop"), torch.randn(B, T, F, requires_grad=True)
    out = layer(x)[0]
    weight, along = torch.randn_like(out), torch.randn_like(out)
    (wanted,) = torch.autograd.grad(out, x, along, retain_graph=True)
    with forward_ad.dual_level():
        (found,) = torch.autograd.grad(out, x, forward_ad.make_dual(weight, along))
        assert_same([forward_ad.unpack_dual(found).tangent], [wanted])


@pytest.mark.parametrize("cell", CELLS)
def test_a_frozen_layer_runs_inside_a_transform_of_other_weights(cell: str) -> None:
    layer, x = layer_of(cell).requires_grad_(False), torch.randn(B, T, F)
    head = torch.randn(2 * H)
    for given in ({}, {"mask": MASK}):
        wanted = layer(x, **given)[0].sum((0, 1))

        def of_head(weight: Tensor, given: Any = given) -> Tensor:
            return (layer(x, **given)[0] @ weight).sum()

        assert_same([torch.func.grad(of_head)(head)], [wanted], 1e-4)
        mapped = torch.func.vmap(of_head)(torch.stack((head, -head)))
        assert_same([mapped], [torch.stack((wanted @ head, -wanted @ head))], 1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_mapped_model_gives_what_it_gives_one_by_one(cell: str, masked: bool) -> None:
    layer, x = layer_of(cell), torch.randn(2, B, T, F)
    masks = torch.stack((MASK, GAPS))
    if not masked:
        assert_same(torch.func.vmap(layer)(x)[0], torch.stack([layer(one)[0] for one in x]))
        return
    found = torch.func.vmap(lambda one, mask: layer(one, mask=mask)[0])(x, masks)
    assert_same(found, torch.stack([layer(a, mask=b)[0] for a, b in zip(x, masks, strict=True)]))


def test_tensors_saved_in_other_strides_are_read_rightly() -> None:
    layer, x = layer_of("GRU before", engine="native"), torch.randn(B, T, F)
    wanted = gradients(layer, x)

    def turned(t: Tensor) -> Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
        assert_same(gradients(layer, x), wanted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_what_was_made_in_inference_mode_trains(cell: str, training: bool) -> None:
    layer = layer_of(cell).train(training)
    x, h = torch.randn(B, T, F), torch.randn(2, B, H)
    count = 2 if cell == "LSTM" else 1
    with torch.inference_mode():
        inputs = x.clone()
        states, masks = tuple(h.clone() for _ in range(count)), [MASK.clone(), GAPS.clone()]
    for engine in (None, "torch", "loop"):
        layer.engine = engine
        for frozen, mask in zip((None, *masks), (None, MASK, GAPS), strict=True):
            found, wanted = (
                torch.autograd.grad(
                    layer(x, hx if len(hx) == 2 else hx[0], mask=m)[0].square().sum(),
                    list(layer.parameters()),
                )
                for x, hx, m in ((inputs, states, frozen), (x, (h,) * count, mask))
            )
            assert_same(found, wanted)


@pytest.mark.parametrize(
    ("cell", "training"),
    rest_thorough(zip(CELLS, cycle((True, False)), strict=False), [("LSTM", True)]),
)
def test_a_masked_layer_compiles_to_one_graph(cell: str, training: bool) -> None:
    mask = MASK if cell == "LSTM" else GAPS
    torch._dynamo.reset()
    layer, x = layer_of(cell).train(training), torch.randn(B, T, F)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_same(gradients(compiled, x, mask=mask), gradients(layer, x, mask=mask))
    with torch.no_grad():
        assert_same(compiled(x, mask=mask)[0], layer(x, mask=mask)[0])


# ---- without values, without steps --------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK, MASK.float()])
@pytest.mark.parametrize("cell", CELLS)
def test_tensors_on_the_meta_device_give_shapes(cell: str, mask: Tensor | None) -> None:
    layer = layer_of(cell, num_layers=2).to("meta")
    given = None if mask is None else mask.to("meta")
    for training in (False, True):
        layer.train(training)
        out, states = layer(torch.empty(B, T, F, device="meta"), mask=given)
        assert out.shape == (B, T, 2 * H)
        assert (states[0] if cell == "LSTM" else states).shape == (4, B, H)


@native
@pytest.mark.parametrize("engine", ["auto", "torch", "fused", "loop", "native"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_no_steps_give_no_outputs_and_leave_the_states_alone(
    cell: str, engine: Any, masked: bool
) -> None:
    if cell == "GRU before" and engine == "fused":
        engine = "auto"  # torch has no such cell
    mask = torch.ones(B, 0, dtype=torch.bool) if masked else None
    h = torch.randn(4, B, H)
    for dtype in (torch.float32, torch.float64):
        if engine == "native" and dtype is torch.float64:
            continue
        layer = layer_of(cell, num_layers=2, merge_mode="sum", engine=engine).to(dtype)
        for training in (False, True):
            layer.train(training)
            x = torch.randn(B, 0, F, dtype=dtype, requires_grad=True)
            states: Any = (h.to(dtype), -h.to(dtype)) if cell == "LSTM" else h.to(dtype)
            out, final = layer(x, states, mask=mask)
            assert out.shape == (B, 0, H)
            assert_same(final, states)
            zeros = layer(x, mask=mask)[1]
            assert_same(zeros, torch.zeros_like(torch.stack(states) if cell == "LSTM" else states))
            for found in torch.autograd.grad(out.sum(), [x, layer.weight_ih_l1], allow_unused=True):
                assert found is None or not found.any()


def test_a_converted_layer_takes_no_steps_and_a_mask_of_them() -> None:
    for cell in CELLS:
        for rule in ("zeros", "previous_output", "previous_state"):
            module: Any = bidirectional(both(cell, H, F, "ave", masked_output=rule))
            for mask in (None, torch.ones(B, 0, dtype=torch.bool)):
                assert module(torch.randn(B, 0, F), mask).shape == (B, 0, H)


# ---- packed weights -----------------------------------------------------------------------------


@native
def test_parameters_are_swapped_after_a_native_call() -> None:
    layer, x = layer_of("LSTM").eval(), torch.randn(B, T, F)
    with torch.no_grad():
        layer(x)
        other = nn.Parameter(torch.randn(4 * H, H))
        torch.utils.swap_tensors(layer.weight_hh_l0, other)
        assert_same(layer(x)[0], by_loop(layer)(x.double())[0])


@pytest.fixture
def swapped_on_conversion() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@native
@pytest.mark.usefixtures("swapped_on_conversion")
def test_a_module_that_swaps_its_parameters_converts_and_loads_after_a_native_call() -> None:
    layer, x = layer_of("GRU").eval(), torch.randn(B, T, F)
    with torch.no_grad():
        before = layer(x)[0]
        assert_same(layer.double()(x.double())[0], before)
        assert_same(layer.float()(x)[0], before)
        layer.load_state_dict({k: v * 0.5 for k, v in layer.state_dict().items()})
        assert_same(layer(x)[0], by_loop(layer)(x.double())[0])


@native
def test_packed_weights_go_with_the_memory_they_were_made_of() -> None:
    layer, x = layer_of("LSTM").eval(), torch.randn(B, T, F)
    packing._cache.clear()
    with torch.no_grad():
        for change in ("nothing", "data", "dtype", "parameter"):
            if change == "data":
                layer.weight_hh_l0.data = torch.randn(4 * H, H)
            elif change == "dtype":
                layer.double().float()
            elif change == "parameter":
                layer.bias_ih_l0 = nn.Parameter(torch.randn(4 * H))
            assert not packing._cache
            layer(x)
            assert len(packing._cache) == 1
    del layer
    gc.collect()
    assert not packing._cache


@native
def test_packed_weights_whose_memory_moved_go_with_the_next_that_are_packed() -> None:
    layer, x = layer_of("LSTM").eval(), torch.randn(B, T, F)
    packing._cache.clear()
    with torch.no_grad():
        layer(x)
        storage = layer.weight_hh_l0.untyped_storage()
        size = storage.nbytes()
        storage.resize_(0)
        taken = torch.empty(size // 4)  # where it lay, as like as not
        storage.resize_(size)
        layer.weight_hh_l0.copy_(torch.randn(4 * H, H))
        other = layer_of("GRU").eval()
        other(x)
        assert_same(layer(x)[0], by_loop(layer)(x.double())[0])
        assert len(packing._cache) == 2
    del taken


@native
def test_weights_that_change_all_the_time_are_packed_once_more_and_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = layer_of("LSTM").eval(), torch.randn(B, T, F)
    real = packing.cached_pack

    def changing(*given: Any, **options: Any) -> Any:
        packed = real(*given, **options)
        layer.weight_hh_l0.add_(0.001)  # as another thread would, before the kernel compares
        return packed

    with torch.no_grad():
        layer(x)
        monkeypatch.setattr(op, "cached_pack", changing)
        before = layer(x)[0]
        monkeypatch.undo()
        assert_same([before], [layer(x)[0]], 0.01)
        assert_same([layer(x)[0]], [by_loop(layer)(x.double())[0]])


# ---- the fingerprint ----------------------------------------------------------------------------


def print_of(isa: int, words: Any) -> int:
    arrays = (library.Array * 4)(library.Array(words.ctypes.data, 2 * words.size))
    return library.fingerprint(isa, arrays)


@native
@pytest.mark.parametrize("bits", [(0, 34), (63, 34), (63, 63), (34, 63)])
@pytest.mark.parametrize("isa_bit", isa_bits())
def test_no_change_of_two_words_hides_from_the_fingerprint(
    isa_bit: int, bits: tuple[int, int]
) -> None:
    """The last bit goes through a multiplication unharmed, and could be taken back."""
    lanes = {4: 16, 2: 8, 1: 4}[isa_bit]
    words = np.random.default_rng(0).integers(0, 2**63, 512, dtype=np.uint64)
    before = print_of(isa_bit, words)
    for apart in (1, lanes // 2, 4 * lanes):  # the next lane, chain and step
        changed = words.copy()
        changed[5] ^= np.uint64(1 << bits[0])
        changed[5 + apart] ^= np.uint64(1 << bits[1])
        assert print_of(isa_bit, changed) != before


@native
def test_the_fingerprint_starts_at_another_number_in_every_process() -> None:
    code = """if True:
        import ctypes
        from keras2torch_birnn.rnn.native.library import Array, fingerprint, instruction_set
        print(fingerprint(instruction_set(), (Array * 4)()))
    """
    command = [sys.executable, "-W", "ignore", "-c", code]
    found = {subprocess.run(command, capture_output=True, check=True).stdout for _ in range(3)}
    assert len(found) == 3
