"""Code written for nn.LSTM, nn.GRU and nn.RNN runs: arguments, attributes, errors."""

from __future__ import annotations

import doctest
import inspect
import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kernel_layers import both, half, native
from specs import KERAS3, bi, chain, dense, rnn, values
from specs import layer as layer_spec
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.recurrent import bidirectional as converted_pair
from keras2torch_birnn.layers.recurrent import recurrent as converted
from keras2torch_birnn.rnn import bidirectional, modules
from keras2torch_birnn.rnn.activations import FUNCTIONS
from keras2torch_birnn.schema.custom_layers import naming_plugin
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import LayerSpec, ModelSpec

PAIRS: list[tuple[Any, Any]] = [(k2t.BiLSTM, nn.LSTM), (k2t.BiGRU, nn.GRU), (k2t.BiRNN, nn.RNN)]
OURS = [ours for ours, _ in PAIRS]
F, H, T, B = 5, 7, 11, 3
HERE = Path(__file__).name


# ---- arguments ---------------------------------------------------------------------------------


# As the overloads of torch's constructors declare them, up to device and dtype.
POSITIONS = {
    k2t.BiLSTM: "num_layers bias batch_first dropout bidirectional proj_size",
    k2t.BiGRU: "num_layers bias batch_first dropout bidirectional",
    k2t.BiRNN: "num_layers nonlinearity bias batch_first dropout bidirectional",
}


@pytest.mark.parametrize("ours", OURS)
def test_positional_arguments_stand_in_torchs_order(ours: Any) -> None:
    parameters = inspect.signature(ours).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["input_size", "hidden_size", *POSITIONS[ours].split()]
    assert {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} > {"merge_mode", "device"}


