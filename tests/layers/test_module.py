"""A converted model is an ordinary module: it is copied, cast, trained, compiled and exported."""

from __future__ import annotations

import keyword
import pickle
import re
from copy import deepcopy
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from same_models import assert_same_outputs, assert_same_weights
from sampling import examples, rest_thorough
from specs import (
    KERAS3,
    B,
    F,
    Fixture,
    H,
    T,
    bi,
    chain,
    dense,
    fixture,
    read_entry,
    rnn,
    values,
)
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.attention import Attention
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.core import (
    PReLU,
    ThresholdedReLU,
)
from keras2torch_birnn.layers.model_graph import attribute_names
from keras2torch_birnn.layers.preprocessing import Rescaling
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.spec import Call, LayerSpec, ModelSpec, TensorRef
from keras2torch_birnn.verification import verify

FUSED = "tf.keras-2.15.0/bi_lstm_concat_seq.h5"
MASKED = "keras-3.15.1/mask_bi_lstm_seq.h5"
LOOP = "tf.keras-2.15.0/bi_gru_before_concat_seq.h5"
MASKED_LOOP = "keras-2.2.4/mask_hard_sigmoid_gru.h5"
POOLED = "keras-3.15.1/mask_average_pool.keras"
STACK = "keras-3.15.1/mask_stack_bi_dense.h5"
KINDS = (FUSED, MASKED, LOOP, MASKED_LOOP, POOLED, STACK)


def inputs(case: Fixture) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x) for x in case.inputs[0])


def call(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return flat(model(*given))


def assert_same(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...], atol: float = 0.0) -> None:
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0, equal_nan=True)


# ---- copying, casting, modes -------------------------------------------------------------------


@pytest.mark.parametrize("file", KINDS)
def test_a_state_dict_goes_out_and_in(file: str) -> None:
    case = fixture(file)
    model, other = build(case.spec), build(read_entry(file))  # changed below
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    assert not torch.equal(call(other, inputs(case))[0], call(model, inputs(case))[0])
    other.load_state_dict(model.state_dict())
    assert_same_weights(other, model)
    assert_same_outputs(call(other, inputs(case)), call(model, inputs(case)))


