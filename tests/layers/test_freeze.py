"""``k2t.freeze``: the numbers of the model, of recurrent layers the same bits."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fixture_files
import pytest
import torch
from chained_models import model_of, two
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import native
from specs import F, H, bi, dense, layer, rnn, with_options
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import ArgumentValueError, K2TError, UsageError
from keras2torch_birnn.freezing import Frozen
from keras2torch_birnn.layers import recording
from keras2torch_birnn.layers.recorded_values import Values
from keras2torch_birnn.layers.recording import Program
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.limits import MAX_PROGRAMS_PER_MODEL
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

FIXTURES = fixture_files.FIXTURES / "keras-3.15.1"
TOLERANCE = {"atol": 3e-6, "rtol": 3e-6}
SEQUENCES = {"return_sequences": True}


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]


def close(got: Any, wanted: Any) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, **TOLERANCE, equal_nan=True)


def near(got: Any, wanted: Any) -> None:
    """Ask for float64's accuracy: the bits of torch's products depend on where tensors lie."""
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert a.dtype is b.dtype
        torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-13)


def same_bits(got: Any, wanted: Any) -> None:
    assert all(map(torch.equal, flat(got), flat(wanted)))


def by_layers(model: Any, *inputs: Any, **named: Any) -> Any:
    with torch.no_grad():
        return model(*inputs, **named)


def reasons(fast: Frozen) -> set[str]:
    return set(k2t.explain(fast).values())


class Counted:
    """A frozen model, and the number of calls that a program computed."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.fast, self.computed = model, k2t.freeze(model), 0
        real = Program.run

        def run(one: Any, *args: Any) -> Any:
            found = real(one, *args)
            self.computed += found is not None
            return found

        monkeypatch.setattr(Program, "run", run)

    def __call__(self, *inputs: Any) -> Any:
        return self.fast(*inputs)

    def by_layers(self, *inputs: Any) -> Any:
        return by_layers(self.model, *inputs)


# ---- converted models ---------------------------------------------------------------------------

ARCHITECTURES = sorted(
    file
    for file in (*FIXTURES.glob("arch_*"), *FIXTURES.glob("mask_*"))
    if file.suffix in (".keras", ".h5")
)


def converted(file: Path) -> tuple[Any, tuple[Tensor, ...]]:
    weights = file.name.endswith(".weights.h5")
    config = str(file.with_name(file.name.replace(".weights.h5", ".json"))) if weights else None
    inputs = draw_inputs(read_model(str(file), config=config), steps=11, seed=1)
    return k2t.convert(file, config=config), tuple(map(torch.from_numpy, inputs))


@pytest.mark.thorough
def test_models_of_the_fixtures_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    of_programs = set()
    for file in ARCHITECTURES:
        model, inputs = converted(file)
        called = Counted(model, monkeypatch)
        for given_ in (inputs, tuple(x[:1] for x in inputs)):
            wanted = called.by_layers(*given_)
            for _ in range(3):
                close(called(*given_), wanted)
        if called.computed:
            assert called.computed == 6
            of_programs.add(file.name.partition(".")[0])
    benchmarked = {
        "arch_toxic",
        "arch_siamese",
        "arch_crnn_ocr",
        "arch_reader",
        "arch_ner_char_cnn",
    }
    benchmarked |= {"arch_seq2seq_attention", "arch_hierarchy_attention", "arch_multi_head"}
    assert of_programs >= {*benchmarked, "arch_deep_speech_2d", "mask_stack_bi_dense"}


def tagger() -> Any:
    return model_of(
        layer("Masking", mask_value=0.0),
        two("LSTM", F, "mul", return_sequences=True),
        layer("Dropout", rate=0.5),
        rnn("GRU before", 11, H, seed=3, return_sequences=True),
        dense(7, 11, activation="softmax"),
    )


