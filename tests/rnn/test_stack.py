"""Several layers in one call of the native kernel: to the bit what the layers give one by one."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from chained_models import model_of, one_by_one, two, without_programs
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import PRECISIONS, native, reduced
from specs import TF_KERAS, F, H, bi, dense, functional, layer, rnn, with_options
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrize

import keras2torch_birnn as k2t
from keras2torch_birnn.building import build
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.rnn.native import packing, program, stack
from keras2torch_birnn.rnn.native.codes import Precision
from keras2torch_birnn.running import reset_states
from keras2torch_birnn.spec import Call, ModelSpec, TensorRef

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

SEQUENCES = {"return_sequences": True}


@pytest.fixture(autouse=True)
def _layers_alone() -> Iterator[None]:
    """Programs are tested in tests/layers/test_one_call.py."""
    with without_programs():
        yield


STACKS: dict[str, Any] = {"LSTM": k2t.BiLSTM, "GRU": k2t.BiGRU, "SimpleRNN": k2t.BiRNN}


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


@contextmanager
def counting() -> Iterator[list[int]]:
    """Collect the number of layers of each call of the kernel that runs a stack."""
    counts: list[int] = []
    real = stack.PreparedStack._execute

    def execute(self: Any, *args: Any) -> None:
        counts.append(len(self.units))
        real(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stack.PreparedStack, "_execute", execute)
        yield counts


def assert_same_bits(got: Any, wanted: Any) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride() or not b.is_contiguous()
        assert a.is_inference() == b.is_inference()


def mask_of(kind: str, batch: int, time: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "gaps":
        return torch.rand(batch, time) < 0.6
    lengths = torch.randint(0, time + 1, (batch, 1))
    mask = torch.arange(time) < lengths
    return mask.flip(1) if kind == "left" else mask


# ---- BiLSTM, BiGRU, BiRNN -----------------------------------------------------------------------


@st.composite
def stacks(draw: st.DrawFn) -> dict[str, Any]:
    depth = draw(st.integers(1, 4))
    merges = [draw(st.sampled_from(list(MERGE_MODES))) for _ in range(depth - 1)]
    return {
        "cell": draw(st.sampled_from(list(STACKS))),
        "merges": [*merges, draw(st.sampled_from((*MERGE_MODES, None)))],
        "features": draw(st.sampled_from((1, 5, 41))),
        "units": draw(st.sampled_from((1, 7, 16, 31, 101))),
        "batch": draw(st.sampled_from((1, 2, 5, 37))),
        "time": draw(st.sampled_from((1, 3, 61))),
        "bias": draw(st.booleans()),
        "hard": draw(st.booleans()),
        "reset_after": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "mask": draw(st.sampled_from(("none", "right", "left", "gaps"))),
        "states": draw(st.booleans()),
        "inference": draw(st.booleans()),
        "threads": draw(st.sampled_from((1, 2))),
        "precision": draw(st.sampled_from(PRECISIONS)),
        "seed": draw(st.integers(0, 99)),
    }


def stack_of(case: dict[str, Any]) -> Any:
    options: dict[str, Any] = {}
    if case["cell"] == "GRU":
        options["reset_after"] = case["reset_after"]
    if case["cell"] != "SimpleRNN" and case["hard"]:
        options["recurrent_activation"] = "hard_sigmoid_0.2"
    return STACKS[case["cell"]](
        case["features"],
        case["units"],
        len(case["merges"]),
        bias=case["bias"],
        batch_first=case["batch_first"],
        merge_mode=case["merges"],
        **options,
    ).eval()


@pytest.mark.usefixtures("isa")
@settings(max_examples=60, deadline=None)
@given(case=stacks())
def test_a_stack_at_once_is_its_layers_one_by_one(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    module, batch, time = stack_of(case), case["batch"], case["time"]
    k2t.set_precision(module, case["precision"])
    x, mask = torch.randn(batch, time, case["features"]), mask_of(case["mask"], batch, time)
    if not case["batch_first"]:
        x, mask = x.transpose(0, 1), None if mask is None else mask.t()
    hx: Any = None
    if case["states"]:
        hx = torch.randn(2 * len(case["merges"]), batch, case["units"])
        hx = (hx, torch.randn_like(hx)) if case["cell"] == "LSTM" else hx
    torch.set_num_threads(case["threads"])
    mode = torch.inference_mode if case["inference"] else torch.no_grad
    with mode(), counting() as counts:
        got = [module(x, hx, mask=mask) for _ in range(2)]
        assert counts == [len(case["merges"])] * 2
        with one_by_one():
            wanted = module(x, hx, mask=mask)
    for result in got:
        assert_same_bits(result, wanted)


# The merge modes that keep the width of one direction, a layer with each.
NARROW = [mode for mode in MERGE_MODES if mode != "concat"]


def example(cell: str = "LSTM", **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(3)
    module = STACKS[cell](5, 5, len(NARROW), merge_mode=NARROW, batch_first=True, **options)
    return module.eval(), torch.randn(2, 13, 5)


def test_a_packed_sequence_and_an_input_without_batch_run_at_once() -> None:
    module, x = example()
    lengths = torch.tensor([7, 11])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    with torch.no_grad(), counting() as counts:
        got = module(packed), module(x[0])
        assert counts == [3, 3]
        with one_by_one():
            wanted = module(packed), module(x[0])
    assert_same_bits((got[0][0].data, got[0][1]), (wanted[0][0].data, wanted[0][1]))
    assert_same_bits(got[1], wanted[1])


def test_more_buffers_than_the_results_memory_are_used_where_layers_are_wider() -> None:
    torch.manual_seed(0)
    module = k2t.BiGRU(3, 67, 5, merge_mode=[*["concat"] * 4, "sum"], batch_first=True).eval()
    for x in (torch.randn(2, 5, 3), torch.randn(7, 401, 3)):  # kept memory, and memory of the call
        with torch.no_grad(), one_by_one():
            wanted = module(x)
        with torch.no_grad(), counting() as counts:
            assert_same_bits(module(x), wanted)
        assert counts == [5]


# ---- changed weights ----------------------------------------------------------------------------


def in_place(module: Any) -> None:
    module.weight_hh_l1.mul_(0.5)


def through_data(module: Any) -> None:
    module.bias_hh_l2_reverse.data[3] += 1


def new_data(module: Any) -> None:
    module.weight_ih_l0.data = module.weight_ih_l0.data * 0.5


def turned_data(module: Any) -> None:
    """Give its weight other strides, in the same memory and shape."""
    weight = module.weight_hh_l0
    module(torch.randn(2, 13, 5))
    weight.data = weight.data.view(5, 15).t()


def new_parameter(module: Any) -> None:
    module.weight_hh_l2_reverse = nn.Parameter(module.weight_hh_l2_reverse + 1)


def exchanged(module: Any) -> None:
    first, second = module.weight_hh_l0, module.weight_hh_l0_reverse
    module.weight_hh_l0, module.weight_hh_l0_reverse = second, first


def tied_and_untied(module: Any) -> None:
    module.weight_hh_l0_reverse = module.weight_hh_l0
    module(torch.randn(2, 13, 5))
    module.weight_hh_l0_reverse = nn.Parameter(module.weight_hh_l0 * 2)


def loaded(module: Any) -> None:
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()})


def assigned(module: Any) -> None:
    module.load_state_dict({k: v * 0.5 for k, v in module.state_dict().items()}, assign=True)


def cast_and_cast_back(module: Any) -> None:
    module.double()
    module(torch.randn(2, 13, 5).double())
    module.weight_hh_l1.mul_(0.5)
    module.float()


CHANGES: tuple[Callable[[Any], None], ...] = (
    in_place,
    through_data,
    new_data,
    turned_data,
    new_parameter,
    exchanged,
    tied_and_untied,
    loaded,
    assigned,
    cast_and_cast_back,
)


@pytest.mark.parametrize(
    ("change", "precision"),
    [
        *((change, "float32") for change in CHANGES),
        *(
            pytest.param(change, "int8", marks=reduced)
            for change in CHANGES
            if change is not cast_and_cast_back
        ),
    ],
)
def test_changed_weights_of_a_stack_are_never_stale(
    change: Callable[[Any], None], precision: Precision
) -> None:
    module, x = example("GRU")
    k2t.set_precision(module, precision)
    with torch.no_grad():
        before = module(x)
        change(module)
        after = module(x)
        fresh = STACKS["GRU"](5, 5, len(NARROW), merge_mode=NARROW, batch_first=True).eval()
        fresh.load_state_dict({k: v.clone().contiguous() for k, v in module.state_dict().items()})
        k2t.set_precision(fresh, precision)
        with one_by_one():
            wanted = fresh(x)
    assert not torch.equal(before[0], after[0])
    assert_same_bits(after, wanted)


def test_lazily_negated_weights_are_read_with_their_sign() -> None:
    module, x = example("GRU")
    with torch.no_grad():
        module(x)
        weight = module.weight_hh_l1.data
        module.weight_hh_l1.data = torch._neg_view(weight)
        got = module(x)[0]
        module.weight_hh_l1.data = -weight
        torch.testing.assert_close(got, module(x)[0], rtol=0, atol=1e-6)


def test_weights_that_change_while_they_are_packed_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, x = example()
    real = packing.cached_pack

    def changing(*given: Any, **options: Any) -> Any:
        packed = real(*given, **options)
        module.weight_hh_l0.add_(0.001)  # as another thread would, before the kernel compares
        return packed

    with torch.no_grad():
        before = module(x)[0]
        module.weight_hh_l0.add_(0.001)
        monkeypatch.setattr(program, "cached_pack", changing)
        between = module(x)[0]
        monkeypatch.undo()
        after = module(x)[0]
        assert not torch.equal(before, after)
        torch.testing.assert_close(between, after, rtol=0, atol=0.01)
        with one_by_one():
            assert torch.equal(after, module(x)[0])


def test_packed_weights_of_a_stack_go_with_the_memory_that_they_were_made_of() -> None:
    module, x = example()
    with torch.no_grad():
        module(x)
        at_once = module._at_once._stack
        assert at_once._packed
        module.double()
        gc.collect()
        assert not at_once._packed
        module.float()
        got = module(x)
        with one_by_one():
            assert_same_bits(got, module(x))


# ---- what runs one by one -----------------------------------------------------------------------


def test_copies_and_pickles_prepare_their_own() -> None:
    module, x = example()
    with torch.no_grad():
        wanted = module(x)
        for other in (deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert other._at_once is None
            assert_same_bits(other(x), wanted)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


@pytest.mark.parametrize("called", [True, False])
def test_computed_weights_are_computed_for_every_call(called: bool) -> None:
    module, x = example()
    with torch.no_grad():
        before = (module if called else deepcopy(module))(x)[0]
        parametrize.register_parametrization(module, "weight_hh_l1", Twice())
        with counting() as counts:
            after = module(x)[0]
            module.parametrizations.weight_hh_l1.original.mul_(0.5)
            again = module(x)[0]
    assert counts == []
    assert not torch.equal(before, after)
    torch.testing.assert_close(again, before)


def test_weights_of_a_functional_call_are_used() -> None:
    module, x = example()
    weights = {name: p.detach() * 0.5 for name, p in module.named_parameters()}
    with torch.no_grad():
        before = module(x)[0]
        got = functional_call(module, weights, (x,))
        assert torch.equal(module(x)[0], before)
        module.load_state_dict(weights)
        assert_same_bits(got, module(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_tangents_of_weights_at_known_addresses_are_not_lost() -> None:
    """Those of plain tensors, which torch's own check of tensors does not tell apart."""
    module, x = example()
    weights = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad(), forward_ad.dual_level():
        plain, _ = (functional_call(module, weights, (x,))[0] for _ in range(2))
        dual = {k: forward_ad.make_dual(w, torch.ones_like(w)) for k, w in weights.items()}
        value, tangent = forward_ad.unpack_dual(functional_call(module, dual, (x,))[0])
        step = {name: w + 1e-3 for name, w in weights.items()}
        moved = functional_call(module, step, (x,))[0]
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(tangent, (moved - plain) / 1e-3, rtol=0.05, atol=1e-2)