def test_the_fourth_argument_of_an_rnn_is_its_nonlinearity() -> None:
    theirs = nn.RNN(F, H, 2, "relu", False, True, 0.0, True)
    rnn = k2t.BiRNN(F, H, 2, "relu", False, True, 0.0, True)
    rnn.load_state_dict(theirs.state_dict())
    x = torch.randn(B, T, F)
    with torch.no_grad():
        torch.testing.assert_close(rnn(x)[0], theirs(x)[0], rtol=0, atol=2e-6)
    assert (rnn.nonlinearity, rnn.mode, rnn.bias) == ("relu", theirs.mode, False)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "tanh"),
        ({"nonlinearity": "relu"}, "relu"),
        ({"activation": "relu"}, "relu"),
        ({"nonlinearity": "relu", "activation": "relu"}, "relu"),
        ({"activation": "softsign"}, "softsign"),
    ],
)
def test_nonlinearity_and_activation_name_the_same(options: dict[str, str], name: str) -> None:
    rnn = k2t.BiRNN(F, H, **options)
    assert rnn.activation == rnn.nonlinearity == name
    assert rnn.mode == f"RNN_{name.upper()}"
    x = torch.randn(1, B, F)
    function = FUNCTIONS[name]
    halves = [
        function(x[0] @ rnn.weight_ih_l0.T + rnn.bias_ih_l0 + rnn.bias_hh_l0),
        function(
            x[0] @ rnn.weight_ih_l0_reverse.T + rnn.bias_ih_l0_reverse + rnn.bias_hh_l0_reverse
        ),
    ]
    torch.testing.assert_close(rnn(x)[0][0], torch.cat(halves, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("ours", "given", "text"),
    [
        (k2t.BiRNN, (2, True), "nonlinearity=True: .* bias is the fifth argument, as in nn.RNN"),
        (k2t.BiRNN, (2, "elu"), 'nonlinearity=\'elu\': "tanh" or "relu" is expected'),
        (k2t.BiRNN, (2, "tanh", "no"), "bias='no': True or False is expected"),
        (k2t.BiLSTM, (2, "relu"), "bias='relu': True or False is expected"),
        (k2t.BiGRU, (2, True, 1), "batch_first=1: True or False is expected"),
        (k2t.BiGRU, (2, True, True, 0.0, "yes"), "bidirectional='yes': True or False"),
        (k2t.BiGRU, (2, True, True, True), "dropout=True: a rate between 0 and 1"),
        (k2t.BiGRU, (2, True, True, "half"), "dropout='half': a rate between 0 and 1"),
        (k2t.BiGRU, (True,), "num_layers=True: a whole number"),
        (k2t.BiLSTM, (2, True, True, 0.0, True, 3), "proj_size=3: Keras has no projections"),
    ],
)
def test_positional_arguments_of_another_kind_are_refused(
    ours: Any, given: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(k2t.UsageError, match=text):
        ours(F, H, *given)


WHOLE = "a whole number of at least 1"
MODES = f"one of {', '.join(MERGE_MODES)} or None"
ENGINES = "one of auto, torch, fused, loop, native"
REFUSED: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
    ({"input_size": 0}, ValueError, f"input_size=0: {WHOLE}"),
    ({"hidden_size": 0}, ValueError, f"hidden_size=0: {WHOLE}"),
    ({"hidden_size": 7.0}, TypeError, rf"hidden_size=7\.0: {WHOLE}"),
    ({"num_layers": True}, TypeError, f"num_layers=True: {WHOLE}"),
    ({"num_layers": 2.0}, TypeError, rf"num_layers=2\.0: {WHOLE}"),
    ({"bias": 1}, TypeError, "bias=1: True or False"),
    ({"reset_after": 1}, TypeError, "reset_after=1: True or False"),
    ({"bidirectional": False}, ValueError, "bidirectional=False: there is nothing to merge"),
    ({"proj_size": 3}, ValueError, "proj_size=3: Keras has no projections"),
    ({"dropout": "high"}, TypeError, "dropout='high': a rate"),
    ({"dropout": 1.5}, ValueError, r"dropout=1\.5: a rate between 0 and 1"),
    ({"merge_mode": 3}, TypeError, "merge_mode=3: a mode, or a list of modes"),
    ({"merge_mode": [["sum"]]}, ValueError, r"merge_mode=\['sum'\]: one of"),
    ({"merge_mode": "average"}, ValueError, f"merge_mode='average': {MODES}"),
    ({"merge_mode": ["sum", "sum"]}, ValueError, "merge_mode: 2 modes for 1 layers"),
    ({"merge_mode": ["sum"], "num_layers": 2}, ValueError, "merge_mode: 1 modes for 2 layers"),
    ({"merge_mode": None, "num_layers": 2}, ValueError, "only the last layer may keep both"),
    ({"activation": None}, ValueError, "activation None: one of linear"),
    ({"activation": ["tanh"]}, ValueError, r"activation \['tanh'\]: one of linear"),
    ({"activation": "hard_sigmoid"}, ValueError, "hard_sigmoid means two things"),
    ({"recurrent_activation": "sigma"}, ValueError, "activation 'sigma': one of"),
    (
        {"nonlinearity": "relu", "activation": "tanh"},
        ValueError,
        "nonlinearity='relu' and activation='tanh': both name the same; give one of them",
    ),
    ({"engine": "warp"}, ValueError, f"engine=warp: {ENGINES}"),
)


@pytest.mark.parametrize(("options", "kind", "text"), REFUSED, ids=[row[-1] for row in REFUSED])
def test_a_wrong_argument_is_a_usage_error_and_one_of_pythons_own(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    owners = {"reset_after": k2t.BiGRU, "nonlinearity": k2t.BiRNN}
    ours: Any = next((owners[name] for name in options if name in owners), k2t.BiLSTM)
    with pytest.raises(k2t.UsageError, match=text) as refused:
        ours(**{"input_size": F, "hidden_size": H, **options})
    assert isinstance(refused.value, kind)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("role", ["activation", "recurrent_activation"])
def test_every_activation_that_is_accepted_runs(ours: Any, role: str) -> None:
    if role not in inspect.signature(ours).parameters:
        return
    x = torch.randn(3, B, F)
    for name in FUNCTIONS:
        output, _ = ours(F, H, **{role: name})(x)
        assert output.shape == (3, B, 2 * H), name


def test_the_examples_in_the_docstrings_are_true() -> None:
    found = doctest.testmod(bidirectional)
    assert found.attempted >= len(OURS)
    assert found.failed == 0


@pytest.mark.parametrize("ours", OURS)
def test_a_docstring_names_every_argument(ours: Any) -> None:
    text = inspect.getdoc(ours) or ""
    said = text[text.index("Args:") : text.index("Shape:")]
    for name in inspect.signature(ours).parameters:
        assert name in said
    for part in ("Inputs:", "Outputs:", "Raises:", "Example:"):
        assert part in text


def test_an_argument_of_several_stacks_has_one_type_default_and_text() -> None:
    facts: dict[str, set[Any]] = {}
    for ours in OURS:
        text = inspect.getdoc(ours) or ""
        entries = re.split(r"\n    (?=\w)", text[text.index("Args:") : text.index("\n\nShape:")])[
            1:
        ]
        parameters = inspect.signature(ours).parameters
        assert [one.split(":")[0] for one in entries] == list(parameters)
        for entry, (name, one) in zip(entries, parameters.items(), strict=True):
            own = name if name != "activation" or ours is not k2t.BiRNN else "activation of BiRNN"
            facts.setdefault(own, set()).add((one.annotation, one.default, one.kind))
            facts.setdefault(f"text of {name}", set()).add(entry)
    assert {name: len(found) for name, found in facts.items() if len(found) > 1} == {}


# ---- attributes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("bias", [True, False])
def test_attributes_are_those_of_torchs_layer(ours: Any, theirs: Any, bias: bool) -> None:
    options = {"bias": bias, "batch_first": True, "dropout": 0.5}
    right, rnn = theirs(F, H, 2, bidirectional=True, **options), ours(F, H, 2, **options)
    rnn.load_state_dict(right.state_dict())
    names = (
        "mode input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size"
    )
    for name in [*names.split(), *(["nonlinearity"] if theirs is nn.RNN else [])]:
        assert getattr(rnn, name) == getattr(right, name), name
        assert type(getattr(rnn, name)) is type(getattr(right, name)), name
    for mine, wanted in (
        (rnn.all_weights, right.all_weights),
        ([rnn._flat_weights], [right._flat_weights]),
    ):
        assert [len(part) for part in mine] == [len(part) for part in wanted]
        for part, whole in zip(mine, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(part, whole, strict=True))
    assert rnn._flat_weights[0] is rnn.weight_ih_l0
    rnn.flatten_parameters()
    assert list(rnn.state_dict()) == list(right.state_dict())


def test_the_weights_that_are_listed_are_those_that_are_used() -> None:
    rnn = k2t.BiLSTM(F, H)
    x = torch.randn(T, B, F)
    before, _ = rnn(x)
    with torch.no_grad():
        rnn.all_weights[1][0].zero_()
    after, _ = rnn(x)
    assert torch.equal(before[..., :H], after[..., :H])
    assert not torch.equal(before[..., H:], after[..., H:])
    fresh = nn.Parameter(torch.zeros_like(rnn.weight_hh_l0))
    rnn.weight_hh_l0 = fresh
    assert rnn.all_weights[0][1] is fresh


# ---- states ------------------------------------------------------------------------------------


def test_initial_states_come_in_a_tuple_or_a_list() -> None:
    lstm, gru = k2t.BiLSTM(F, H, 2), k2t.BiGRU(F, H, 2)
    x, h, c = torch.randn(T, B, F), torch.randn(4, B, H), torch.randn(4, B, H)
    wanted, (h_wanted, c_wanted) = lstm(x, (h, c))
    output, (h_n, c_n) = lstm(x, [h, c])
    for a, b in ((output, wanted), (h_n, h_wanted), (c_n, c_wanted)):
        assert torch.equal(a, b)
    assert torch.equal(lstm(x[:, 1], [h[:, 1], c[:, 1]])[0], lstm(x[:, 1], (h[:, 1], c[:, 1]))[0])
    packed = pack_padded_sequence(x, torch.tensor([11, 6, 2]))
    assert torch.equal(lstm(packed, [h, c])[0].data, lstm(packed, (h, c))[0].data)
    assert torch.equal(gru(x, [h])[0], gru(x, h)[0])
    with pytest.raises(k2t.UsageError, match=r"hx: 2 tensor\(s\) of \[4, 3, 7\] expected"):
        lstm(x, [h])
    with pytest.raises(k2t.UsageError, match=r"found \[\[3\]\]; lengths of rows are lengths=$"):
        gru(x, torch.tensor([5, 2, 3]))


# ---- wrong inputs ------------------------------------------------------------------------------

NO_TENSOR = r"a torch\.Tensor of torch\.{} is expected"
OTHER_FLOATS = r"torch\.float32 is expected, which the weights have"
TO_FLOAT32 = r"use input\.to\(torch\.float32\)"
WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "array": (
        Tensor.numpy,
        NO_TENSOR.format("float32") + r", found numpy\.ndarray of float32; "
        r"use torch\.as_tensor\(\.\.\., dtype=torch\.float32\)",
    ),
    "list": (Tensor.tolist, NO_TENSOR.format("float32") + ", found list; use"),
    "nothing": (lambda x: None, NO_TENSOR.format("float32") + ", found NoneType"),
    "double": (
        Tensor.double,
        rf"{OTHER_FLOATS}, found torch\.float64; {TO_FLOAT32}, or module\.to\(torch\.float64\)",
    ),
    "whole numbers": (Tensor.long, rf"{OTHER_FLOATS}, found torch\.int64; {TO_FLOAT32}"),
}
each_wrong = pytest.mark.parametrize(("made", "text"), WRONG.values(), ids=WRONG)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("engine", ["auto", "torch", "loop"])
@each_wrong
def test_a_wrong_input_is_said_in_one_line(ours: Any, engine: Any, made: Any, text: str) -> None:
    rnn = ours(F, H, 2, batch_first=True, engine=engine)
    x = torch.randn(B, T, F)
    for training in (True, False):
        for options in ({}, {"mask": torch.ones(B, T, dtype=torch.bool)}):
            with pytest.raises(TypeError, match=f"^input: {text}") as found:
                rnn.train(training)(made(x), **options)
            assert isinstance(found.value, k2t.UsageError)
            assert "\n" not in str(found.value)


def test_wrong_states_and_masks_are_said_in_one_line() -> None:
    rnn = k2t.BiLSTM(F, H)
    x, h = torch.randn(T, B, F), torch.randn(2, B, H)
    mask: Any = np.ones((T, B), dtype=bool)
    with pytest.raises(TypeError, match=rf"mask: {NO_TENSOR.format('bool')}, found num"):
        rnn(x, mask=mask)
    states: Any = (h, h.numpy())
    with pytest.raises(TypeError, match=rf"hx: {NO_TENSOR.format('float32')}, found num"):
        rnn(x, states)
    with pytest.raises(TypeError, match=rf"hx: {OTHER_FLOATS}.*found torch\.float64; use hx"):
        rnn(x, (h, h.double()))
    packed = pack_padded_sequence(x.double(), torch.tensor([11, 6, 2]))
    with pytest.raises(TypeError, match=rf"input: {OTHER_FLOATS}.*found torch\.float64"):
        rnn(packed)


@pytest.mark.parametrize("engine", ["auto", "torch", "loop"])
def test_a_wrong_last_size_is_a_usage_error(engine: Any) -> None:
    rnn = k2t.BiGRU(F, H, 2, batch_first=True, engine=engine)
    for x in (torch.randn(B, T, F + 1), torch.randn(T, F + 1)):
        with pytest.raises(ValueError, match=r"an input \(batch, time, 5\) is expected") as found:
            rnn(x)
        assert isinstance(found.value, k2t.UsageError)
    with pytest.raises(k2t.UsageError, match="2 or 3 dimensions"):
        rnn(torch.randn(F))


CONVERTED: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: converted(half("LSTM", H, F, 1)),
    "GRU": lambda: converted(half("GRU", H, F, 1)),
    "SimpleRNN": lambda: converted(half("SimpleRNN", H, F, 1)),
    "loop": lambda: converted(half("GRU before", H, F, 1)),
    "bidirectional": lambda: converted_pair(both("LSTM", H, F, "sum")),
}