def masks(rows: int, time: int) -> Iterator[Tensor]:
    """Masks of all sorts: padded behind, with gaps, of all steps, of none."""
    for seed in range(5):
        torch.manual_seed(seed)
        valid = torch.rand(rows, time) < 0.6
        valid[0], valid[1] = torch.arange(time) < 4, seed > 0
        valid[2] &= seed > 1
        yield valid


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "GRU before", "SimpleRNN"])
@pytest.mark.parametrize("rule", ["zeros", "previous_output", "previous_state"])
def test_a_layer_under_any_mask_gives_the_same_bits(cell: str, rule: str) -> None:
    for sequences in (True, False):
        options: dict[str, Any] = {"return_sequences": sequences, "masked_output": rule}
        against = {**options, "go_backwards": True}
        for last in (
            *(two(cell, F, merge, **options) for merge in ("concat", "mul", None)),
            *(rnn(cell, 11, F, **options), rnn(cell, 11, F, **against)),
        ):
            model = model_of(layer("Masking", mask_value=0.0), last)
            fast = k2t.freeze(model)
            for valid in masks(5, 13):
                x = torch.randn(5, 13, F) * valid[..., None]
                same_bits(fast(x), by_layers(model, x))
            assert reasons(fast) == {"one call"}


@pytest.mark.parametrize("cell", ["LSTM", "GRU before"])
@pytest.mark.parametrize("rule", ["zeros", "previous_output", "previous_state"])
@pytest.mark.parametrize("sequences", [True, False])
def test_masks_beside_initial_states_give_the_same_bits(
    cell: str, rule: str, sequences: bool
) -> None:
    options: dict[str, Any] = {"return_sequences": sequences, "masked_output": rule}
    halves = (rnn(cell, 7, F, **options), rnn(cell, 11, F, seed=1, **options))
    from_end = (with_options(half, go_backwards=True) for half in halves)
    for spec, units in (
        (two(cell, F, "mul", **options), (H, H)),
        (rnn(cell, 11, F, **options), (11,)),
        (bi(*halves), (7, 11)),
        (bi(*from_end, None), (7, 11)),
    ):
        module: Any = convert_layer(spec).eval().float()
        fast = k2t.freeze(module)
        states = [torch.randn(5, n) for n in units for _ in range(2 if cell == "LSTM" else 1)]
        for valid in masks(5, 13):
            x = torch.randn(5, 13, F)
            for given_ in ((x,), (x, valid), (x, None, states), (x, valid, states)):
                same_bits(fast(*given_), by_layers(module, *given_))
        exact = rule == "zeros" or (rule == "previous_output" and sequences)
        refused = set() if exact else {"a mask beside initial states"}
        assert reasons(fast) == {"one call"} | refused


def test_recurrent_layers_after_another_give_the_same_bits() -> None:
    model = model_of(
        two("LSTM", F, "mul", **SEQUENCES),
        layer("Dropout", rate=0.5),
        two("GRU", H, "concat", **SEQUENCES),
        rnn("SimpleRNN", 11, 2 * H, seed=3, **SEQUENCES),
    )
    fast = k2t.freeze(model)
    for time in (13, 1, 71):
        x = torch.randn(2, time, F)
        same_bits(fast(x), by_layers(model, x))
    assert reasons(fast) == {"one call"}
    assert len(k2t.explain(fast)) == 3


def test_windows_with_as_much_padding_in_front_as_behind_are_part_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = {"pool_size": (3,), "strides": (1,), "padding": "same"}
    model = model_of(
        two("LSTM", F, "mul", **SEQUENCES),
        layer("AveragePooling1D", **window),
        layer("MaxPooling1D", **window),
        rnn("GRU", 11, H, **SEQUENCES),
    )
    called = Counted(model, monkeypatch)
    for time in (13, 2, 1):
        x = torch.randn(2, time, F)
        close(called(x), called.by_layers(x))
    assert called.computed == 3


# ---- BiLSTM, BiGRU, BiRNN, and torch's own ------------------------------------------------------

STACKS: dict[str, Any] = {"LSTM": k2t.BiLSTM, "GRU": k2t.BiGRU, "SimpleRNN": k2t.BiRNN}


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
        "mask": draw(st.sampled_from(("none", "right", "left", "gaps", "lengths"))),
        "states": draw(st.booleans()),
        "inference": draw(st.booleans()),
        "threads": draw(st.sampled_from((1, 2))),
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


