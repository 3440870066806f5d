"""Inputs of the whole-model check of ``verify``: drawn ones, and the user's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chaotic import STEPS, chaotic
from commands import k2t
from out_files import changing, write_out
from specs import FIXTURES, KERAS3, F, bi, chain, fixture, layer, rnn

import keras2torch_birnn as birnn
from keras2torch_birnn import golden as golden_vectors
from keras2torch_birnn import verification
from keras2torch_birnn.golden import origin
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import rounding
from keras2torch_birnn.reference.rounding import Measured, share_of, steadiest
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates, normal
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.verification import verify
from keras2torch_birnn.verification.given_inputs import given_inputs
from keras2torch_birnn.verification.live_keras import KerasAnswer

GRU = "tf.keras-2.15.0/bi_gru_after_concat_seq.h5"
IDS = "tf.keras-2.15.0/mask_stack_bi_dense.h5"
TWO = "keras-3.15.1/graph_siamese.keras"


@pytest.fixture
def wild(tmp_path: Path) -> tuple[Path, Path]:
    """A chaotic model and its right OUT."""
    return pair(chaotic(GRU, tmp_path), tmp_path)


def pair(source: Path, folder: Path) -> tuple[Path, Path]:
    return source, write_out(source, folder)


# ---- drawn inputs ------------------------------------------------------------------------------


def test_candidates_are_of_several_kinds_and_then_shorter() -> None:
    spec = ModelSpec(chain(rnn("GRU"), shape=(None, 31, F)), KERAS3)
    drawn = {one.name: one.arrays[0] for one in candidates(spec, steps=11, seed=1)}
    assert list(drawn) == [
        *(kinds := ["normal numbers", "rows that sum to 1", "one-hot rows"]),
        "normal numbers times 0.1",
        "normal numbers times 0.01",
        *(f"{kind}, 11 steps" for kind in kinds),
        "normal numbers times 0.1, 11 steps",
        "normal numbers times 0.01, 11 steps",
    ]
    assert all(x.dtype == np.float32 for x in drawn.values())
    assert {x.shape for name, x in drawn.items() if "11" not in name} == {(3, 31, F)}
    assert {x.shape for name, x in drawn.items() if "11" in name} == {(3, 11, F)}
    shares = drawn["rows that sum to 1"]
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=2), 1, rtol=1e-6)
    assert (np.sort(drawn["one-hot rows"], axis=2) == [0, 1]).all()
    small, normal_ones = drawn["normal numbers times 0.1"], drawn["normal numbers"]
    np.testing.assert_allclose(small, normal_ones / 10, rtol=1e-6)


def test_ids_have_no_kinds() -> None:
    words = layer("Embedding", weights={"embeddings": np.ones((13, F))}, input_dim=13, output_dim=F)
    spec = ModelSpec(chain(words, rnn("GRU"), shape=(None, None)), KERAS3)
    assert [one.name for one in candidates(spec, steps=7, seed=1)] == ["normal numbers"]


def measured(*shares: float) -> list[Drawn]:
    return [Drawn(str(share), ()) for share in shares]


def by_name(drawn: Drawn) -> Measured:
    return Measured(drawn, (np.array([2.0]),), (2 * float(drawn.name),))


@pytest.mark.parametrize(
    ("shares", "chosen", "tries", "judged"),
    [
        ((1e-7, 1e-8), 1e-7, 1, True),  # the first is good enough
        ((0.9, 1e-7, 1e-8), 1e-7, 2, True),
        ((0.9, 5e-4, 2e-4), 2e-4, 3, True),  # none is good: the best
        ((0.9, 2e-3, 5e-3), 2e-3, 3, False),
    ],
)
def test_inputs_are_tried_until_rounding_is_small(
    shares: tuple[float, ...], chosen: float, tries: int, judged: bool
) -> None:
    best, tried = steadiest(measured(*shares), by_name)
    assert (best.drawn.name, len(tried), best.judged) == (str(chosen), tries, judged)


def test_rounding_is_measured_by_the_size_of_each_output() -> None:
    outputs = [np.array([1000.0, -4000.0]), np.array([0.5, np.nan]), np.zeros(3)]
    assert share_of(outputs, [4.0, 0.001, 0.0]) == pytest.approx(0.002)
    assert share_of(outputs, [4.0, 0.001, 1e-9]) == np.inf
    assert share_of(outputs, [0.0, 0.0, 0.0]) == 0.0
    assert share_of([], []) == 0.0


def test_the_report_names_every_input_that_was_tried(
    wild: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = k2t("verify", *wild, "--against", "reference", "--per-layer")
    assert run.code == 0
    lines = run.out.splitlines()
    assert lines[-1] == "OK"
    assert f" of {STEPS} steps in sequence, each step from the reference's own state" in lines[1]
    tried = [line for line in lines if line.startswith("cpu ") and "frozen" not in line]
    assert tried[0].split()[:4] == ["cpu", "reference", "normal", "numbers"]
    assert all(line.endswith(" not judged") for line in tried[:-1])
    assert tried[-1].endswith(" equal")
    assert len(tried) > 1


def only_normal(*args: Any, **kwargs: Any) -> Iterator[Drawn]:
    yield from [next(candidates(*args, **kwargs))]


def test_a_model_that_no_input_can_judge_is_not_ok(
    wild: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "candidates", only_normal)
    report = verify(*wild, against="reference")
    assert not report.ok
    assert not report.judged
    assert report.inputs == ""
    assert report.first_divergence is None
    assert [c.judged for c in report.comparisons] == [False]


# ---- the live Keras as a yardstick ---------------------------------------------------------------


def answering(
    monkeypatch: pytest.MonkeyPatch, outputs: Callable[[Array], Array], coarseness: float = 1.0
) -> list[Any]:
    """Let a live Keras answer with what ``outputs`` makes of the exact one; returns its inputs."""
    asked: list[Any] = []

    def answer(model: Any, config: Any, spec: ModelSpec, inputs: tuple[Array, ...]) -> KerasAnswer:
        asked.append(inputs)
        exact = verification.by_reference(spec, Drawn("", tuple(inputs))).outputs
        return KerasAnswer("keras 0.0", tuple(map(outputs, exact)), coarseness)

    monkeypatch.setattr(verification, "ask_keras", answer)
    return asked


def test_a_keras_that_disagrees_is_no_excuse_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the file read wrongly, only Keras would know: its distance is not its rounding."""
    files = pair(FIXTURES / IDS, tmp_path)
    answering(monkeypatch, lambda y: y + 0.1)
    report = verify(*files)
    assert not report.ok
    verdicts = {c.against: c.ok for c in report.comparisons if "frozen" not in c.against}
    assert verdicts == {"reference": True, "keras 0.0": False}
    answering(monkeypatch, lambda y: y)
    assert verify(*files).ok