@pytest.mark.parametrize("kind", CONVERTED)
@each_wrong
def test_a_converted_layer_says_the_same(kind: str, made: Any, text: str) -> None:
    layer = CONVERTED[kind]()
    x = torch.randn(B, T, F)
    for options in ({}, {"mask": torch.rand(B, T) < 0.5}):
        with pytest.raises(TypeError, match=f"^input: {text}"):
            layer(made(x), **options)
    with pytest.raises(TypeError, match=rf"mask: {NO_TENSOR.format('bool')}, found lis"):
        layer(x, [[True] * T] * B)
    states = [torch.randn(B, H) for _ in range(4)]
    with pytest.raises(TypeError, match=rf"initial_state: {NO_TENSOR.format('float32')}"):
        layer(x, None, [s.numpy() for s in states])
    with pytest.raises(TypeError, match=rf"initial_state: {OTHER_FLOATS}"):
        layer(x, None, [s.double() for s in states])


@pytest.mark.parametrize("kind", CONVERTED)
def test_a_converted_layer_refuses_shapes_that_do_not_fit(kind: str) -> None:
    layer, x = CONVERTED[kind](), torch.randn(B, T, F)
    count = (2 if kind in ("LSTM", "bidirectional") else 1) * (2 if kind == "bidirectional" else 1)

    def refused(text: str, *given: Any) -> None:
        with pytest.raises(ValueError, match=text) as found:
            layer(*given)
        assert isinstance(found.value, k2t.UsageError)

    refused(r"^a mask \[3, 11\] is expected, found \[3, 10\]", x, torch.ones(B, T - 1))
    states = [torch.randn(B, H) for _ in range(count)]
    layer(x, None, states)
    wrong = [torch.randn(B, H - 1), *states[1:]]
    refused(r"^initial_state: a state \[3, 7\] is expected, found \[3, 6\]", x, None, wrong)
    refused(f"^initial_state: {count} states are expected, found", x, None, states * 2)


