"""Refusals by name; nothing is left behind then."""

from __future__ import annotations

import copy
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import contents
from commands import k2t as run
from sampling import in_turn
from specs import FIXTURES
from torch import nn
from trained import train

import keras2torch_birnn as k2t

SOURCE = FIXTURES / "keras-2.3.1/mask_bi_lstm_seq.h5"
COMPILED = FIXTURES / "tf.keras-2.15.0/compiled.h5"


@pytest.fixture
def model() -> Any:
    return k2t.convert(SOURCE)


def lstm_of(model: nn.Module) -> nn.LSTM:
    return next(one for one in model.modules() if isinstance(one, nn.LSTM))


def test_a_second_bias_that_is_not_zero(model: Any, tmp_path: Path) -> None:
    lstm_of(model).bias_hh_l0_reverse.data[2] = 0.25
    with pytest.raises(
        k2t.WeightMismatchError, match="bias_hh_l0_reverse: 1 of its values are zero"
    ):
        k2t.write_back(model, SOURCE, tmp_path / "new.h5")
    assert not contents(tmp_path)


def test_values_that_keras_has_no_weight_for(tmp_path: Path) -> None:
    source = FIXTURES / "tf.keras-2.15.0/around_rescaling.h5"
    model = k2t.convert(source)
    next(b for n, b in model.named_buffers() if n.endswith("scale")).add_(1)
    with pytest.raises(
        k2t.WeightMismatchError, match="fixed in Keras, and were changed; Keras has no"
    ):
        k2t.write_back(model, source, tmp_path / "new.h5")


def test_exchanged_added_and_removed_modules(model: Any, tmp_path: Path) -> None:
    name = next(n for n, m in model.named_children() if isinstance(m, nn.LSTM))
    changed = copy.deepcopy(model)
    setattr(changed, name, nn.Linear(2, 3))
    with pytest.raises(
        k2t.UsageError, match=f"{name}: Linear, converted was LSTM; put its weights"
    ):
        k2t.write_back(changed, SOURCE, tmp_path / "new.h5")
    changed = copy.deepcopy(model)
    changed.head = nn.Linear(2, 3)
    with pytest.raises(k2t.UsageError, match="head: Linear, converted was nothing"):
        k2t.write_back(changed, SOURCE, tmp_path / "new.h5")
    with pytest.raises(k2t.UsageError, match=r"not made by k2t\.convert"):
        k2t.write_back(nn.Linear(2, 3), SOURCE, tmp_path / "new.h5")
    path: Any = tmp_path / "model.pt"
    with pytest.raises(k2t.UsageError, match=r"found the path .*model\.pt'.*k2t\.load\(path\)"):
        k2t.write_back(path, SOURCE, tmp_path / "new.h5")


def test_other_shapes(model: Any, tmp_path: Path) -> None:
    lstm = lstm_of(model)
    lstm.weight_ih_l0 = nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(k2t.UsageError, match=r"weight_ih_l0: \[3, 5\], converted was"):
        k2t.write_back(model, SOURCE, tmp_path / "new.h5")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("keras-2.3.1/mask_bi_gru_after_seq.h5", r"GRU\) here, .*LSTM\) there"),
        ("keras-2.3.1/mask_bi_lstm_last.h5", 'merge_mode="sum" here, merge_mode="concat" there'),
        ("keras-2.2.4/mask_bi_lstm_seq.h5", "Keras keras2 2.2.4 here, Keras keras2 2.3.1 there"),
        ("keras-2.3.1/mask_td_dense.h5", "another model than that of OUT"),
    ],
)
def test_another_model(other: str, words: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(k2t.WeightMismatchError, match=words):
        k2t.write_back(model, FIXTURES / other, tmp_path / "new.h5")
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    "name", ["keras-3.5.0/twice_wrapped_first.keras", "tf.keras-2.15.0/twice_wrapped_first.h5"]
)
def test_one_layer_of_keras_that_was_trained_as_two(name: str, tmp_path: Path) -> None:
    source = FIXTURES / name
    model, out = k2t.convert(source), tmp_path / Path(name).name
    k2t.write_back(model, source, out)
    out.unlink()
    with pytest.raises(k2t.WeightMismatchError, match="one in Keras, but differ; give both"):
        k2t.write_back(train(model), source, out)


@pytest.mark.parametrize(
    "name", ["keras-3.5.0/twice_wrapped_first.keras", "tf.keras-2.15.0/twice_wrapped_first.h5"]
)
def test_one_layer_of_keras_that_was_shared_and_trained(name: str, tmp_path: Path) -> None:
    source = FIXTURES / name
    model: Any = k2t.convert(source)
    before = model.shared_dense.weight.detach().clone()
    model.time_distributed = model.shared_dense
    out, saved = tmp_path / Path(name).name, tmp_path / "saved.pt"
    k2t.write_back(train(model), source, out)
    k2t.save(model, saved)
    for found in (k2t.convert(out), k2t.load(saved), copy.deepcopy(model)):
        for one in (found.shared_dense, found.time_distributed):
            assert torch.equal(one.weight, model.shared_dense.weight)
            assert not torch.equal(one.weight, before)