@pytest.mark.parametrize("file", KINDS)
def test_a_deep_copy_is_a_whole_model_of_its_own(file: str, tmp_path: Path) -> None:
    case = fixture(file)
    model = build_model(read_entry(file))
    wanted = call(model, inputs(case))
    copy = deepcopy(model)
    assert_same_weights(copy, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same_outputs(call(copy, inputs(case)), wanted)
    assert origin(copy).spec == origin(model).spec
    k2t.save(copy, tmp_path / "copy.pt")
    loaded = k2t.load(tmp_path / "copy.pt")
    assert_same_weights(loaded, copy)
    assert_same_outputs(call(loaded, inputs(case)), wanted)
    assert verify(tmp_path / "copy.pt").ok


@pytest.mark.parametrize("file", KINDS)
def test_a_model_can_be_cast_and_cast_back(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    wanted = call(model, inputs(case))
    double = tuple(x.double() if x.is_floating_point() else x for x in inputs(case))
    got = call(model.to(torch.float64), double)
    assert all(y.dtype == torch.float64 for y in got)
    assert_same(tuple(y.float() for y in got), wanted, atol=1e-6)
    assert_same_outputs(call(model.to(torch.float32), inputs(case)), wanted)
    assert_same_weights(model, build(case.spec))


def test_train_and_eval_reach_every_layer() -> None:
    case = fixture("keras-3.15.1/dropouts.keras")
    model = build(case.spec)
    assert not any(module.training for module in model.modules())
    wanted = call(model, inputs(case))
    torch.manual_seed(3)
    trained = call(model.train(), inputs(case))
    assert all(module.training for module in model.modules())
    assert (trained[0] - wanted[0]).abs().max() > 1e-3
    assert_same(call(model.eval(), inputs(case)), wanted)


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [FUSED, MASKED, LOOP, MASKED_LOOP, STACK])
def test_steps_of_an_optimizer_lower_the_loss(file: str) -> None:
    case = fixture(file)
    model, given = build(read_entry(file)).train(), inputs(case)
    torch.manual_seed(5)
    target = torch.randn_like(flat(model(*given))[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (flat(model(*given))[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert all((p.grad is not None) is p.requires_grad for p in model.parameters())


# ---- compiling and exporting -------------------------------------------------------------------

# Any nn.LSTM sets its list of weights while it is exported, and torch warns of that itself.
FLAT_WEIGHTS = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self.*_flat_weights:UserWarning"
)


# Its graph breaks, and its cells of several kinds share the compiled code of a call.
CELLS = "keras-3.15.1/arch_reader.h5"


@pytest.mark.parametrize("file", rest_thorough([MASKED, CELLS], (MASKED,)))
def test_a_compiled_model_gives_the_same(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    compiled = torch.compile(model, backend="eager", fullgraph=False)
    assert_same(call(compiled, inputs(case)), call(model, inputs(case)), atol=1e-6)
    torch._dynamo.reset()


# Masks, models inside, initial states, a loop of hard_sigmoid, merges, several dtypes, and
# BatchNormalization around recurrent layers.
VARIED = (
    MASKED,
    "keras-3.15.1/graph_nested_twice.keras",
    "tf.keras-2.15.0/graph_seq2seq_bi.h5",
    MASKED_LOOP,
    "keras-2.2.4/merge_values.h5",
    "tf.keras-2.15.0/dtypes_of_layers.h5",
    "keras-3.15.1/dtypes_whole_3.h5",
    "tf.keras-2.15.0/arch_deep_speech.keras",
)


@pytest.mark.every(5)
@pytest.mark.parametrize(
    ("file", "backend"), [*zip(VARIED[:6], cycle(["aot_eager", "eager"]), strict=False)]
)
def test_a_model_compiles_to_one_graph(file: str, backend: str) -> None:
    """Also what holds an ``nn.LSTM``, if torch is told to let those in."""
    case = fixture(file)
    model = build(case.spec)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        assert_same(call(compiled, inputs(case)), call(model, inputs(case)), atol=1e-6)
    torch._dynamo.reset()


# Models as the first four are exported for any size in tests/exporting/test_torch_tools.py.
@FLAT_WEIGHTS
@pytest.mark.every(4)
@pytest.mark.parametrize("file", VARIED[4:])
def test_an_exported_model_gives_the_same(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    wanted = call(model, inputs(case))
    exported = torch.export.export(model, inputs(case)).module()
    assert_same(call(exported, inputs(case)), wanted, atol=1e-6)


# Functions that ask for shapes; one whose result depends on them; models inside; a chain.
PICKLED = (
    "tf_keras-2.21.0/arch_seq2seq_luong.weights.h5",
    "tf.keras-2.15.0/td_td_model.h5",
    "keras-3.15.1/arch_multi_head.h5",
    "keras-3.15.1/graph_nested_twice.keras",
    MASKED,
)


@pytest.mark.parametrize("file", PICKLED)
def test_a_model_can_be_pickled(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    other = pickle.loads(pickle.dumps(model))
    assert_same_weights(other, model)
    assert_same_outputs(call(other, inputs(case)), call(model, inputs(case)))
    assert type(other).__mro__[1:] == type(model).__mro__[1:]
    assert (repr(other), other.code, other.meta) == (repr(model), model.code, model.meta)
    assert [*other.state_dict()] == [*model.state_dict()]


def test_a_pickle_keeps_what_was_set() -> None:
    model = build(fixture(MASKED).spec).train()
    model.remark = "mine"
    next(model.parameters()).requires_grad_(False)
    other = pickle.loads(pickle.dumps(model))
    assert other.training
    assert other.remark == "mine"
    wanted = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in other.parameters()] == wanted


# ---- reading it --------------------------------------------------------------------------------


def test_the_printed_model_and_its_code_speak_keras_names() -> None:
    case = fixture("keras-3.15.1/named.keras")
    model = build(case.spec)
    for name in ("zz_first", "aa_second", "mm_third"):
        assert f"({name}): " in repr(model)
        assert f"self.{name}(" in model.code
    assert type(model).__name__ == "encoder"
    assert "merge_mode='concat', return_sequences=True" in repr(model)
    lines = [line for line in model.code.splitlines() if line.strip()]
    assert len(lines) <= 8


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (Attention(None, causal=True), "Attention(scale=None, causal=True)"),
        (PReLU(nn.Parameter(torch.ones(3, 5))), "PReLU(weight=(3, 5))"),
        (Rescaling(0.5, [1.0, 2.0]), "Rescaling(scale=0.5, offset=(2,))"),
        (ThresholdedReLU(0.7), "ThresholdedReLU(theta=0.7)"),
    ],
)
def test_a_printed_layer_shows_its_options(module: nn.Module, shown: str) -> None:
    assert repr(module) == shown


def test_a_nested_models_layers_stand_under_its_name() -> None:
    model = build(fixture("keras-3.15.1/nested.h5").spec)
    names = {name for name, _ in model.named_modules()}
    assert {"sequential_1.bidirectional", "sequential_1.dense"} <= names
    assert "self.sequential_1.bidirectional(" in model.code


def test_options_that_change_the_numbers_are_printed() -> None:
    shown = repr(build(fixture("keras-2.2.4/mask_hard_sigmoid_gru.h5").spec))
    assert "recurrent_activation=hard_sigmoid_0.2" in shown
    assert "reset_after=False" in shown
    assert "padding=causal" in repr(build(fixture("keras-2.2.4/conv.h5").spec))


# ---- names -------------------------------------------------------------------------------------

HOSTILE = [
    "forward", "class", "a/b", "a_b", "a.b", "1x", "__init__", "__class__", "", "_", "слой",
    "import os; os.system('x')", "training", "graph", "code", "meta", "self", "Self", "_self",
    "None", "x\ny", "\x00", "a" * 300, "add_module", "_modules", "layer_", "layer__", "a_b_",
    "eval", "print", "torch", "slice", "device", "inf", "nan", "fx_pytree", "getitem",
    "operator_getitem", "NoneType", "add", "output", "placeholder", "recompile", "to_folder",
    "add_submodule", "a\u0431b",
]  # fmt: skip
SAFE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def check_names(names: list[str]) -> None:
    made = attribute_names(names)
    assert list(made) == names
    assert len(set(made.values())) == len(names)
    for attribute in made.values():
        assert SAFE.fullmatch(attribute)
        assert not keyword.iskeyword(attribute)
        assert not hasattr(nn.Module(), attribute)
        assert not hasattr(torch.fx.GraphModule, attribute)
        assert attribute not in {"torch", "slice", "getattr"}, "the code of fx reads these"


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8)), unique=True))
@example(HOSTILE)
@example(["a/b", "a.b", "a_b", "a_b_", "a b"])
@example(["a_b_", "a_b", "a.b"])
def test_every_name_becomes_a_safe_attribute_of_its_own(names: list[str]) -> None:
    check_names(names)