def test_a_keras_of_half_precision_rounds_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pair(FIXTURES / IDS, tmp_path)
    answering(monkeypatch, lambda y: y * (1 + 1e-3))
    assert not verify(*files, against="keras").ok
    answering(monkeypatch, lambda y: y * (1 + 1e-3), coarseness=2.0**13)
    assert verify(*files, against="keras").ok


def test_keras_is_asked_on_the_inputs_that_were_chosen(
    wild: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, lambda y: y)
    report = verify(*wild)
    ((given,),) = asked
    chosen = {one.name: one.arrays[0] for one in candidates(read(wild[1]), steps=11, seed=1)}
    np.testing.assert_array_equal(given, chosen[report.inputs])
    assert report.ok


def read(out: Path) -> ModelSpec:
    return origin(birnn.load(out)).spec


# ---- golden vectors ----------------------------------------------------------------------------


def test_golden_vectors_that_rounding_drowns_are_not_judged(tmp_path: Path) -> None:
    """Such as k2t made before it looked for better inputs; those know one rounding for all."""
    _, out = pair(FIXTURES / IDS, tmp_path)
    with changing(out) as (content, _):
        del content["golden"]["roundings"]
    assert verify(out).ok
    with changing(out) as (content, _):
        content["golden"]["rounding"] = 0.5
    report = verify(out)
    assert not report.ok
    assert not report.judged
    run = k2t("verify", out)
    assert run.code == 1
    *_, line, last = run.out.splitlines()
    assert line.endswith(" 5.0e-01 not judged")
    assert last == "CANNOT BE JUDGED"


def test_golden_vectors_are_made_of_inputs_that_say_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        golden_vectors, "GOLDEN_STEPS", STEPS
    )  # as a model that cannot be shortened
    _, out = pair(chaotic(GRU, tmp_path), tmp_path)
    golden = origin(birnn.load(out)).golden
    assert golden.inputs[0].abs().max() <= 1 or golden.inputs[0].shape[1] < STEPS
    assert share_of([y.numpy() for y in golden.outputs], golden.roundings) < 1e-3
    assert verify(out).ok


