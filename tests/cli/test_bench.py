"""``k2t bench``: parity before speed, every contender by name, what cannot run says why."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import MASKED, assert_refused, contents, k2t
from warm_process import run_code

from keras2torch_birnn.bench import by_onnx, by_torch, case, measure, report
from keras2torch_birnn.bench.case import Model, Stack
from keras2torch_birnn.bench.contenders import CONTENDERS, OURS, PLAIN, reason_against
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.exporting import onnx_file
from keras2torch_birnn.merge_modes import MERGE_MODES

STACK = Stack("gru", "ave", layers=2, batch=3, time=7, features=5, units=11, masked=True)


@pytest.mark.thorough
def test_every_contender_on_torch_computes_a_masked_stack_exactly() -> None:
    row = measure.measure(
        STACK, threads=1, rounds=2, contenders=(OURS, PLAIN, "torch.compile", "ONNX Runtime")
    )
    ours, plain, compiled, other = row.timings
    for timing in (ours, plain):
        assert len(timing.times_ms) == 2
        assert min(timing.times_ms) > 0
        assert timing.error <= measure.STACK_TOLERANCE
    assert compiled.absent == "packing breaks the compiled graph"
    assert other.times_ms == () or other.error <= measure.STACK_TOLERANCE
    ratio = row.ratio(OURS, PLAIN)
    assert ratio == ours.median_ms / plain.median_ms
    assert row.case.label == "gru ave masked 3x7x5x11"
    (shown,) = (cells for cells in report.table(row) if cells[0].startswith(PLAIN))
    assert shown[report.HEAD.index("k2t takes")] == report._ratio_text(ratio)
    below = report.footnotes(row)
    assert f"not measured, {compiled.absent}: torch.compile" in below
    assert below[0] == f"{ours.runs}: {OURS}; {PLAIN}"


ONNX = "ONNX Runtime, torch's file"  # takes no stack: for these no process starts
IN_ONNX = Model(str(MASKED), batch=2, time=6)


@pytest.mark.thorough
@pytest.mark.skipif(bool(reason_against(ONNX, IN_ONNX, "cpu")), reason="no ONNX Runtime")
def test_a_model_runs_in_onnx_runtime_as_k2t_exports_it() -> None:
    (timing,) = measure.measure(IN_ONNX, rounds=1, contenders=("ONNX Runtime",)).timings
    assert (timing.absent, len(timing.times_ms)) == ("", 1)
    assert timing.error <= 1e-5
    assert timing.runs.startswith("ONNX Runtime ")


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.skipif(bool(reason_against(ONNX, IN_ONNX, "cpu")), reason="no ONNX Runtime")
def test_a_model_runs_in_onnx_runtime_as_torch_exports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_onnx, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    (wanted,) = measure._wanted(IN_ONNX, tmp_path)
    with np.load(tmp_path / "inputs.npz") as data:
        inputs = [data["x0"]]
    prepared = by_onnx.prepare(IN_ONNX, by_onnx.BY_TORCH, "cpu", inputs)
    np.testing.assert_allclose(prepared.outputs()[0], wanted, rtol=0, atol=1e-5)


def test_what_is_nan_in_keras_does_not_count_and_other_nan_do() -> None:
    wanted = [np.ones((2, 3)), np.array([[np.nan, 2.0]])]

    def difference(*second: float) -> tuple[str, float]:
        return measure._difference(IN_ONNX, [wanted[0], np.array([second])], wanted)[:2]

    assert difference(np.nan, 2.0) == ("", 0.0)
    assert difference(7.0, 2.0) == ("", 0.0)
    assert difference(np.nan, np.nan) == ("other numbers: inf off", np.inf)
    assert difference(np.nan, 2.5) == ("other numbers: 5.0e-01 off", 0.5)


def test_a_compiled_contender_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_call(call: Any) -> Any:
        compiled.append(call)
        return call

    monkeypatch.setattr(by_torch.torch, "compile", compile_call)
    found = by_torch.prepare(STACK, CONTENDERS["k2t compiled"].how, "cpu", []).outputs()
    assert len(compiled) == 1
    np.testing.assert_allclose(found, case.exact(STACK), rtol=0, atol=measure.STACK_TOLERANCE)


def test_contenders_for_models_only_and_for_stacks_only_say_so() -> None:
    assert CONTENDERS["ONNX Runtime, torch's file"].against(STACK) == "made for models only"
    model = Model("model.h5")
    assert CONTENDERS["Keras on torch"].against(model) == "made for stacks only"
    assert reason_against("ONNX Runtime", model, "cuda") == "not timed on cuda"
    assert reason_against(OURS, model, "cuda:1") == ""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("masked", "contenders"), [(False, (PLAIN,)), (True, (OURS, "naive loop"))]
)
def test_a_step_of_training_is_timed_and_compared_after_it(
    masked: bool, contenders: tuple[str, ...]
) -> None:
    stack = replace(STACK, training=True, masked=masked)
    row = measure.measure(stack, threads=1, rounds=2, contenders=(*contenders, "ONNX Runtime"))
    *trained, other = row.timings
    assert [len(t.times_ms) for t in trained] == [2] * len(contenders)
    assert max(t.error for t in trained) <= measure.STACK_TOLERANCE
    assert other.absent == "does not train" or "not installed" in other.absent
    assert row.case.label.endswith("training")
    # A wrong gradient would be seen: the step changes what comes out by far more than is allowed.
    change = np.abs(measure._wanted(stack, Path())[0] - case.exact(stack)).max()
    assert change > 1000 * measure.STACK_TOLERANCE


def test_training_contenders_are_for_training_only() -> None:
    reason = CONTENDERS["Keras train_on_batch"].against
    assert reason(STACK) == "for training only"
    assert reason(replace(STACK, training=True)) == ""


@pytest.mark.thorough
def test_a_contender_with_other_numbers_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = case.exact(STACK)
    monkeypatch.setattr(measure, "exact", lambda _: right + 1e-5)
    (timing,) = measure.measure(STACK, rounds=1, contenders=(OURS,)).timings
    assert timing.times_ms == ()
    assert timing.absent.startswith("other numbers: 1.0e-05 off")
    written = json.loads(json.dumps(report.as_data({}, [measure.Row(STACK, "cpu", (timing,))])))
    assert written["rows"][0]["timings"][0]["median_ms"] is None


@pytest.mark.thorough
def test_a_process_that_fails_is_told_of_and_the_others_go_on() -> None:
    worker = measure._Worker(CONTENDERS[PLAIN], "cpu", Path("/nowhere"), 1)
    try:
        assert "FileNotFoundError" in worker.first["error"]
    finally:
        worker.stop()


def test_a_model_needs_an_exporter_for_onnx_and_a_stack_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_file.Onnx, "why_cannot_write", lambda _: "onnx is not installed")
    for name in ("ONNX Runtime", ONNX, "OpenVINO"):
        assert CONTENDERS[name].against(IN_ONNX) == "onnx is not installed"
    assert CONTENDERS["ONNX Runtime"].against(STACK) == ""
    assert CONTENDERS[ONNX].against(STACK) == "made for models only"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reset_after": False}, "nn.GRU resets after the product only"),
        ({"recurrent_activation": "hard_sigmoid_0.2"}, "torch has no kernel"),
        ({}, ""),
    ],
)
def test_plain_torch_stands_aside_where_it_computes_something_else(
    changes: dict[str, Any], reason: str
) -> None:
    assert reason_against(PLAIN, replace(STACK, **changes), "cpu").startswith(reason)


def test_half_of_the_steps_are_masked_on_average_and_work_is_counted() -> None:
    lengths = case.lengths_of(replace(STACK, batch=8, time=100))
    assert lengths is not None
    assert abs(float(np.mean(lengths)) - 50) < 1
    assert case.lengths_of(replace(STACK, masked=False)) is None
    # two layers, two directions, three gates: 5 or 11 inputs and 11 states for each of 11 units
    assert STACK.multiply_adds == 3 * 7 * 2 * 3 * 11 * (5 + 11 + 11 + 11)
    assert replace(STACK, merge="concat").multiply_adds == 3 * 7 * 2 * 3 * 11 * (16 + 22 + 11)


def test_cases_cross_between_processes_unchanged() -> None:
    for one in (STACK, Model("a.h5", "b.json", "tf_keras", 3, 9)):
        assert case.from_json(case.to_json(one)) == one


@pytest.mark.thorough
def test_the_command_times_a_model_and_writes_json_and_plot(tmp_path: Path) -> None:
    written, drawn = tmp_path / "bench.json", tmp_path / "bench.svg"
    run = k2t(
        "bench", MASKED, "--batch", "2", "--time", "6", "--rounds", "1",
        "--only", OURS, "--only", "Keras on torch", "--json-file", written, "--plot", drawn,
    )  # fmt: skip
    assert run.code == 0, run.err
    assert f"{MASKED.name} batch 2, cpu" in run.out
    assert "threads 2, rounds 1" in run.out
    assert "made for stacks only" in run.out or "not installed" in run.out
    found = json.loads(written.read_text("utf-8"))
    (row,) = found["rows"]
    assert row["case"]["package"] == "tf_keras"
    assert row["timings"][0]["error"] <= 1e-4
    assert "<svg" in drawn.read_text("utf-8")


@pytest.mark.thorough
def test_a_sweep_goes_over_all_merges_and_batches() -> None:
    run = k2t(
        "bench", "--rnn", "lstm", "--merge", "all", "--batch", "1,2", "--time", "3",
        "--units", "3", "--rounds", "1", "--only", ONNX,
    )  # fmt: skip
    assert run.code == 0, run.err
    for mode in MERGE_MODES:
        for batch in (1, 2):
            assert f"lstm {mode} {batch}x3x3x3, cpu" in run.out


@pytest.mark.thorough
def test_a_training_step_with_dropout_is_timed(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    run = k2t(
        "bench", "--rnn", "gru", "--training", "--dropout", "0.2", "--time", "3", "--units", "3",
        "--rounds", "1", "--only", OURS, "--only", PLAIN, "--json-file", written,
    )  # fmt: skip
    assert run.code == 0, run.err
    assert "gru concat 1x3x3x3 training dropout 0.2, cpu" in run.out
    (row,) = json.loads(written.read_text("utf-8"))["rows"]
    ours, plain = row["timings"]
    assert row["case"]["dropout"] == 0.2
    assert len(ours["times_ms"]) == 1
    assert plain["absent"] == "torch has no dropout of the state"


def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``k2t bench`` find one time, at once."""
    row = measure.Row(STACK, "cpu", (measure.Timing(OURS, "", 0.0, (1.0,)),))
    monkeypatch.setattr(measure, "measure", lambda *_, **__: row)
    monkeypatch.setattr(report, "find_disturbance", lambda *_: "")


