"""BiLSTM, BiGRU and BiRNN: torch's arguments and names, Keras' merges, every engine's numbers."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import TORCH_GATES, assert_close, native
from sampling import examples
from specs import KERAS3, bi, layer
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import keras2torch_birnn as k2t
from keras2torch_birnn.comparison.outputs import float32_precision
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.rnn import bidirectional_stack
from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.spec import Array, LayerSpec

STACKS: dict[str, tuple[Any, Any, str]] = {
    "LSTM": (k2t.BiLSTM, nn.LSTM, "LSTM"),
    "GRU": (k2t.BiGRU, nn.GRU, "GRU"),
    "SimpleRNN": (k2t.BiRNN, nn.RNN, "SimpleRNN"),
}
F, H, T, B = 5, 7, 11, 3


def stack(cell: str = "LSTM", *args: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return STACKS[cell][0](*(args or (F, H)), **options)


def to_keras(rnn: Any, cell: str) -> list[LayerSpec]:
    """The stack's layers in Keras' words, written down apart from the package's own crossing."""
    order = TORCH_GATES[cell]
    layers = []
    for k in range(rnn.num_layers):
        halves = []
        for suffix in ("", "_reverse"):
            named = {
                n: getattr(rnn, f"{n}_l{k}{suffix}").detach().double().numpy()
                for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                if rnn.bias or n.startswith("weight")
            }
            parts = {n: np.split(a, len(order)) for n, a in named.items()}
            turned = {n: np.concatenate([p[g] for g in order]) for n, p in parts.items()}
            weights = {"kernel": turned["weight_ih"].T, "recurrent_kernel": turned["weight_hh"].T}
            two = cell == "GRU" and rnn.reset_after
            if rnn.bias:
                both = (turned["bias_ih"], turned["bias_hh"])
                weights["bias"] = np.stack(both) if two else both[0] + both[1]
            config: dict[str, Any] = {
                "units": rnn.hidden_size,
                "activation": rnn.activation,
                "use_bias": rnn.bias,
                "return_sequences": True,
                "return_state": True,
                "masked_output": "zeros",
            }
            if cell != "SimpleRNN":
                config["recurrent_activation"] = rnn.recurrent_activation
            if cell == "GRU":
                config["reset_after"] = rnn.reset_after
            halves.append(layer(cell, f"half{suffix}", weights, **config))
        layers.append(bi(*halves, rnn.merge_mode[k]))
    return layers


def exact(
    rnn: Any, cell: str, x: Array, mask: Array | None = None, hx: Any = None
) -> tuple[list[Array], list[Array]]:
    """Outputs and states (num_layers * 2, B, H) by the float64 reference; x: (B, T, F)."""
    out: Any = x.astype("f8")
    states: list[Array] = []
    for k, pair in enumerate(to_keras(rnn, cell)):
        start = None
        if hx is not None:
            start = [s[2 * k + d].double().numpy() for d in range(2) for s in hx]
        context = Context(KERAS3, np.float64, EQUATIONS, {}, {}, None).starting(start)
        found, _ = EQUATIONS["Bidirectional"](pair, out, mask, context)
        heads = 2 if rnn.merge_mode[k] is None else 1
        out = list(found[:heads]) if heads == 2 else found[0]
        states += found[heads:]
    each = 2 if cell == "LSTM" else 1
    finals = [np.stack(states[i::each]) for i in range(each)]
    return out if isinstance(out, list) else [out], finals


def flat(hx: Any) -> list[Tensor]:
    return list(hx) if isinstance(hx, tuple) else [hx]