def test_golden_vectors_of_a_trained_model_are_chosen_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = pair(FIXTURES / GRU, tmp_path)
    model = birnn.load(out)
    monkeypatch.setattr(golden_vectors, "GOLDEN_STEPS", STEPS)
    before = origin(model).golden
    long = torch.from_numpy(normal(np.random.default_rng(3), (3, STEPS, before.inputs[0].shape[2])))
    model.meta["keras2torch_birnn"] = with_golden(model, long)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "weight_hh" in name:
                weight.mul_(30)
    birnn.save(model, out)
    golden = origin(birnn.load(out)).golden
    assert golden.made_by == "model"
    assert not torch.equal(golden.inputs[0], long)
    assert verify(out).ok


def with_golden(model: torch.nn.Module, inputs: torch.Tensor) -> Any:
    """The model's origin with other golden inputs."""
    facts = origin(model)
    return replace(facts, golden=replace(facts.golden, inputs=(inputs,)))


# ---- the user's own data -----------------------------------------------------------------------


def test_own_data_is_compared_as_well(tmp_path: Path) -> None:
    files = pair(FIXTURES / GRU, tmp_path)
    (x,) = fixture(GRU).inputs[0]
    name = read(files[1]).input_layers()[0].name
    data = tmp_path / "data.npz"
    np.savez(data, **{name: x})
    for inputs in (data, str(data), {name: x}, [x], (torch.from_numpy(x),), {name: x.tolist()}):
        report = verify(*files, against="reference", inputs=inputs)
        assert report.ok
        assert report.inputs == "the inputs given"
        assert {c.inputs for c in report.comparisons} == {"the inputs given"}
    np.savez(data, x)  # without a name: Keras' order
    assert verify(*files, against="reference", inputs=data).ok
    run = k2t("verify", *files, "--against", "reference", "--inputs", data)
    assert run.code == 0
    assert re.search(r"cpu +reference +the inputs given ", run.out)


def test_own_data_finds_what_no_drawn_input_reaches(tmp_path: Path) -> None:
    """A row of an Embedding that no drawn batch looks up."""
    files = pair(FIXTURES / IDS, tmp_path)
    drawn = next(candidates(read(files[1]), steps=11, seed=1)).arrays[0]
    vocabulary = len(birnn.load(files[1]).embedding.weight)
    unused = sorted(set(range(1, vocabulary)) - set(drawn.ravel().tolist()))
    unused = unused or [vocabulary - 1]
    with changing(files[1]) as (content, _):
        content["state_dict"]["embedding.weight"][unused[0]] += 0.5
    own = np.full((2, 7), unused[0])
    report = verify(*files, against="reference", inputs=[own])
    assert not report.ok
    assert report.first_divergence == "embedding"


def test_own_data_that_rounding_drowns_is_said_to_be_so_and_others_are_tried(
    wild: tuple[Path, Path],
) -> None:
    width = birnn.load(wild[1]).bidirectional.input_size
    x = np.random.default_rng(4).normal(size=(2, STEPS, width))
    report = verify(*wild, against="reference", inputs=[x])
    first, *_, last = report.comparisons
    assert (first.inputs, first.judged) == ("the inputs given", False)
    assert last.judged
    assert last.inputs == report.inputs != "the inputs given"
    assert report.ok
    assert "steps in sequence" in report.layers[0].judged


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], r"0 inputs, the model takes 1: "),
        (7, r"inputs of type int; give a path, a list of arrays, or a dict with "),
        ({"other": np.zeros((1, 7, 2))}, r"inputs named other, the model takes "),
        ({}, r"inputs named nothing, the model takes "),
        ([np.zeros((2, 7))], r"input \S+ has shape \(2, 7\), \(any, 7, \d+\) is expected"),
        ([np.zeros((0, 7, 2))], r"has shape \(0, 7, 2\)"),
        ([np.full((1, 7, 2), "a")], r"holds <U1, numbers are expected"),
        ([[[[1.0, 2.0]], [3.0]]], r"holds object, numbers are expected"),
        ([np.full((1, 7, 2), np.nan)], r"holds NaN or infinite values, which cannot be compared"),
        ([np.full((1, 7, 3), 1e300)], r"holds values beyond float32"),
    ],
)
def test_own_data_that_does_not_fit_is_refused(inputs: Any, words: str, tmp_path: Path) -> None:
    files = pair(FIXTURES / GRU, tmp_path)
    with pytest.raises(birnn.UsageError, match=words):
        verify(*files, against="reference", inputs=inputs)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.full((1, 7), 1.5), r"holds fractions, integers are expected"),
        (np.full((1, 7), 2.0**40), r"input \S+ holds values beyond int32"),
        (
            np.full((1, 7), -1),
            r"the model cannot be computed on the given inputs \(layer embedding",
        ),
        (np.full((1, 7), 10**6), r"cannot be computed on the given inputs \(index 1000000 is out"),
    ],
)
def test_own_ids_beyond_the_vocabulary_are_refused(ids: Array, words: str, tmp_path: Path) -> None:
    files = pair(FIXTURES / IDS, tmp_path)
    with pytest.raises(birnn.UsageError, match=words):
        verify(*files, against="reference", inputs=[ids])


