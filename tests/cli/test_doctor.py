"""``k2t doctor``: what a report of a fault says about the machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from commands import k2t

from keras2torch_birnn import verification
from keras2torch_birnn.rnn import diagnosis, engines
from keras2torch_birnn.rnn.engines import DESCRIPTIONS


def ask() -> dict[str, Any]:
    """Run the command for programs."""
    done = k2t("doctor", "--json")
    assert done.code == 0, done.err
    data: dict[str, Any] = json.loads(done.out)
    return data


def test_every_cell_has_an_engine_and_a_reason() -> None:
    data = ask()
    cells = {(row["cell"], row["training"]) for row in data["engines"]}
    assert cells == {(cell, training) for cell in diagnosis._CELLS for training in (False, True)}
    for row in data["engines"]:
        assert row["engine"] in DESCRIPTIONS
        assert row["reason"]
    assert {row["device"] for row in data["engines"]} >= {"cpu"}
    assert set(data["kernel"]["instruction_sets"]) == {"float32", "bfloat16", "int8"}


def test_it_prints_the_engine_of_each_cell() -> None:
    done = k2t("doctor")
    assert done.code == 0
    assert "LSTM, hard_sigmoid" in done.out
    assert "loop" in done.out or "native" in done.out


def test_it_says_why_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "why_missing", lambda: "no compiler was found")
    found = diagnosis.describe_kernel()
    assert found["missing"] == "no compiler was found"
    assert found["instruction_sets"] == {"float32": [], "bfloat16": [], "int8": []}


def test_a_request_that_cannot_be_met_is_a_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "REQUESTED", "fused")
    monkeypatch.setenv("K2T_ENGINE", "fused")
    data = ask()
    assert data["torch"]["variables"]["K2T_ENGINE"] == "fused"
    lacking = ("LSTM, hard_sigmoid", "GRU, reset_after=False")
    for row in data["engines"]:
        assert row["engine"] == ("none" if row["cell"] in lacking else "fused")
        assert ("torch has no kernel for this layer" in row["reason"]) == (row["cell"] in lacking)


def test_a_device_that_fails_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(verification, "find_accelerators", lambda: ("hpu",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fail)
    data = ask()
    assert data["torch"]["gpus"] == ["RuntimeError: CUDA error: device-side assert triggered"]
    failed = [row for row in data["engines"] if row["device"] == "hpu"]
    assert len(failed) == 2 * len(diagnosis._CELLS)
    assert {row["engine"] for row in failed} == {"none"}
    assert all("Error: " in row["reason"] for row in failed)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.backends.cudnn, "version"),
        (torch.cuda, "device_count"),
        (torch.accelerator, "is_available"),
    ],
)
def test_a_library_that_fails_is_a_line_of_the_report(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("version incompatibility")

    monkeypatch.setattr(owner, name, fail)
    data = ask()
    said = "RuntimeError: version incompatibility"
    found = {"version": data["torch"]["cudnn"], "device_count": data["torch"]["gpus"]}
    assert found.get(name, said) in (said, [said])
    assert {row["device"] for row in data["engines"]} == (
        {"cpu", "cuda"} if name == "is_available" else {"cpu", *verification.find_accelerators()}
    )
    assert k2t("doctor").code == 0


def test_the_parts_of_the_report_have_the_same_keys_everywhere() -> None:
    """Those of the whole and of the engines are compared with the page in test_json."""
    data = ask()
    assert {*data["torch"]} == {*"threads cuda hip cudnn gpus variables".split()}
    assert {*data["kernel"]} == {*"file missing instruction_sets".split()}


def test_a_variable_of_no_meaning_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "REQUESTED", "never")
    for row in ask()["engines"]:
        assert row["engine"] == "none"
        assert "=never: " in row["reason"]