def test_training_and_gradients_go_layer_by_layer() -> None:
    module, x = example()
    with counting() as counts:
        assert module(x)[0].requires_grad
        with torch.no_grad():
            module.train()(x)
        module.eval().requires_grad_(False)
        assert module(x.clone().requires_grad_())[0].requires_grad
        assert counts == []
        module(x)  # nothing to record
        assert counts == [3]


def test_another_engine_runs_its_own_way() -> None:
    module, x = example()
    with torch.no_grad(), counting() as counts:
        for engine in ("torch", "fused", "loop"):
            k2t.set_engine(module, engine)
            module(x)
        assert counts == []
        k2t.set_engine(module, "native")
        module(x)
    assert counts == [3]


def test_what_does_not_fit_a_stack_is_refused_as_ever() -> None:
    module, x = example()
    with torch.no_grad():
        module(x)
        with pytest.raises(UsageError, match=r"an input \(batch, time, 5\) is expected"):
            module(torch.randn(2, 13, 7))
        with pytest.raises(UsageError, match=r"torch\.float32 is expected, which the weights have"):
            module(x.double())


# ---- converted models ---------------------------------------------------------------------------


def deep_model(*, last: bool = False, masking: bool = False, **options: Any) -> Any:
    """Three recurrent layers with what only training sees between them."""
    given = {**SEQUENCES, **options}
    return model_of(
        *[layer("Masking", mask_value=0.0)] * masking,
        two("LSTM", F, "mul", **given),
        layer("Dropout", rate=0.5),
        rnn("GRU before", 11, H, seed=3, **given),
        layer("SpatialDropout1D", rate=0.5),
        layer("GaussianNoise", stddev=0.5),
        two("GRU", 11, "ave", **{**given, "return_sequences": not last}),
        dense(7, H),
    )


