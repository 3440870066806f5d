"""The check of every layer: right where rounding grows without end, precise where it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chaotic import STEPS, chaotic
from out_files import changing, write_out
from specs import (
    ENTRIES,
    FIXTURES,
    KERAS3,
    F,
    H,
    T,
    bi,
    chain,
    dense,
    layer,
    rnn,
    values,
    with_options,
)

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import WeightMismatchError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import LayerSpec, ModelSpec
from keras2torch_birnn.verification import LayerParity, check_layers, verify

TF, K2 = "tf.keras-2.15.0", "keras-2.2.4"
# File -> by how much its recurrent kernels must grow to make it chaotic
FACTORS = {
    f"{TF}/bi_gru_after_concat_seq.h5": 30,
    f"{TF}/bi_gru_before_sum_seq.h5": 30,
    f"{TF}/bi_lstm_sum_seq.h5": 100,
    f"{K2}/bi_lstm_none_last.h5": 30,
}
CHAOTIC = tuple(FACTORS)
MASKING = f"{TF}/mask_stack_bi_dense.h5"


def judged(reference: LayerSpec, converted: LayerSpec, *shape: int) -> dict[str, LayerParity]:
    """One spec's module, judged by another spec's reference."""
    inputs = (values(*shape).astype(np.float32),)
    wanted = ModelSpec(reference, KERAS3)
    trace = compute(wanted, inputs, scans=True)
    return {
        one.path: one
        for one in check_layers(build(ModelSpec(converted, KERAS3)), wanted, trace, inputs)
    }


# ---- right models ------------------------------------------------------------------------------


@pytest.mark.every(2)
@pytest.mark.parametrize("file", CHAOTIC)
def test_a_right_model_is_ok_where_rounding_doubles_at_every_step(
    file: str, tmp_path: Path
) -> None:
    source = chaotic(file, tmp_path, factor=FACTORS[file])
    report = verify(source, write_out(source, tmp_path), against="reference")
    assert report.ok
    (parity,) = report.layers
    steps, _, rest = parity.judged.partition(" of ")
    assert rest == f"{STEPS} steps in sequence, each step from the reference's own state"
    assert 1 < int(steps) < STEPS / 2
    assert parity.max_abs_error < 1e-9
    first, *_, last = report.comparisons
    assert first.inputs == "normal numbers"
    assert not first.judged
    assert not first.ok
    assert first.yardstick_error > 0.1
    assert last.ok
    assert last.inputs == report.inputs != "normal numbers"
    assert report.max_abs_error == last.max_abs_error < 1e-4


@pytest.mark.parametrize("options", [{"stateful": True}, {"go_backwards": True}, {}])
def test_a_chaotic_layer_of_one_direction_is_judged_by_its_beginning(
    options: dict[str, bool],
) -> None:
    wild = rnn("GRU", return_sequences=True, return_state=True, **options)
    wild.weights["recurrent_kernel"][...] *= 30
    (one,) = judged(chain(wild), chain(wild), 3, STEPS, 2).values()
    assert one.ok
    assert f" of {STEPS} steps in sequence" in one.judged
    other = rnn("GRU", return_sequences=True, return_state=True, **options)
    gates = np.split(wild.weights["recurrent_kernel"], 3, axis=1)
    other.weights["recurrent_kernel"][...] = np.concatenate([gate.T for gate in gates], axis=1)
    (two,) = judged(chain(wild), chain(other), 3, STEPS, 2).values()
    assert not two.ok
    assert two.where.startswith("unit ")


def test_a_layer_that_forgets_is_judged_whole_and_step_by_step(tmp_path: Path) -> None:
    source = FIXTURES / MASKING
    report = verify(source, write_out(source, tmp_path), against="reference")
    how = {one.path: one.judged for one in report.layers}
    both = "whole, and each step from the reference's own state"
    assert how["bidirectional"] == how["bidirectional_1"] == both
    assert how["embedding"] == how["dense"] == "whole"


def test_a_file_in_double_precision_that_became_single_is_right(tmp_path: Path) -> None:
    """OUT was made in float32 on purpose; its weights are the file's, rounded once."""
    file = next(f for f, e in ENTRIES.items() if "dtypes_whole" in f and not e["config"])
    single = k2t.convert(FIXTURES / file).float()
    assert any(p.dtype == torch.float32 for p in single.parameters())
    out = tmp_path / "out.pt"
    k2t.save(single, out)
    assert verify(FIXTURES / file, out, against="reference").ok