def test_states_that_two_directions_cannot_share_are_refused() -> None:
    layer, states = CONVERTED["bidirectional"](), [torch.randn(B, H)] * 3
    with pytest.raises(k2t.UsageError, match="as many states for each of 2 directions are expec"):
        layer(torch.randn(B, T, F), None, states)


@pytest.mark.parametrize("kind", CONVERTED)
def test_no_steps_have_outputs_but_no_last_output(kind: str) -> None:
    layer, x = CONVERTED[kind](), torch.randn(B, 0, F)
    assert layer(x).shape == (B, 0, H)
    layer.plan = replace(layer.plan, return_sequences=False)
    for given in ((x,), (x, torch.ones(B, 0, dtype=torch.bool))):
        with pytest.raises(ValueError, match="an input of no steps has no last output") as found:
            layer(*given)
        assert isinstance(found.value, k2t.UsageError)


def test_a_convolutional_layer_says_the_same() -> None:
    weights = {"kernel": values(3, 2, 20), "recurrent_kernel": values(3, 5, 20)}
    spec = layer_spec(
        "ConvLSTM1D",
        "conv",
        weights,
        filters=5,
        kernel_size=(3,),
        use_bias=False,
        recurrent_activation="sigmoid",
        masked_output="zeros",
    )
    layer, x = converted(spec).float(), torch.randn(B, T, 7, 2)
    state = torch.randn(B, 5, 5)
    layer(x, None, [state, state])
    for given, text in (
        ((x[:, :0],), "an input of no steps is not supported"),
        ((x, None, [state]), "initial_state: 2 states are expected, found 1"),
        ((x, None, [state, state[1:]]), r"a state \[3, 5, 5\] is expected, found \[2, 5, 5\]"),
    ):
        with pytest.raises(k2t.UsageError, match=text):
            layer(*given)