# ---- numbers -----------------------------------------------------------------------------------


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    layers = draw(st.integers(1, 3))
    modes: list[Any] = [draw(st.sampled_from(list(MERGE_MODES))) for _ in range(layers)]
    if draw(st.booleans()):
        modes[-1] = None
    cell = draw(st.sampled_from(sorted(STACKS)))
    options: dict[str, Any] = {"bias": draw(st.booleans())}
    engine = draw(st.sampled_from(("auto", "torch", "loop")))
    options["activation"] = draw(st.sampled_from(("tanh", "softsign", "relu")))
    if cell != "SimpleRNN":
        gates = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6")
        options["recurrent_activation"] = draw(st.sampled_from(gates))
    if cell == "GRU":
        options["reset_after"] = draw(st.booleans())
    return {
        "cell": cell,
        "layers": layers,
        "modes": modes,
        "options": options,
        "mask": draw(st.sampled_from((None, "right", "any", "empty row"))),
        "hx": draw(st.booleans()),
        "engine": engine,
        "batch": draw(st.sampled_from((0, 1, 3, 6))),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(max_examples=examples(80), deadline=None)
@given(calls())
def test_every_engine_gives_the_numbers_of_the_reference(case: dict[str, Any]) -> None:
    options = {**case["options"], "merge_mode": case["modes"], "num_layers": case["layers"]}
    cell, rng = case["cell"], np.random.default_rng(case["seed"])
    rnn = stack(cell, F, H, batch_first=True, engine=case["engine"], **options).eval()
    x = rng.normal(size=(case["batch"], T, F)).astype("f4")
    mask = None
    if case["mask"] is not None:
        mask = rng.random((case["batch"], T)) < 0.6
        if case["mask"] == "right":
            mask = np.sort(mask, axis=1)[:, ::-1].copy()
        if case["mask"] == "empty row" and case["batch"]:
            mask[0] = False
    hx = None
    if case["hx"]:
        size = (2 * case["layers"], case["batch"], H)
        count = 2 if cell == "LSTM" else 1
        hx = tuple(torch.from_numpy(rng.normal(size=size).astype("f4")) for _ in range(count))
    given_mask = None if mask is None else torch.from_numpy(mask)
    with torch.no_grad():
        out, final = rnn(
            torch.from_numpy(x), hx if hx is None or len(hx) == 2 else hx[0], mask=given_mask
        )
    outputs, states = exact(rnn, cell, x, mask, hx)
    if mask is not None:  # zeros are at masked steps, in both halves of a mul, too
        outputs = [np.where(mask[..., None], y, 0.0) for y in outputs]
    assert_close(out, outputs)
    assert_close(final, states)


@pytest.mark.parametrize("cell", sorted(STACKS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_concat_is_torch_with_torchs_state_dict(cell: str, dtype: torch.dtype) -> None:
    ours, theirs, _ = STACKS[cell]
    wanted = theirs(F, H, 3, bidirectional=True, dtype=dtype)
    rnn = ours(F, H, 3, dtype=dtype)
    assert list(rnn.state_dict()) == list(wanted.state_dict())
    rnn.load_state_dict(wanted.state_dict())
    x = torch.randn(T, B, F, dtype=dtype)
    with torch.no_grad():
        (a, s), (b, t) = rnn(x), wanted(x)
    for got, right in zip((a, *flat(s)), (b, *flat(t)), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=2e-6)


def test_parameters_have_the_width_of_what_the_layer_before_merged_to() -> None:
    modes = [*MERGE_MODES, None]
    rnn = k2t.BiGRU(F, H, num_layers=len(modes), merge_mode=modes)
    widths = [getattr(rnn, f"weight_ih_l{k}_reverse").shape[1] for k in range(len(modes))]
    assert widths == [F, *(2 * H if mode == "concat" else H for mode in MERGE_MODES)]


@pytest.mark.parametrize("batch_first", [True, False])
def test_layouts_are_torchs(batch_first: bool) -> None:
    rnn = stack("LSTM", merge_mode="sum", batch_first=batch_first).eval()
    x = torch.randn(B, T, F)
    one, (h, c) = rnn(x if batch_first else x.transpose(0, 1))
    assert one.shape == ((B, T, H) if batch_first else (T, B, H))
    assert h.shape == c.shape == (2, B, H)
    alone, (h_alone, _) = rnn(x[1], (h[:, 1], c[:, 1]))
    both, (h_both, _) = rnn(
        x[1:2] if batch_first else x[1:2].transpose(0, 1), (h[:, 1:2], c[:, 1:2])
    )
    assert alone.shape == (T, H)
    torch.testing.assert_close(alone, both.reshape(T, H))
    torch.testing.assert_close(h_alone, h_both[:, 0])


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("mode", ["sum", None])
def test_a_packed_sequence_is_a_right_padded_mask(enforce_sorted: bool, mode: Any) -> None:
    rnn = stack("GRU", F, H, 2, merge_mode=["mul", mode], batch_first=True).eval()
    counts = torch.tensor([11, 6, 2] if enforce_sorted else [6, 11, 2])
    x, h = torch.randn(B, T, F), torch.randn(4, B, H)
    packed = pack_padded_sequence(x, counts, batch_first=True, enforce_sorted=enforce_sorted)
    mask = torch.arange(T) < counts[:, None]
    got, final = rnn(packed, h)
    wanted, final_wanted = rnn(x, h, mask=mask)
    torch.testing.assert_close(final, final_wanted)
    pairs = zip(got, wanted, strict=True) if mode is None else [(got, wanted)]
    for one, right in pairs:
        assert isinstance(one, PackedSequence)
        out, lengths = pad_packed_sequence(one, batch_first=True)
        assert lengths.tolist() == counts.tolist()
        torch.testing.assert_close(out, right)


def test_a_packed_sequence_without_merge_is_what_torch_gives() -> None:
    theirs = nn.LSTM(F, H, 2, bidirectional=True)
    rnn = k2t.BiLSTM(F, H, 2)
    rnn.load_state_dict(theirs.state_dict())
    packed = pack_padded_sequence(
        torch.randn(T, B, F), torch.tensor([4, 11, 2]), enforce_sorted=False
    )
    hx = (torch.randn(4, B, H), torch.randn(4, B, H))
    with torch.no_grad():
        (got, s), (wanted, t) = rnn(packed, hx), theirs(packed, hx)
    torch.testing.assert_close(got.data, wanted.data, rtol=0, atol=2e-6)
    for a, b in zip(s, t, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


# ---- an ordinary module ------------------------------------------------------------------------


@pytest.mark.parametrize("cell", sorted(STACKS))
def test_it_trains_as_torch_does(cell: str) -> None:
    ours, theirs, _ = STACKS[cell]
    right = theirs(F, H, 2, bidirectional=True)
    rnn = ours(F, H, 2)
    rnn.load_state_dict(right.state_dict())
    x = torch.randn(T, B, F)
    for module in (rnn, right):
        module(x)[0].sin().sum().backward()
    for a, b in zip(rnn.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def test_dropout_between_layers_is_for_training_only() -> None:
    rnn = stack("LSTM", F, H, 2, dropout=0.5, merge_mode="ave")
    x = torch.randn(T, B, F)
    assert not torch.equal(rnn(x)[0], rnn(x)[0])
    rnn.eval()
    assert torch.equal(rnn(x)[0], rnn(x)[0])
    alone = stack("LSTM", F, H, 1, dropout=0.5)
    assert torch.equal(alone(x)[0], alone(x)[0])


def test_it_copies_compiles_exports_and_maps() -> None:
    rnn = stack("GRU", F, H, 2, reset_after=False, merge_mode=["sum", "mul"]).eval()
    x = torch.randn(T, B, F)
    with torch.no_grad():
        wanted, _ = rnn(x)
        torch.testing.assert_close(deepcopy(rnn)(x)[0], wanted)
        compiled = torch.compile(rnn, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x)[0], wanted)
        exported = torch.export.export(rnn, (x,)).module()
        torch.testing.assert_close(exported(x)[0], wanted, rtol=0, atol=2e-6)
        each = torch.func.vmap(rnn, in_dims=1, out_dims=1)(x)[0]
        torch.testing.assert_close(each, wanted, rtol=0, atol=2e-6)


def test_what_is_printed_says_what_differs_from_torch() -> None:
    rnn = k2t.BiGRU(F, H, 2, merge_mode=["sum", "mul"], reset_after=False)
    assert repr(rnn) == "BiGRU(5, 7, num_layers=2, reset_after=False, merge_mode=['sum', 'mul'])"
    assert repr(k2t.BiLSTM(F, H)) == "BiLSTM(5, 7, merge_mode='concat')"


# ---- engines -----------------------------------------------------------------------------------


@native
def test_explain_says_which_engine_runs_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "auto")
    lstm = k2t.BiLSTM(F, H, 2).eval()
    with torch.no_grad():
        assert [c.engine for c in lstm.explain()] == ["native", "native"]
        assert [c.engine for c in lstm.explain(batch=64)] == ["native", "native"]
        wide = k2t.BiLSTM(F, 513).eval()
        assert [wide.explain(batch)[0].engine for batch in (3, 4)] == ["native", "fused"]
        assert [c.engine for c in lstm.explain(batch=64, masked=True)] == ["native", "native"]
        odd = k2t.BiLSTM(F, H, activation="gelu")
        assert [c.engine for c in odd.explain()] == ["loop"]
    assert [c.engine for c in lstm.train().explain()] == ["native", "native"]
    silu = k2t.BiLSTM(F, H, activation="silu")
    assert [silu.train(on).explain()[0].engine for on in (True, False)] == ["native", "native"]
    assert "float32 on CPU" in lstm.eval().explain()[0].reason


def test_an_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "loop")
    assert k2t.BiLSTM(F, H).explain()[0].engine == "loop"
    assert k2t.BiLSTM(F, H, engine="fused").explain()[0].engine == "fused"


# ---- refusals ----------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_are_refused() -> None:
    rnn = k2t.BiLSTM(F, H, batch_first=True)
    x = torch.zeros(B, T, F)
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        rnn(x[None])
    with pytest.raises(ValueError, match=r"hx: 2 tensor\(s\) of \[2, 3, 7\] expected"):
        rnn(x, (torch.zeros(2, B, H + 1), torch.zeros(2, B, H + 1)))
    with pytest.raises(ValueError, match=r"mask: \[3, 11\] is expected, found \[3, 10\]"):
        rnn(x, mask=torch.ones(B, T - 1, dtype=torch.bool))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [[T, 0, 4], torch.tensor([1, 11, 5], dtype=torch.int32), np.array([3, 0, 11], "u2")],
    ids=str,
)
def test_lengths_are_a_mask(lengths: Any, batch_first: bool) -> None:
    rnn = stack("GRU", F, H, 2, merge_mode=["mul", "concat"], batch_first=batch_first).eval()
    x = torch.randn(B, T, F) if batch_first else torch.randn(T, B, F)
    mask = torch.arange(T) < torch.as_tensor(lengths).to(torch.int64)[:, None]
    wanted = rnn(x, mask=mask if batch_first else mask.T)
    got = rnn(x, lengths=lengths)
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1])
    one = rnn(torch.ones(T, F), lengths=4)[0]
    assert torch.equal(one, rnn(torch.ones(T, F), mask=torch.arange(T) < 4)[0])