# ---- wrong models ------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CHAOTIC[:1])
@pytest.mark.parametrize(("ending", "half"), [("", "forward half"), ("_reverse", "backward half")])
def test_a_wrong_weight_of_a_chaotic_layer_is_named_by_half_and_unit(
    file: str, ending: str, half: str, tmp_path: Path
) -> None:
    source = chaotic(file, tmp_path, factor=FACTORS[file])
    out = write_out(source, tmp_path)
    with changing(out) as (content, _):  # the reset gate of unit 3
        content["state_dict"][f"bidirectional.bias_ih_l0{ending}"][3] += 1e-3
    report = verify(source, out, against="reference")
    assert not report.ok
    (parity,) = report.layers
    assert parity.where.startswith(f"{half}, unit 3, step ")
    assert report.first_divergence == "bidirectional"
    units = k2t.load(out).bidirectional.hidden_size
    row, step, column = parity.worst_index
    assert column == 3 + (units if ending else 0)
    assert parity.where.endswith(f"step {step}")
    assert row < 3


@pytest.mark.parametrize(("mode", "file"), [("mul", CHAOTIC[1]), ("ave", CHAOTIC[2])])
def test_another_merge_of_a_chaotic_layer_is_found(file: str, mode: str, tmp_path: Path) -> None:
    source = chaotic(file, tmp_path, factor=FACTORS[file])
    out = write_out(source, tmp_path)
    with changing(out) as (_, texts):
        for one in texts["architecture"]["config"]["layers"]:
            if one["class_name"] == "Bidirectional":
                one["config"]["merge_mode"] = mode
    report = verify(source, out, against="reference")
    assert report.first_divergence == "bidirectional"
    assert not report.ok


@pytest.mark.parametrize("last", [False, True])
def test_a_wrong_layer_does_not_colour_the_next(last: bool) -> None:
    right = [bi(rnn("GRU", return_sequences=True), rnn("GRU", return_sequences=True, seed=1))]
    right += [rnn("LSTM", features=2 * H, return_sequences=not last, name="text"), dense(3, H)]
    other = bi(rnn("GRU", return_sequences=True, seed=4), right[0].parts["backward_layer"])
    found = judged(chain(*right), chain(other, *right[1:]), 2, T, 2)
    assert {path: one.ok for path, one in found.items()} == {
        "bi": False, "text": True, "dense_0": True
    }  # fmt: skip


def test_a_place_in_a_sequence_is_said_by_row_step_and_feature() -> None:
    right, wrong = dense(5, 2), dense(5, 2)
    wrong.weights["bias"][4] += 1.0
    (one,) = judged(chain(right), chain(wrong), 3, T, 2).values()
    row, step, feature = one.worst_index
    assert feature == 4
    assert one.where == f"row {row}, step {step}, feature 4"


def test_a_wrong_step_of_a_plain_layer_is_said_by_unit_and_step() -> None:
    right, wrong = rnn("LSTM", return_sequences=True), rnn("LSTM", return_sequences=True)
    wrong.weights["bias"][3] += 1.0  # the input gate of unit 3
    (one,) = judged(chain(right), chain(wrong), 3, T, 2).values()
    assert one.where == f"unit 3, step {one.worst_index[1]}"