def test_a_converted_layer_says_what_to_do_with_a_packed_sequence() -> None:
    packed = pack_padded_sequence(torch.randn(B, T, F), torch.tensor([4, 3, 1]), batch_first=True)
    with pytest.raises(TypeError, match=r"PackedSequence; use pad_packed_sequence and a mask"):
        CONVERTED["LSTM"]()(packed)


def test_a_converted_model_says_the_same_and_takes_numbers_of_any_kind() -> None:
    model = build(ModelSpec(chain(rnn("LSTM", H, F)), KERAS3), dtype="float32")
    x = torch.randn(B, T, F)
    given: Any
    for given in (x.numpy(), x.tolist()):
        with pytest.raises(TypeError, match=f"^input: {NO_TENSOR.format('float32')}"):
            model(given)
    assert model(x.double()).dtype is model(x.long()).dtype is torch.float32
    words = layer_spec("Embedding", "e", {"embeddings": values(13, F)}, input_dim=13, output_dim=F)
    table = build(ModelSpec(chain(words), KERAS3))
    with pytest.raises(TypeError, match=f"^input: {NO_TENSOR.format('int64')}"):
        table(np.zeros((B, T), dtype=int))


def test_a_plugin_that_calls_ours_with_a_wrong_input_is_named_with_its_line() -> None:
    stack, x = k2t.BiLSTM(F, H), torch.randn(T, B, F)
    layer = LayerSpec("Mine", "mine", {}, {}, path=("model", "mine"))
    for given, text in (
        (x.double(), r"ArgumentTypeError: input: torch\.float32 is expected"),
        (x[..., 1:], r"ArgumentValueError: an input \(batch, time, 5\) is expected"),
    ):
        wanted = rf"^model/mine: plugin for Mine: its module fails: {text}.*\({HERE}:\d+\)"
        with pytest.raises(k2t.PluginError, match=wanted), naming_plugin(layer, "its module"):
            stack(given)