def test_numbers_that_do_not_fit(model: Any, tmp_path: Path) -> None:
    model = model.double()
    same = k2t.write_back(model, SOURCE, tmp_path / "same.h5")
    assert same.changed == 0
    lstm = lstm_of(model)
    lstm.weight_ih_l0.data[0, 1] = 0.1
    with pytest.raises(
        k2t.WeightMismatchError, match=r"float32, which cannot hold 1 of 1 changed .*exactly"
    ):
        k2t.write_back(model, SOURCE, tmp_path / "new.h5")
    written = k2t.write_back(model, SOURCE, tmp_path / "new.h5", allow_rounding=True)
    assert written.changed == 1
    again = lstm_of(k2t.convert(tmp_path / "new.h5")).weight_ih_l0[0, 1]
    assert again == torch.tensor(0.1, dtype=torch.float32)
    lstm.weight_ih_l0.data[0, 1] = 1e300
    for rounding in (False, True):
        with pytest.raises(k2t.WeightMismatchError, match="only trained values that fit"):
            k2t.write_back(model, SOURCE, tmp_path / "big.h5", allow_rounding=rounding)


# ---- NEW ---------------------------------------------------------------------------------------


def test_nothing_is_replaced(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "new.h5"
    for content in (b"", b"something"):
        out.write_bytes(content)
        with pytest.raises(k2t.OutputError, match="exists already; write-back never replaces"):
            k2t.write_back(model, SOURCE, out)
        assert out.read_bytes() == content
    with pytest.raises(k2t.OutputError, match="is the input itself"):
        k2t.write_back(model, SOURCE, SOURCE)
    with pytest.raises(k2t.OutputError, match=r"ends in .keras; NEW ends in .h5"):
        k2t.write_back(model, SOURCE, tmp_path / "new.keras")
    with pytest.raises(k2t.OutputError, match="there is no folder"):
        k2t.write_back(model, SOURCE, tmp_path / "none" / "new.h5")


# What writing calls, and may fail at any call of it.
STEPS = ("fsync", "open", "link", "sendfile", "chmod")
SOURCES = (
    FIXTURES / "keras-2.3.1/mask_bi_gru_after_seq.h5",
    FIXTURES / "keras-3.15.1/mask_stack_plain.keras",
)


@pytest.mark.parametrize(("step", "source"), in_turn(STEPS, SOURCES))
def test_every_fault_leaves_the_source_and_nothing_else(
    step: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., Any] = getattr(os, step)
    model, before, new = train(k2t.convert(source)), source.read_bytes(), tmp_path / source.name
    calls = failing = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(28, "No space left on device")
        return right(*arguments, **options)

    monkeypatch.setattr(os, step, call)
    k2t.write_back(model, source, new)
    total, whole = calls, contents(tmp_path)
    for number in {1, 2, total // 2, total} if total else ():
        new.unlink(missing_ok=True)
        calls, failing, done = 0, number, True
        try:
            k2t.write_back(model, source, new)
        except k2t.K2TError:
            done = False
        assert source.read_bytes() == before
        assert contents(tmp_path) == (whole if done else {})


# ---- optimizers --------------------------------------------------------------------------------


def test_the_optimizer_is_kept_with_a_note_or_dropped(tmp_path: Path) -> None:
    import h5py

    model = k2t.convert(COMPILED)
    assert k2t.write_back(model, COMPILED, tmp_path / "same.h5").notes == ()
    train(model)
    written = k2t.write_back(model, COMPILED, tmp_path / "kept.h5", optimizer="keep")
    assert "the optimizer's state was kept" in written.notes[0]
    written = k2t.write_back(model, COMPILED, tmp_path / "dropped.h5", optimizer="drop")
    assert written.notes == ()
    with h5py.File(COMPILED) as old, h5py.File(tmp_path / "dropped.h5") as new:
        assert set(old) - set(new) == {"optimizer_weights"}
        assert dict(old.attrs) == dict(new.attrs)
    with h5py.File(COMPILED) as old, h5py.File(tmp_path / "kept.h5") as new:
        assert set(old) == set(new)


def test_no_other_choice_of_optimizer(tmp_path: Path) -> None:
    model = k2t.convert(COMPILED)
    optimizer: Any = torch.optim.SGD(model.parameters())
    for choice in ("write", optimizer, None):
        with pytest.raises(k2t.UsageError, match=r"optimizer '.*': keep or drop is expected"):
            k2t.write_back(model, COMPILED, tmp_path / "new.h5", optimizer=choice)


def test_weights_that_are_not_finite_are_said(tmp_path: Path) -> None:
    model = k2t.convert(COMPILED)
    first = next(name for name, _ in model.named_parameters())
    with torch.no_grad():
        model.get_parameter(first).view(-1)[1] = float("nan")
    written = k2t.write_back(model, COMPILED, tmp_path / "new.h5", optimizer="drop")
    assert f"1 tensors have values that are NaN or infinite: {first}" in written.notes


# ---- the command -------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    out, new = tmp_path / "out.pt", tmp_path / "new.h5"
    k2t.save(train(k2t.convert(COMPILED)), out)
    done = run("write-back", out, COMPILED, new)
    assert (done.code, done.lines("error")) == (0, [])
    assert done.lines("note")[0].startswith("the optimizer's state was kept")
    assert done.out.endswith("arrays changed\n")
    refused = run("write-back", out, COMPILED, new)
    assert refused.code == 5
    assert "exists already; write-back never replaces" in refused.lines("error")[0]
    assert run("write-back", out, COMPILED, out).code == 5
    done = run("write-back", out, COMPILED, tmp_path / "other.h5", "--json", "--optimizer", "drop")
    assert '"changed"' in done.out
    assert run("write-back", out, COMPILED, "x.h5", "--optimizer", "lose").code == 2
    assert run("write-back", out, SOURCE, tmp_path / "x.h5").code == 3
    with zipfile.ZipFile(FIXTURES / "keras-3.15.1/mask_stack_plain.keras") as archive:
        archive.extractall(tmp_path / "folder")
    refused = run("write-back", out, tmp_path / "folder", tmp_path / "x")
    assert refused.code == 4
    assert refused.lines("error")[0].endswith("save it as .keras there, and convert that")