def marks_of(kind: str, batch: int, time: int) -> dict[str, Any]:
    if kind == "none":
        return {}
    if kind == "gaps":
        return {"mask": torch.rand(batch, time) < 0.6}
    lengths = torch.randint(0, time + 1, (batch, 1))
    if kind == "lengths":
        return {"lengths": lengths[:, 0]}
    mask = torch.arange(time) < lengths
    return {"mask": mask.flip(1) if kind == "left" else mask}


@pytest.mark.usefixtures("isa")
@settings(max_examples=60, deadline=None)
@given(case=stacks())
def test_a_stack_gives_the_bits_of_its_layers(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    module, batch, time = stack_of(case), case["batch"], case["time"]
    fast = k2t.freeze(module)
    x, marks = torch.randn(batch, time, case["features"]), marks_of(case["mask"], batch, time)
    if not case["batch_first"]:
        x = x.transpose(0, 1)
        marks |= {"mask": marks["mask"].t()} if "mask" in marks else {}
    hx: Any = None
    if case["states"]:
        hx = torch.randn(2 * len(case["merges"]), batch, case["units"])
        hx = (hx, torch.randn_like(hx)) if case["cell"] == "LSTM" else hx
    torch.set_num_threads(case["threads"])
    mode = torch.inference_mode if case["inference"] else torch.no_grad
    with mode():
        wanted = module(x, hx, **marks)
        for _ in range(2):
            got = fast(x, hx, **marks)
            assert type(got) is type(wanted)
            same_bits(got, wanted)
    if not (case["cell"] == "LSTM" and batch >= 4 and not marks):  # torch's kernel may be faster
        assert reasons(fast) == {"one call"}


def test_packed_sequences_and_inputs_without_batch_are_computed() -> None:
    module = k2t.BiLSTM(5, 7, 2, batch_first=True).eval()
    fast, x = k2t.freeze(module), torch.randn(2, 13, 5)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([7, 11]), True, False)
    got, wanted = fast(packed), by_layers(module, packed)
    same_bits((got[0].data, got[1]), (wanted[0].data, wanted[1]))
    assert not k2t.explain(fast)
    for more in ({}, {"lengths": 5}):
        same_bits(fast(x[0], **more), by_layers(module, x[0], **more))
    assert reasons(fast) == {"one call"}
    for wrong in ([14, 3], [1], "ab"):
        with pytest.raises(K2TError) as by_module:
            module(x, lengths=wrong)
        with pytest.raises(K2TError) as by_program:
            fast(x, lengths=wrong)
        assert str(by_program.value) == str(by_module.value)