def test_what_computes_with_another_dtype_is_not_refused() -> None:
    """A subclass of Tensor may turn into what the weights need, as quantized weights do."""

    class Widening(Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            plain = [a.as_subclass(Tensor) if isinstance(a, cls) else a for a in args]
            if func in (Tensor.dtype.__get__, Tensor.dim, Tensor.shape.__get__):
                return func(*plain, **(kwargs or {}))
            wide = [
                a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in plain
            ]
            return func(*wide, **(kwargs or {}))

    rnn = k2t.BiGRU(F, H, engine="torch")
    x = torch.randn(T, B, F).half()
    torch.testing.assert_close(rnn(x.as_subclass(Widening))[0], rnn(x.float())[0])


def test_meta_tensors_and_graphs_pass_the_checks() -> None:
    rnn = k2t.BiLSTM(F, H, merge_mode="ave").eval()
    x = torch.randn(T, B, F)
    meta: Any = deepcopy(rnn).to("meta")
    assert meta(x.to("meta"))[0].shape == (T, B, H)
    with pytest.raises(TypeError, match=r"found torch.float64"):
        meta(x.to("meta", torch.float64))
    compiled = torch.compile(rnn, backend="eager", fullgraph=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert compiled(x.bfloat16())[0].dtype is torch.bfloat16


# ---- autocast ----------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("ours", OURS)
def test_autocast_leaves_float32_to_the_native_kernel(ours: Any) -> None:
    rnn, x = ours(F, H, engine="native"), torch.randn(T, B, F)
    wanted, _ = rnn(x)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = rnn(x)
        assert output.dtype is torch.float32
        assert torch.equal(output, wanted)
        output.sin().sum().backward()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in rnn.parameters())


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_autocast_means_to_torchs_kernels_what_it_means_to_torchs_layers(
    ours: Any, theirs: Any, given: torch.dtype
) -> None:
    right, rnn = theirs(F, H, 2, bidirectional=True), ours(F, H, 2, engine="torch")
    rnn.load_state_dict(right.state_dict())
    x = torch.randn(T, B, F).to(given)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            wanted = right(x)[0]
        except RuntimeError as error:  # oneDNN has no LSTM in bfloat16 for this processor
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:60])):
                rnn(x)
            return
        output = rnn(x)[0]
    assert output.dtype is wanted.dtype
    torch.testing.assert_close(output, wanted, rtol=0, atol=3e-2)