def test_a_stack_with_lengths_compiles_to_one_graph() -> None:
    rnn = stack("LSTM", F, H, 1, merge_mode="sum", batch_first=True).eval()
    x, lengths = torch.randn(B, T, F), torch.tensor([T, 2, 5])
    wanted = rnn(x, lengths=lengths)[0]
    compiled = torch.compile(rnn, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, lengths=lengths)[0], wanted)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([1, 2], r"lengths: integers of shape \[3\] are expected, found int64 of \[2\]"),
        (2, r"lengths: integers of shape \[3\] are expected, found int64 of \[\]"),
        ([1.0, 2.0, 3.0], "found float32 of"),
        ([True, False, True], "found bool of"),
        ([1, 12, 2], r"lengths: 0 to 11 are expected, found \[1, 12, 2\]"),
        ([1, -1, 2], "lengths: 0 to 11 are expected"),
        ("abc", "lengths: a tensor or a list of integers is expected, found str"),
        ({"a": 1}, "a list of integers is expected, found dict"),
        ([[1], [2, 3]], "a list of integers is expected, found list; "),
        ([1, None, 2], "a list of integers is expected, found list; "),
        ([1, 2**70, 2], "a list of integers is expected, found list; "),
    ],
    ids=str,
)
def test_lengths_that_have_no_meaning_are_refused(lengths: Any, message: str) -> None:
    rnn = stack("GRU", F, H, 1, batch_first=True)
    with pytest.raises(k2t.UsageError, match=message):
        rnn(torch.randn(B, T, F), lengths=lengths)