def check_chain(model: Any, *inputs: Tensor, counts: list[int]) -> None:
    """The layers at once and one by one, twice each: stateful layers go on."""
    for precision in PRECISIONS:
        k2t.set_precision(model, precision)
        with torch.no_grad():
            reset_states(model)
            with counting() as found:
                got = [model(x) for x in inputs for _ in range(2)]
            assert found == counts * 2 * len(inputs)
            reset_states(model)
            with one_by_one():
                wanted = [model(x) for x in inputs for _ in range(2)]
        for a, b in zip(got, wanted, strict=True):
            assert_same_bits(a, b)
    k2t.set_precision(model, "float32")


@pytest.mark.parametrize("rule", ["zeros", "previous_output", "previous_state"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mask", ["none", "right", "gaps"])
def test_a_converted_chain_at_once_is_its_layers(rule: str, last: bool, mask: str) -> None:
    torch.manual_seed(0)
    model = deep_model(last=last, masking=mask != "none", masked_output=rule)
    x = torch.randn(3, 13, F)
    if (valid := mask_of(mask, 3, 13)) is not None:
        x = x * valid[..., None]
    check_chain(model, x, x[:1], counts=[3])


def test_states_are_carried_through_a_chain() -> None:
    model = deep_model(stateful=True)
    check_chain(model, torch.randn(3, 13, F), counts=[3])
    with torch.no_grad(), pytest.raises(UsageError, match="carries the states of 3 rows"):
        model(torch.randn(2, 13, F))


def test_a_masked_step_of_stateful_layers_keeps_their_states() -> None:
    model = deep_model(stateful=True, masking=True)
    check_chain(model, torch.randn(3, 13, F), counts=[])


def test_chunks_of_a_long_sequence_are_the_whole() -> None:
    specs = [rnn("LSTM", 7, F, **SEQUENCES), rnn("GRU", H, 7, seed=1, **SEQUENCES)]
    whole = model_of(*specs)
    parts = model_of(*(with_options(spec, stateful=True) for spec in specs))
    x = torch.randn(2, 997, F)
    with torch.no_grad(), counting() as counts:
        wanted, got = whole(x), torch.cat([parts(chunk) for chunk in x.split(100, dim=1)], dim=1)
    assert counts == [2] * 11
    # Products of other numbers of rows add up in another order.
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("turned", [(True, False), (False, True), (True, True)])
def test_layers_that_read_from_the_end_are_part_of_a_chain(turned: tuple[bool, bool]) -> None:
    specs = [
        rnn("LSTM", 7, F, go_backwards=turned[0], **SEQUENCES),
        rnn("GRU", H, 7, seed=1, go_backwards=turned[1], **SEQUENCES),
    ]
    check_chain(model_of(*specs), torch.randn(3, 13, F), counts=[2])
    masked = model_of(layer("Masking", mask_value=0.0), *specs)
    check_chain(masked, torch.randn(3, 13, F), counts=[])


@pytest.mark.parametrize("place", [0, 1])
def test_a_half_that_loses_valid_steps_under_a_mask_is_last_in_its_chain(place: int) -> None:
    """As the backward half of Keras with unroll=True does, which does not reverse its mask."""
    specs = [two("LSTM", F, "sum", **SEQUENCES), two("GRU", H, "mul", **SEQUENCES)]
    ahead = rnn("GRU", features=[F, H][place], seed=1, **SEQUENCES)
    specs[place] = bi(ahead, with_options(ahead, masked_output="zeros_unreversed"), "sum")
    x = torch.randn(3, 13, F)
    check_chain(model_of(*specs), x, counts=[2])
    masked = model_of(layer("Masking", mask_value=0.0), *specs)
    valid = mask_of("gaps", 3, 13)
    assert valid is not None
    check_chain(masked, x * valid[..., None], counts=[2] if place else [])


def test_a_layer_whose_output_others_read_ends_its_chain() -> None:
    specs = [
        layer("InputLayer", "x", shape=(None, F)),
        replace(two("LSTM", F, "sum", **SEQUENCES), name="first"),
        replace(two("GRU", H, "sum", **SEQUENCES), name="second"),
        replace(two("GRU", H, "mul", **SEQUENCES), name="third"),
        layer("Add", "add", masking="all"),
    ]
    first, second, third = (TensorRef(name) for name in ("first", "second", "third"))
    calls = [
        Call("first", 0, (TensorRef("x"),)),
        Call("second", 0, (first,)),
        Call("third", 0, (second,)),
        Call("add", 0, ((first, third),)),
    ]
    spec = functional(specs, calls, (TensorRef("x"),), TensorRef("add"))
    model = build(ModelSpec(spec, TF_KERAS), dtype="float32")
    check_chain(model, torch.randn(3, 13, F), counts=[1, 2])


def test_a_layer_that_is_called_twice_runs_twice() -> None:
    specs = [
        layer("InputLayer", "x", shape=(None, H)),
        replace(two("GRU", H, "sum", return_sequences=True, stateful=True), name="again"),
    ]
    calls = [Call("again", 0, (TensorRef("x"),)), Call("again", 1, (TensorRef("again"),))]
    spec = functional(specs, calls, (TensorRef("x"),), TensorRef("again", 1))
    model = build(ModelSpec(spec, TF_KERAS), dtype="float32")
    check_chain(model, torch.randn(3, 13, H), counts=[1, 1])


def test_layers_the_kernel_cannot_run_are_no_part_of_a_chain() -> None:
    halves = (rnn("LSTM", H, H, **SEQUENCES), rnn("GRU", 11, H, seed=1, **SEQUENCES))
    specs = [two("LSTM", F, "sum", **SEQUENCES), bi(*halves), rnn("GRU", 7, H + 11, **SEQUENCES)]
    check_chain(model_of(*specs), torch.randn(3, 13, F), counts=[1, 1])


def test_hooks_of_the_layers_fire() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    seen: list[Any] = []
    first, dropout = model.get_submodule(f"bi_{F}_mul"), model.get_submodule("Dropout")
    with torch.no_grad(), counting() as counts:
        wanted = model(x)
        for module in (first, dropout):
            handle = module.register_forward_hook(lambda *given: seen.append(given[2]))
            assert_same_bits(model(x), wanted)
            handle.remove()
        handle = nn.modules.module.register_module_forward_pre_hook(
            lambda module, _: seen.append(module)
        )
        assert_same_bits(model(x), wanted)
        handle.remove()
        assert counts == [3]
        assert len(seen) > 7
        assert seen[0].shape == seen[1].shape == (3, 13, H)
        assert_same_bits(model(x), wanted)
        assert counts == [3, 3]


@reduced
def test_layers_of_one_reduced_precision_run_at_once() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    with torch.no_grad(), counting() as counts:
        exact = model(x)
        for precision in PRECISIONS[1:]:
            k2t.set_precision(model, precision)
            got = model(x)
            with one_by_one():
                assert_same_bits(got, model(x))
            assert not torch.equal(got, exact)
        k2t.set_precision(model, "float32")
        assert_same_bits(model(x), exact)
    assert counts == [3] * 4


@reduced
def test_layers_of_several_precisions_run_one_by_one() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    k2t.set_precision(model.get_submodule(f"bi_{F}_mul"), "int8")
    with torch.no_grad(), counting() as counts:
        got = model(x)
        with one_by_one():
            assert_same_bits(got, model(x))
    assert not counts


@reduced
def test_reduced_precision_of_weights_that_it_cannot_read_is_refused() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    module, sequence = example("GRU")
    for one, inputs in ((model, x), (module, sequence)):
        k2t.set_precision(one, "int8")
        with torch.no_grad(), pytest.raises(UsageError, match=r"found torch\.float64 on cpu"):
            one.double()(inputs.double())
        with pytest.raises(UsageError, match="there is no gradient"):
            one.float()(inputs)


def test_a_layer_in_training_mode_drops_inside_a_model_in_evaluation_mode() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    with torch.no_grad(), counting() as counts:
        wanted = model(x)
        model.get_submodule("Dropout").train()
        assert not torch.equal(model(x), wanted)
        model.eval()
        assert_same_bits(model(x), wanted)
    assert counts == [3, 3]


def test_the_graph_of_a_model_keeps_every_layer() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    assert [node.op for node in model.graph.nodes].count("call_module") == 8
    with torch.no_grad():
        wanted = model(x)
        with counting() as counts:
            assert_same_bits(fx.Interpreter(model).run(x), wanted)
            assert counts == []
            assert_same_bits(deepcopy(model)(x), wanted)
            assert counts == [3]
            again = pickle.loads(pickle.dumps(model))
            assert_same_bits(again(x), wanted)
            assert counts == [3, 3]


def test_a_changed_graph_is_what_runs() -> None:
    model, x = deep_model(), torch.randn(3, 13, F)
    with torch.no_grad():
        before = model(x)
        (noise,) = (node for node in model.graph.nodes if node.target == "GaussianNoise")
        with model.graph.inserting_after(noise):
            doubled = model.graph.call_function(torch.mul, (noise, 2.0))
        noise.replace_all_uses_with(doubled)
        doubled.args = (noise, 2.0)
        model.recompile()
        with counting() as counts:
            after = model(x)
        assert counts == [2, 1]
        assert not torch.equal(before, after)
        assert_same_bits(after, fx.Interpreter(model).run(x))


def test_a_chain_ends_where_the_mask_does() -> None:
    given = {"return_sequences": True, "masked_output": "previous_output"}
    model = model_of(
        layer("Masking", mask_value=0.0),
        two("LSTM", F, "sum", **given),
        layer("Identity", passes_mask=False),
        rnn("GRU", 7, H, seed=1, **given),
    )
    x = torch.randn(3, 13, F) * (torch.rand(3, 13, 1) < 0.6)
    check_chain(model, x, counts=[1, 1])


def test_a_changed_merge_mode_is_that_of_the_next_call() -> None:
    module, x = example()
    with torch.no_grad():
        before = module(x)[0]
        module.merge_mode = tuple(NARROW[::-1])
        after = module(x)[0]
        with one_by_one():
            assert torch.equal(after, module(x)[0])
    assert not torch.equal(before, after)


def test_another_module_with_the_same_parameters_is_what_runs() -> None:
    model = model_of(two("LSTM", F, "sum", **SEQUENCES))
    other = model_of(two("LSTM", F, "mul", **SEQUENCES)).get_submodule(f"bi_{F}_mul")
    own = model.get_submodule(f"bi_{F}_sum")
    for name, parameter in own.named_parameters():
        setattr(other, name, parameter)
    for name, buffer in own.named_buffers():
        setattr(other, name, buffer)
    x = torch.randn(3, 13, F)
    with torch.no_grad():
        before = model(x)
        setattr(model, f"bi_{F}_sum", other)
        after = model(x)
        with one_by_one():
            assert torch.equal(after, model(x))
    assert not torch.equal(before, after)
