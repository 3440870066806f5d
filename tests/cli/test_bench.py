"""``k2t bench``: parity before speed, every contender by name, what cannot run says why."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import MASKED, assert_refused, k2t

from keras2torch_birnn.cli.bench import contenders, measure, report, stack
from keras2torch_birnn.cli.bench.contenders import CONTENDERS, KERAS, ONNX, OURS, PLAIN
from keras2torch_birnn.cli.bench.measure import Case, Row, Timing
from keras2torch_birnn.cli.bench.stack import Stack
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

CASE = Case("gru sum", "none.h5")
FACTS = dict.fromkeys(("machine", "native_kernel", "python"), "") | {"processors": 2, "threads": 1}


def write_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files of stacks be written by this process, not by one each."""
    monkeypatch.setattr(
        stack.subprocess, "run", lambda words, **_: stack.main(*map(str, words[3:]))
    )


def write(stack_: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Write a stack's file, in this process."""
    write_here(monkeypatch)
    stack.write_stack(stack_, file := folder / "stack.h5")
    return Case("stack", str(file), None, 3, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": "sum"},
        {"rnn": "lstm", "masked": True},
        {"gate": "hard_sigmoid", "reset_after": False},
        {"rnn": "rnn", "merge": "mul"},
    ],
)
def test_what_torch_runs_computes_a_stack_as_the_reference_does(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Stack(
        **{"rnn": "gru", "merge": "concat", "layers": 2, "features": 5, "units": 11, **changes}
    )
    case = write(made, tmp_path, monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = read_model(case.path)
    inputs = measure.draw(spec, case)
    wanted = measure.compute_exactly(spec, case, inputs)
    facts = {"path": case.path, "config": None}
    assert wanted[0].shape == (3, 7, 22 if made.merge == "concat" else 11)
    assert np.abs(wanted[0]).max() > 0.1
    assert measure._prepare(CONTENDERS[PLAIN], case, spec, tmp_path) == ""
    for prepare in (contenders.prepare_k2t, contenders.prepare_source):
        found = contenders.flat(prepare(facts, inputs, tmp_path).run())
        monkeypatch.delitem(sys.modules, "model", raising=False)
        assert measure.compare(found, wanted)[0] == ""


@pytest.mark.thorough
def test_a_model_is_timed_by_all_that_are_installed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = tmp_path / "bench.svg"
    run = k2t("bench", MASKED, "--batch", "2", "--time", "6", "--rounds", "1", "--plot", drawn)
    assert run.code == 0, run.err
    assert f"{MASKED.name}, batch 2" in run.out
    for name in CONTENDERS:
        assert name in run.out
    assert run.out.count("0x") + run.out.count(".") > 3
    assert "<svg" in drawn.read_text("utf-8")


def test_a_sweep_goes_over_all_merges_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    write_here(monkeypatch)
    monkeypatch.setattr(measure, "measure", lambda case, *_, **__: Row(case, ()))
    words = ("--merge", "all", "--batch", "1,2", "--time", "3", "--units", "3", "--json")
    run = k2t("bench", "--rnn", "lstm", *words)
    assert run.code == 0, run.err
    cases = [row["case"] for row in json.loads(run.out)["rows"]]
    assert cases == [
        f"lstm {mode}, 2 x 3 units, batch {batch}, 3 steps"
        for mode in MERGE_MODES
        for batch in (1, 2)
    ]


def test_what_is_not_there_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = write(Stack("gru", "sum", 1, 3, 4), tmp_path, monkeypatch)
    spec = read_model(case.path)
    monkeypatch.setattr(measure, "find_spec", lambda _: None)
    assert measure._prepare(CONTENDERS[ONNX], case, spec, tmp_path) == "onnxruntime not installed"
    if find_spec("tensorflow") is None:
        reason = measure._prepare(CONTENDERS[KERAS], case, spec, tmp_path)
        assert reason in ("tensorflow not installed", "keras is not installed")


def test_a_contender_with_other_numbers_is_not_timed() -> None:
    wanted = [np.ones((2, 3)), np.array([[np.nan, 2.0]])]

    def difference(*second: float) -> tuple[str, float]:
        return measure.compare([wanted[0], np.array([second])], wanted)

    # What is NaN in Keras does not count, other NaN counts most.
    assert difference(np.nan, 2.0) == ("", 0.0)
    assert difference(7.0, 2.0) == ("", 0.0)
    assert difference(np.nan, np.nan) == ("other numbers: inf off", np.inf)
    assert difference(np.nan, 2.5) == ("other numbers: 5.0e-01 off", 0.5)
    assert measure.compare(wanted[:1], wanted)[0] == "other outputs"


@pytest.mark.thorough
def test_a_process_that_fails_is_told_of(tmp_path: Path) -> None:
    worker = measure._Worker(CONTENDERS[OURS], tmp_path, 1)
    worker.stop()
    assert "FileNotFoundError" in worker.first["error"]


def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``k2t bench`` find one time, at once."""
    row = Row(CASE, (Timing(OURS, "torch", 0.0, (1.0,)), Timing(ONNX, absent="not installed")))
    monkeypatch.setattr(measure, "measure", lambda *_, **__: row)
    monkeypatch.setattr(report, "find_disturbance", lambda *_: "")
    monkeypatch.setattr(stack, "write_stack", lambda *_: None)
    monkeypatch.setattr("keras2torch_birnn.readers.read_model", lambda *_, **__: None)


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_a_plot_replaces_a_plot_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    measured(monkeypatch)
    file = tmp_path / name
    for _ in range(2):
        run = k2t("bench", "--rnn", "gru", "--plot", file)
        assert (run.code, run.err) == (0, "")
        assert f"not measured, not installed: {ONNX}" in run.out
    file.write_text("of the user")
    monkeypatch.setattr(measure, "measure", None)  # refused before anything is measured
    refused = k2t("bench", "--rnn", "gru", "--plot", file)
    assert_refused(refused, 5, file, "k2t did not write it")
    assert file.read_text() == "of the user"


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(measure, "measure", None)
    run = k2t("bench", "--rnn", "gru", "--plot", tmp_path / "plot.svg")
    assert (run.code, "plot.svg needs matplotlib" in run.err) == (2, True)


@pytest.mark.parametrize(
    ("load", "times", "words"),
    [
        (9.5, (1.0, 1.1), "the machine is busy (load 9.5 on 2 processors)"),
        (0.1, (1.0, 3.5), "some rounds took over 3 times as long"),
        (0.1, (1.0, 2.5), ""),
        (None, (), ""),
    ],
)
def test_a_busy_machine_is_told_of_in_the_picture_too(
    load: float | None, times: tuple[float, ...], words: str
) -> None:
    rows = [Row(CASE, (Timing(OURS, "", 0.0, times), Timing(PLAIN, "torch 2", 0.0, times)))]
    facts = {**FACTS, "load_average": load}
    found = report.find_disturbance(facts, rows)
    assert found.startswith(words)
    assert bool(found) == bool(words)
    figure = pytest.importorskip("matplotlib.figure").Figure
    assert found in [text.get_text() for text in report.draw(facts, rows, figure).texts]


def test_ratios_and_json_come_from_the_medians() -> None:
    absent = Timing(KERAS, absent="not installed")
    row = Row(
        CASE, (Timing(OURS, "a", 1e-7, (1.0, 2.0, 9.0)), Timing(PLAIN, "a", 1e-7, (4.0,)), absent)
    )
    assert row.ratio(OURS, PLAIN) == 0.5
    ours, plain = report.make_table(row).rows
    assert (ours[1], plain[4]) == ("2.00", "0.5x")
    assert report.footnotes(row) == [f"a: {OURS}, {PLAIN}", f"not measured, not installed: {KERAS}"]
    timings = json.loads(json.dumps(report.as_data(row)))["timings"]
    assert [one["median_ms"] for one in timings] == [2.0, 4.0, None]
    assert timings[-1]["error"] is None