@pytest.mark.parametrize("ours", OURS)
def test_autocast_does_not_mend_float64_and_whole_numbers(ours: Any) -> None:
    rnn = ours(F, H)
    for kind in (torch.float64, torch.int64):
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(TypeError, match=rf"input: torch.float32 is expected.*found {kind}"),
        ):
            rnn(torch.zeros(T, B, F, dtype=kind))


# ---- torch.ao.quantization.quantize_dynamic ----------------------------------------------------


def quantized(model: nn.Module) -> Any:
    with warnings.catch_warnings():  # torch says that all of it is deprecated
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)


def test_dynamic_quantization_swaps_linears_and_leaves_what_is_a_subclass_in_float() -> None:
    recurrent = bi(rnn("LSTM", H, F), rnn("LSTM", H, F, 1))
    spec = chain(recurrent, dense(13, 2 * H, activation="relu"), dense(17, 13, 1))
    model: Any = build(ModelSpec(spec, KERAS3), dtype="float32")
    x = torch.randn(B, T, F, generator=torch.Generator().manual_seed(3))
    swapped = quantized(model)
    assert type(swapped.bi) is modules.LSTM
    for linear in (swapped.dense_0, swapped.dense_1):
        assert type(linear).__module__.startswith("torch.ao.nn.quantized.dynamic")
    with torch.no_grad():
        torch.testing.assert_close(swapped(x), model(x), rtol=0.02, atol=0.1)


def test_dynamic_quantization_leaves_every_recurrent_layer_as_it_is() -> None:
    made = [*(CONVERTED[kind]() for kind in CONVERTED), *(ours(F, H) for ours in OURS)]
    for before, after in zip(made, quantized(nn.Sequential(*made)), strict=True):
        assert type(after) is type(before)
        for name, weight in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], weight), name


@pytest.mark.parametrize(("ours", "theirs"), PAIRS[:2])
def test_a_concat_stack_is_quantized_as_the_torch_layer_it_loads_into(
    ours: Any, theirs: Any
) -> None:
    rnn = ours(F, H, 2).eval()
    exact = theirs(F, H, 2, bidirectional=True)
    exact.load_state_dict(rnn.state_dict())
    small = quantized(nn.Sequential(exact))
    assert type(small[0]).__module__.startswith("torch.ao.nn.quantized.dynamic")
    x = torch.randn(T, B, F)
    with torch.no_grad():
        torch.testing.assert_close(cast(Any, small(x))[0], rnn(x)[0], rtol=0, atol=0.05)