FILES = [("--json-file", "a.json"), ("--plot", "a.svg"), ("--plot", "a.png")]


@pytest.mark.parametrize(("option", "name"), FILES)
def test_files_of_bench_replace_their_own_kind_alone(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    measured(monkeypatch)
    file = tmp_path / name
    for _ in range(2):
        run = k2t("bench", "--rnn", "gru", option, file)
        assert (run.code, run.err) == (0, "")
    file.write_text('{"notes": "of the user"}')
    monkeypatch.setattr(measure, "measure", None)  # refused before anything is measured
    assert_refused(k2t("bench", "--rnn", "gru", option, file), 5, file, "k2t did not write it")
    assert file.read_text() == '{"notes": "of the user"}'


@pytest.mark.parametrize(("option", "name"), FILES)
def test_a_disk_that_is_full_leaves_what_was_there(
    option: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    measured(monkeypatch)
    earlier = tmp_path / name
    earlier.write_text('"native_kernel": "k2t bench of yesterday"')
    before = contents(tmp_path)

    def fill(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras2torch_birnn.saving.atomic.os.fsync", fill)
    run = k2t("bench", "--rnn", "gru", option, earlier)
    assert_refused(run, 5, earlier, "cannot be written (No space left on device)")
    assert contents(tmp_path) == before


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(measure, "measure", None)
    run = k2t("bench", "--rnn", "gru", "--plot", tmp_path / "plot.svg")
    assert (run.code, "--plot needs matplotlib" in run.err) == (2, True)
    with pytest.raises(UsageError, match=r"\.png or \.svg is expected"):
        report.check_plot(tmp_path / "plot.gif")


@pytest.mark.parametrize(
    ("load", "times", "words"),
    [
        (9.5, (1.0, 1.1), "the machine is busy (load 9.5 on 2 processors)"),
        (0.1, (1.0, 3.5), "some rounds took over 3 times as long"),
        (0.1, (1.0, 2.5), ""),
        (None, (), ""),
    ],
)
def test_a_busy_machine_is_told_of(load: float | None, times: tuple[float], words: str) -> None:
    row = measure.Row(STACK, "cpu", (measure.Timing(OURS, "", 0.0, times),))
    found = report.find_disturbance({"load_average": load, "processors": 2}, [row])
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_the_picture_and_the_table_say_what_ran_and_that_the_machine_was_busy() -> None:
    pytest.importorskip("matplotlib")
    timing = measure.Timing("torch per layer", "torch 2", 0.0, (1.0, 2.0), way="cuDNN, packed")
    row = measure.Row(STACK, "cuda", (timing,))
    facts = {**measure.facts(1, 2), "load_average": 9.5, "processors": 2}
    figure = report.draw(facts, [row])
    (axes,) = figure.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["torch per layer (cuDNN, packed)"]
    assert report.table(row)[0][0] == "torch per layer (cuDNN, packed)"
    assert "the machine is busy (load 9.5 on 2 processors): measure again" in [
        one.get_text() for one in figure.texts
    ]


@pytest.mark.parametrize(
    ("how", "masked", "device", "way"),
    [
        ("auto", False, "cpu", ("native", "torch's kernel")),
        ("torch", True, "cpu", ("torch's kernel, packed",)),
        ("torch", False, "cpu", ("torch's kernel",)),
        ("loop", True, "cpu", ("",)),
    ],
)
def test_a_contender_says_how_its_layers_run(
    how: str, masked: bool, device: str, way: tuple[str, ...]
) -> None:
    assert by_torch.prepare(replace(STACK, masked=masked), how, device, []).way in way


def test_json_is_all_that_bench_prints_if_it_is_asked_for() -> None:
    run = k2t("bench", "--rnn", "gru", "--only", ONNX, "--rounds", "1", "--json")
    data = json.loads(run.out)
    assert (data["schema"], data["rounds"], len(data["rows"])) == (1, 1, 1)


def test_all_contenders_have_a_module_that_prepares_them() -> None:
    for name in {contender.module for contender in CONTENDERS.values()}:
        module = Path(measure.__file__).parents[2].joinpath(*name.split(".")).with_suffix(".py")
        assert "def prepare(case: Case, how: str, device: str," in module.read_text("utf-8")


def test_errors_are_told_by_the_largest_number_and_by_all() -> None:
    wanted = [np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])]
    found = [wanted[0] + 0.3, wanted[1] + 0.4]
    why, error, relative = measure._difference(STACK, found, wanted)
    assert why == "other numbers: 4.0e-01 off"
    assert error == pytest.approx(0.4)
    assert relative == pytest.approx(np.sqrt(2 * 0.3**2 + 2 * 0.4**2) / 5)
    assert measure._difference(STACK, found, wanted, 0.1 + 1e-9)[0] == ""
    assert measure._difference(STACK, found, wanted, 0.099)[0] == why


LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


# In a process that nothing else allocates in or frees. Float64: five million numbers between, one
# million of outputs.
MEASURED = """
import numpy as np
from keras2torch_birnn.bench import worker
def run():
    return np.ones(5_000_000)[:1_000_000].copy()
print(worker._measure_memory(run))
"""


@LINUX_ONLY
@pytest.mark.thorough
def test_the_memory_of_a_call_is_that_above_what_was_there_and_its_outputs() -> None:
    assert float(run_code(MEASURED).out) == pytest.approx(40.0, abs=5.0)