def test_ordinary_names_stay_as_they_are() -> None:
    names = ["lstm", "bidirectional_1", "Dense", "zz", "my_layer_"]
    assert attribute_names(names) == {name: name for name in names}


def named(names: list[str]) -> LayerSpec:
    """A stack of Dense layers with these names."""
    layers = [replace(dense(5, 5, seed=i), name=name) for i, name in enumerate(names)]
    return chain(*layers, name="stack")


def test_hostile_names_of_a_model_and_of_its_input_change_nothing() -> None:
    root, x = named(["first", "dense"]), torch.from_numpy(values(B, 5))
    before = ModelSpec(root, KERAS3).graph
    wanted = call(build(ModelSpec(root, KERAS3)), (x,))
    for name in HOSTILE:
        swap = TensorRef(name)
        graph = replace(
            before,
            layers=(replace(before.layers[0], name=name), *before.layers[1:]),
            calls=(
                Call(name, 0, ()),
                Call("first", 0, (swap,)),
                Call("dense", 0, (TensorRef("first"),)),
            ),
            inputs=(swap,),
        )
        model = build(ModelSpec(replace(root, name=name, graph=graph), KERAS3))
        assert type(model).__name__.isidentifier(), name
        assert_same_outputs(call(deepcopy(model), (x,)), wanted)


# ---- the GPU -----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("file", KINDS)
def test_a_model_moves_to_a_gpu_and_back(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    wanted = call(model, inputs(case))
    on_gpu = call(model.to("cuda"), tuple(x.cuda() for x in inputs(case)))
    assert all(y.is_cuda for y in on_gpu)
    assert_same(call(model.to("cpu"), inputs(case)), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "SimpleRNN"])
def test_a_model_trains_on_a_gpu(cell: str) -> None:
    spec = chain(bi(rnn(cell), rnn(cell, seed=1)), dense(5, 2 * H, seed=2))
    model = build(ModelSpec(spec, KERAS3), dtype="float32").cuda().train()
    x = torch.from_numpy(values(B, T, F)).float().cuda()
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