def test_only_one_thing_says_what_counts() -> None:
    rnn, x = stack("GRU", F, H, 1, batch_first=True), torch.randn(B, T, F)
    mask, packed = torch.ones(B, T, dtype=torch.bool), pack_padded_sequence(x, [3, 2, 1], True)
    for what, options, names in (
        (x, {"mask": mask, "lengths": [1, 2, 3]}, "a mask and lengths"),
        (packed, {"lengths": [3, 2, 1]}, "lengths and a PackedSequence"),
        (packed, {"mask": mask}, "a mask and a PackedSequence"),
    ):
        with pytest.raises(ValueError, match=f"{names}: one of them says what counts"):
            rnn(what, **options)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("cell", "options"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("SimpleRNN", {})],
)
def test_a_gpu_gives_the_same_numbers_without_a_warning(cell: str, options: Any) -> None:
    rnn = stack(cell, F, H, 2, merge_mode=["sum", "mul"], **options).eval()
    x, mask = torch.randn(T, B, F), torch.rand(T, B) < 0.7
    with float32_precision("ieee"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (None, mask):
            wanted, _ = rnn.cpu()(x, mask=given)
            got, _ = rnn.cuda()(x.cuda(), mask=None if given is None else given.cuda())
            torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-5)


def test_explain_and_set_engine_reach_every_layer_of_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    model = nn.ModuleDict({"a": k2t.BiLSTM(F, H, 2), "b": nn.Linear(3, 2), "c": k2t.BiGRU(F, H)})
    found = k2t.explain(model)
    assert {name: [c.engine for c in choices] for name, choices in found.items()} == {
        "a": ["fused", "fused"],
        "c": ["fused"],
    }
    k2t.set_engine(model, "loop")
    assert {c.engine for choices in k2t.explain(model).values() for c in choices} == {"loop"}
    k2t.set_engine(model, None)
    assert k2t.explain(model) == found
    unknown: Any = "warp"
    with pytest.raises(k2t.UsageError, match="engine=warp"):
        k2t.set_engine(model, unknown)