def test_own_data_of_several_inputs_has_one_number_of_rows(tmp_path: Path) -> None:
    files = pair(FIXTURES / TWO, tmp_path)
    given = [np.asarray(x) for x in fixture(TWO).inputs[0]]
    assert len(given) > 1
    assert verify(*files, against="reference", inputs=given).ok
    with pytest.raises(birnn.UsageError, match=r"the inputs have 1, \d+ rows; give each the same"):
        verify(*files, against="reference", inputs=[given[0][:1], *given[1:]])


def encrypt(data: bytearray, central: int) -> None:
    data[central + 8] |= 1


def compress_otherwise(data: bytearray, central: int) -> None:
    data[central + 10] = 77


def break_stream(data: bytearray, central: int) -> None:
    data[central // 2 : central // 2 + 20] = bytes(range(20))


def open_bracket(data: bytearray, central: int) -> None:
    at = data.find(b"{'descr'")
    data[at : at + 10] = b"{'descr',("


@pytest.mark.parametrize("change", [encrypt, compress_otherwise, break_stream, open_bracket])
def test_damage_that_a_library_reports_in_its_own_way_is_told_in_one_line(
    change: Callable[[bytearray, int], None], tmp_path: Path
) -> None:
    """By RuntimeError, NotImplementedError, zlib.error and an error of tokenize or ValueError."""
    file, spec = tmp_path / "data.npz", read_model(FIXTURES / GRU)
    (np.savez if change is open_bracket else np.savez_compressed)(file, np.arange(700) ** 2)
    data = bytearray(file.read_bytes())
    change(data, data.find(b"PK\1\2"))
    file.write_bytes(data)
    with pytest.raises(birnn.InvalidModelFileError, match=r"is not an \.npz file"):
        given_inputs(spec, file)


def test_golden_vectors_take_no_other_inputs(tmp_path: Path) -> None:
    files = pair(FIXTURES / GRU, tmp_path)
    with pytest.raises(birnn.UsageError, match="golden vectors have their own inputs"):
        verify(*files, against="golden", inputs=[])


@pytest.mark.parametrize(
    "given", [{"inputs": []}, {"against": "reference"}, {"config": "a.json"}, {"to_layer": "a"}]
)
def test_out_alone_takes_nothing_that_needs_its_model(given: Any, tmp_path: Path) -> None:
    _, out = pair(FIXTURES / GRU, tmp_path)
    with pytest.raises(birnn.UsageError, match="OUT alone can be compared with its golden vectors"):
        verify(out, **given)


# ---- tolerances --------------------------------------------------------------------------------


def test_tolerances_of_the_command_are_obeyed_as_given(tmp_path: Path) -> None:
    files = pair(FIXTURES / IDS, tmp_path)
    strict = k2t("verify", *files, "--against", "reference", "--atol", "0", "--rtol", "0")
    assert strict.code == 1
    lines = strict.out.count("\ncpu")
    assert strict.out.count("NOT EQUAL") == lines + 1  # of all
    assert strict.out.splitlines()[-1] == "NOT EQUAL"
    assert k2t("verify", files[1], "--atol", "0", "--rtol", "0").code == 1
    assert k2t("verify", *files, "--against", "reference", "--atol", "1e-4").code == 0


def test_the_model_of_bidirectional_halves_is_drawn_alike_every_time() -> None:
    spec = ModelSpec(chain(bi(rnn("GRU"), rnn("GRU", seed=1))), KERAS3)
    first, second = (next(candidates(spec, steps=11, seed=1)).arrays[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_scalar_output_stays_one_in_the_golden_vectors(tmp_path: Path) -> None:
    _, out = pair(FIXTURES / "keras-3.0.5/ops_reduce_first.keras", tmp_path)
    assert any(y.dim() == 0 for y in origin(birnn.load(out)).golden.outputs)
    assert verify(out).ok


def test_rounding_that_something_amplifies_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(chain(rnn("GRU"), shape=(None, 31, F)), KERAS3)
    drawn = next(candidates(spec, steps=11, seed=1))
    once = rounding.by_reference(spec, drawn).roundings
    monkeypatch.setattr(rounding, "PLAIN", 0.0)
    thrice = rounding.by_reference(spec, drawn).roundings
    assert rounding.by_reference(spec, drawn).roundings == thrice  # the same every time
    assert thrice > once > (0.0,)
    assert share_of([np.ones(1)], thrice) < rounding.SMALL