def test_layers_of_a_model_inside_time_distributed_are_judged_by_themselves() -> None:
    words = bi(rnn("GRU"), rnn("GRU", seed=1))
    inner = chain(words, dense(3, 2 * H), name="inner")
    wrong = chain(words, replace(dense(3, 2 * H, seed=5), name="dense_0"), name="inner")
    every = layer("TimeDistributed", "td", layer=inner, masking="inner")
    broken = layer("TimeDistributed", "td", layer=wrong, masking="inner")
    found = judged(chain(every), chain(broken), 2, 3, T, 2)
    assert found["td/inner/bi"].ok
    assert "each step" in found["td/inner/bi"].judged
    assert not found["td/inner/dense_0"].ok
    assert found["td"].ok  # it is given what the reference's dense layer gives


def test_a_recurrent_layer_inside_time_distributed_is_judged_step_by_step() -> None:
    right = layer("TimeDistributed", "td", layer=rnn("GRU", name="words"), masking="inner")
    wrong = layer("TimeDistributed", "td", layer=rnn("GRU", seed=3, name="words"), masking="inner")
    shape = (2, 3, T, 2)
    assert "each step" in judged(chain(right), chain(right), *shape)["td"].judged
    assert judged(chain(right), chain(wrong), *shape)["td"].where.startswith("unit ")


def test_another_reading_order_is_found_though_every_step_is_right() -> None:
    right = rnn("GRU", return_sequences=True)
    (one,) = judged(chain(right), chain(with_options(right, go_backwards=True)), 3, T, 2).values()
    assert not one.ok
    assert one.where.startswith("unit ")
    assert ", row " in one.where


def test_a_wrong_mask_is_named_as_such(tmp_path: Path) -> None:
    """The values pass through a Masking alike where a row is all the mask value or zero."""
    masking = layer("Masking", "masking", mask_value=0.0)
    other = layer("Masking", "masking", mask_value=9.0)
    spec = chain(masking, rnn("LSTM", name="text"))
    inputs = values(3, T, 2).astype(np.float32)
    inputs[1, 4:] = 0.0
    wanted = ModelSpec(spec, KERAS3)
    trace = compute(wanted, (inputs,), scans=True)
    model = build(ModelSpec(chain(other, rnn("LSTM", name="text")), KERAS3))
    found = {one.path: one for one in check_layers(model, wanted, trace, (inputs,))}
    assert found["masking"].where == "its mask, row 1, step 4"
    assert found["text"].ok


def test_a_merge_after_which_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    source = FIXTURES / MASKING
    out = write_out(source, tmp_path)
    with changing(out) as (_, texts):
        entries = texts["architecture"]["config"]["layers"]
        one = next(e["config"] for e in entries if e["config"]["name"] == "bidirectional_1")
        one["merge_mode"] = "concat"
    with pytest.raises(WeightMismatchError, match="the configuration implies"):
        verify(source, out, against="reference")


def test_a_time_distributed_layer_of_two_inputs_is_judged_whole(tmp_path: Path) -> None:
    source = FIXTURES / "tf.keras-2.10.0/td_two_inputs.h5"
    report = verify(source, write_out(source, tmp_path), against="reference")
    assert report.ok
    assert {one.judged for one in report.layers if one.path.startswith("time")} == {"whole"}


def test_a_picture_that_cannot_be_drawn_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no picture")

    spec = ModelSpec(chain(bi(rnn("GRU"), rnn("GRU", seed=1), "sum")), KERAS3)
    inputs = (np.random.default_rng(0).normal(size=(2, 5, F)).astype("f4"),)
    trace = compute(spec, inputs, scans=True)
    monkeypatch.setattr("keras2torch_birnn.verification.layer_check.map_sequence", fail)
    model = build(spec)
    right = check_layers(model, spec, trace, inputs)
    assert all(one.ok and not one.maps for one in right)
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    (wrong,) = (one for one in check_layers(model, spec, trace, inputs) if not one.ok)
    assert "forward half" in wrong.where