@pytest.mark.parametrize("cell", sorted(STACKS))
@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_one_call_of_cudnn_lie_side_by_side_wherever_they_are_moved(
    cell: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid: list[list[int]] = []

    def flattened(layer: Any) -> None:
        laid.append(list(map(id, layer._flat_weights)))

    def of(rnn: nn.Module, layer: int) -> list[int]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if bias else 2]
        return [
            id(getattr(rnn, f"{name}_l{layer}{direction}"))
            for direction in ("", "_reverse")
            for name in names
        ]

    kept = stack(cell, F, H, 3, bias=bias, merge_mode=["concat", "sum", "mul"])
    without = stack(cell, F, H, 2, bias=bias, activation="relu6")
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flattened)
    kept.double()
    assert laid == []  # on the CPU nothing is gained by it
    monkeypatch.setattr(bidirectional_stack, "_on_gpu", lambda _: True)
    for rnn in (kept, without):
        rnn.double()
    # Torch's own layer asks for it a first time when it is made.
    assert laid[1::2] == [of(kept, layer) for layer in range(3)]
    computed = nn.utils.parametrizations.weight_norm(kept.float(), "weight_hh_l1")
    laid.clear()
    computed.double()
    assert len(laid) == 5 and [laid[1], laid[4]] == [of(kept, 0), of(kept, 2)]