class Hand(nn.Module):
    """A model as people write it with torch alone."""

    def __init__(self, rnn_class: Any, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(23, 5)
        self.line = nn.Conv1d(5, 6, 3, padding=1)
        self.rnn = rnn_class(6, 7, 2, batch_first=True, bidirectional=True, **options)
        self.normal, self.out = nn.LayerNorm(14), nn.Linear(14, 3)

    def forward(self, ids: Tensor) -> tuple[Tensor, Any]:
        y, state = self.rnn(torch.relu(self.line(self.table(ids).transpose(1, 2))).transpose(1, 2))
        return self.out(self.normal(y)), state


@pytest.mark.parametrize(
    ("rnn_class", "options"),
    [(nn.LSTM, {}), (nn.GRU, {"bias": False}), (nn.RNN, {"nonlinearity": "relu"}), (nn.RNN, {})],
)
def test_a_model_of_torch_alone_is_one_call(rnn_class: Any, options: dict[str, Any]) -> None:
    model = Hand(rnn_class, **options).eval()
    fast, ids = k2t.freeze(model), torch.randint(0, 23, (2, 13))
    close(fast(ids), by_layers(model, ids))
    assert reasons(fast) == {"one call"}
    x, layers = torch.randn(13, 3, 6), rnn_class(6, 7, **options)
    fast = k2t.freeze(layers)
    states = torch.randn(1, 3, 7)
    hx = (states, states * 2) if rnn_class is nn.LSTM else states
    close(fast(x, hx), by_layers(layers, x, hx))
    assert reasons(fast) == {"one call"}


# ---- what is not recorded -----------------------------------------------------------------------


class Reads(nn.Module):
    """A module that reads its input in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.inner = way, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "branches":
            return self.inner(x) if bool(x.sum() > 0) else x
        if self.way == "lists":
            return self.inner(x) * sum(x.flatten().tolist())
        if self.way == "computes elsewhere":
            return self.inner(x) + float(x.numpy().max())
        if self.way == "goes on":
            try:
                return self.inner(x) * x.max().item()
            except RuntimeError:
                return self.inner(x) * 1000
        if self.way == "draws":
            return self.inner(x) + torch.rand_like(x)
        if self.way == "keeps":
            self.seen = x.sum()
            return self.inner(x) * self.seen
        if self.way == "writes":
            return self.inner(x).mul_(2)
        raise ValueError(self.way)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("branches", "RuntimeError: Tensor.item() cannot be called on meta tensors"),
        ("lists", "NotImplementedError: Cannot copy out of meta tensor"),
        ("computes elsewhere", "TypeError: can't convert meta device type tensor to numpy"),
        ("goes on", "aten.max.default"),
        ("draws", "aten.rand_like.default"),
        ("keeps", "one call"),
        ("writes", "aten.mul_.Tensor"),
    ],
)
def test_no_value_becomes_part_of_a_program(way: str, reason: str) -> None:
    model = Reads(way)
    fast = k2t.freeze(model)
    for seed in range(4):
        torch.manual_seed(seed)
        x = torch.randn(2, 3, 5) * (-1) ** seed
        torch.manual_seed(seed)
        wanted = by_layers(model, x)
        torch.manual_seed(seed)
        got = fast(x)
        if way != "draws" or seed:  # in the first call the recording draws, too
            close(got, wanted)
    (found,) = reasons(fast)
    assert found.startswith(reason)


def test_an_error_of_the_package_while_it_records_is_not_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(Values, "multiply", fails)
    with pytest.raises(TypeError, match="a bug"):
        k2t.freeze(nn.Linear(5, 3))(torch.randn(2, 5))


def test_hooks_engines_and_precisions_are_those_of_the_model() -> None:
    x, seen = torch.randn(2, 11, 5), []
    hooked = k2t.BiLSTM(5, 7, batch_first=True)
    hooked.register_forward_hook(lambda *_: seen.append(1))
    fast = k2t.freeze(hooked)
    for _ in range(3):
        fast(x)
    assert (len(seen), reasons(fast)) == (3, {"a module with hooks"})
    chosen = k2t.BiLSTM(5, 7, batch_first=True, engine="torch")
    fast = k2t.freeze(chosen)
    close(fast(x), by_layers(chosen, x))
    assert reasons(fast) == {"the engine 'torch' was chosen"}


def test_the_engine_of_the_environment_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    fast = k2t.freeze(nn.Linear(5, 3))
    fast(torch.randn(2, 5))
    assert reasons(fast) == {"the engine 'torch' was chosen"}


def test_other_dtypes_and_precisions_run_the_modules() -> None:
    model, x = k2t.BiGRU(5, 7, 2, batch_first=True).double(), torch.randn(2, 11, 5).double()
    fast = k2t.freeze(model)
    near(fast(x), by_layers(model, x))
    assert "one call" not in reasons(fast)
    with torch.autocast("cpu", torch.bfloat16):  # frozen as the weights are
        near(fast(x), by_layers(model, x))
        plain = k2t.freeze(nn.Linear(5, 3))
        for _ in range(2):
            assert plain(torch.randn(2, 5)).dtype is torch.float32


def test_only_so_much_other_work_and_so_many_sizes_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = Counted(tagger(), monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(recording, "WORK", 1)
        called(torch.randn(3, 13, F))
    assert reasons(called.fast) == {"much to compute beside recurrent layers"}
    for time in range(1, MAX_PROGRAMS_PER_MODEL + 5):
        x = torch.randn(1, time, F)
        close(called(x), called.by_layers(x))
    assert len(k2t.explain(called.fast)) == MAX_PROGRAMS_PER_MODEL
    assert called.computed == MAX_PROGRAMS_PER_MODEL - 1


def test_a_program_is_of_one_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, x = k2t.freeze(tagger()), torch.randn(3, 13, F)
    fast(x)
    monkeypatch.setattr(recording, "WORK_OF_SEVERAL", 1)
    torch.set_num_threads(2)
    fast(x)
    assert [*k2t.explain(fast).values()] == ["one call", "much to compute beside recurrent layers"]


# ---- a snapshot ---------------------------------------------------------------------------------


def test_what_is_done_to_the_model_later_does_not_reach_it() -> None:
    model, x = tagger(), torch.randn(3, 13, F)
    fast = k2t.freeze(model)
    wanted = by_layers(model, x)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    model.train()
    model.double()
    close(fast(x), wanted)
    close(fast(x[:2]), [y[:2] for y in flat(wanted)])


def test_the_model_stays_as_it_is() -> None:
    model, x = tagger().train(), torch.randn(3, 13, F)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    k2t.freeze(model)(x)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_copy_gives_the_same_bits(copied: Any) -> None:
    fast, x = k2t.freeze(tagger()), torch.randn(3, 13, F)
    wanted, other = fast(x), copied(fast)
    assert not k2t.explain(other)
    for _ in range(2):
        same_bits(other(x), wanted)
    assert reasons(other) == {"one call"}


@pytest.mark.parametrize(
    "name", ["train", "eval", "to", "cuda", "double", "load_state_dict", "parameters", "forward"]
)
def test_what_only_a_module_has_is_refused_in_one_line(name: str) -> None:
    fast, attribute = k2t.freeze(k2t.BiLSTM(5, 7)), "tokenizer"
    assert not hasattr(fast, name)
    with pytest.raises(UsageError, match=f"it has no '{name}'; change, move or train the model"):
        getattr(fast, name)
    with pytest.raises(AttributeError, match="no attribute 'tokenizer'"):
        getattr(fast, attribute)


def test_gradients_and_states_are_refused_in_one_line() -> None:
    fast = k2t.freeze(k2t.BiLSTM(5, 7, batch_first=True))
    x = torch.randn(2, 11, 5, requires_grad=True)
    with pytest.raises(UsageError, match="a frozen model gives no gradients"):
        fast(x)
    with torch.no_grad():
        assert not fast(x)[0].requires_grad
    model = k2t.convert(FIXTURES / "stateful_bi_lstm.keras")
    no_model: Any = "model.h5"
    with pytest.raises(UsageError, match=r"keeps states from call to call.*give the states"):
        k2t.freeze(model)
    with pytest.raises(UsageError, match="a model is expected"):
        k2t.freeze(no_model)


def test_sizes_can_be_prepared_ahead() -> None:
    model: Any = k2t.convert(FIXTURES / "mask_stack_bi_dense.h5")
    sizes: Any = (5, 7)
    fast = k2t.freeze(model, [(5, 7), (2, 11)])
    known = k2t.explain(fast)
    assert [*known.values()] == ["one call"] * 2
    for rows in (5, 2):
        fast(torch.randint(0, 17, (rows, 7 if rows == 5 else 11), dtype=torch.int32))
    assert k2t.explain(fast) == known
    assert k2t.explain(k2t.freeze(k2t.BiGRU(5, 7), [(11, 3, 5)])) == {
        "float32 [11, 3, 5]; 1 thread": "one call"
    }
    with pytest.raises(UsageError, match="shapes of 1 inputs are expected, found 2"):
        k2t.freeze(model, [((5, 7), (5, 7))])
    with pytest.raises(UsageError, match="a list of shapes is expected"):
        k2t.freeze(model, sizes)
    with pytest.raises(UsageError, match="call what freeze returns"):
        k2t.freeze(nn.Linear(5, 3), [(2, 5)])
    with pytest.raises(UsageError, match="sizes of at least 1"):
        k2t.freeze(model, [(5, -7)])


# ---- calls --------------------------------------------------------------------------------------


def test_a_frozen_model_is_mapped_and_compiled_by_its_modules() -> None:
    model, x = tagger(), torch.randn(3, 13, F)
    fast = k2t.freeze(model)
    fast(x)
    with torch.no_grad():
        close(torch.vmap(fast)(x[None]), by_layers(model, x)[None])
    assert len(k2t.explain(fast)) == 1
    module = k2t.BiLSTM(5, 7, batch_first=True).eval()
    fast, x = k2t.freeze(module), torch.randn(2, 11, 5)
    compiled: Any = torch.compile(lambda given: fast(given)[0] * 2, backend="eager")
    with torch.no_grad():
        close(compiled(x), by_layers(module, x)[0] * 2)
    assert not k2t.explain(fast)


def test_ids_without_a_row_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (ids,) = converted(FIXTURES / "mask_stack_bi_dense.h5")
    called = Counted(model, monkeypatch)
    called(ids)
    for wrong in (17, -1):
        with pytest.raises(ArgumentValueError):
            called(torch.full_like(ids, wrong))
    called(ids)
    assert called.computed == 2


def test_ids_that_come_as_floats_are_part_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids,) = converted(FIXTURES / "mask_stack_bi_dense.h5")
    called = Counted(model, monkeypatch)
    floats = ids.float()
    assert torch.equal(called(floats), called(ids))
    for given_ in (floats + 0.75, floats - 0.75 * (floats == 0)):  # the mask is of the floats
        close(called(given_), called.by_layers(given_))
    assert called.computed == 4
    for wrong in (17.0, -1.0, torch.nan, torch.inf, 3e9):
        with pytest.raises(ArgumentValueError) as by_modules:
            called.by_layers(torch.full_like(floats, wrong))
        with pytest.raises(ArgumentValueError) as by_program:
            called(torch.full_like(floats, wrong))
        assert str(by_program.value) == str(by_modules.value)
    called(floats)
    assert called.computed == 5


def test_wrong_inputs_are_refused_as_the_model_refuses_them() -> None:
    module = k2t.BiLSTM(5, 7, batch_first=True).eval()
    fast, x = k2t.freeze(module), torch.randn(2, 11, 5)
    fast(x)
    for wrong in (x.double(), x[..., :3], x[0, 0], "text"):
        with pytest.raises(UsageError) as by_module:
            module(wrong)
        with pytest.raises(UsageError) as by_program:
            fast(wrong)
        assert str(by_program.value) == str(by_module.value)
    with pytest.raises(ArgumentValueError, match="mask"):
        fast(x, mask=torch.ones(2, 3, dtype=torch.bool))


def test_views_with_other_strides_and_conjugates_are_read_right() -> None:
    module = k2t.BiLSTM(5, 7, batch_first=True).eval()
    fast = k2t.freeze(module, [(2, 11, 5)])
    turned = torch.randn(11, 2, 5).transpose(0, 1)
    negated = torch.randn(2, 11, 5, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    for x in (turned, torch.randn(2, 11, 10)[..., ::2], negated):
        same_bits(fast(x), by_layers(module, x))


def test_several_threads_call_one_model_that_still_records() -> None:
    model = tagger()
    fast = k2t.freeze(model)
    inputs = [torch.randn(3, 5 + i % 9, F) for i in range(80)]
    wanted = [by_layers(model, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, right in zip(pool.map(fast, inputs), wanted, strict=True):
            close(got, right)
    assert reasons(fast) == {"one call"}
    assert len(k2t.explain(fast)) == 9


def test_every_call_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = converted(FIXTURES / "arch_reader.h5")
    called = Counted(model, monkeypatch)
    wanted = called(*inputs)
    for _ in range(3):
        same_bits(called(*inputs), wanted)
    assert called.computed == 4


def test_what_recording_needs_is_freed_at_once() -> None:
    def alive() -> int:
        return sum(type(found) in (Tensor, nn.Parameter) for found in gc.get_objects())

    fast = k2t.freeze(tagger())
    fast(torch.randn(1, 2, F))
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for time in range(3, 13):
            fast(torch.randn(1, time, F))
        assert len(k2t.explain(fast)) == 11
        assert alive() - before <= 40 * 10  # one like each output, and what is made of weights
    finally:
        gc.enable()
