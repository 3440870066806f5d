"""``python -m benchmarks``: cases and contenders fit, results are recorded, the GPU's dry run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__, contenders, convert, gpu, run
from keras2torch_birnn.cli.bench.contenders import OURS, PLAIN
from keras2torch_birnn.cli.bench.measure import Case, Row, Timing

FACTS = {"threads": 1, "native_kernel": "AVX-9"}


def row_of(label: str, ms: float) -> Row:
    return Row(Case(label, "a.h5"), (Timing(OURS, "", 1e-8, (ms,)), Timing(PLAIN, absent="no")))


def test_names_and_what_they_do_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*__main__.BENCHMARKS]
    with pytest.raises(SystemExit, match="no benchmark is named speed"):
        __main__.main(["speed"])


def test_all_contenders_are_there() -> None:
    for table in run.TABLES.values():
        assert OURS in table
        for contender in table.values():
            module, _, name = contender.function.partition(":")
            assert callable(getattr(sys.modules[module], name))


def test_every_whole_model_has_a_file_that_k2t_opens() -> None:
    for name in run.ARCHITECTURES:
        file, config = run.find_fixture(name)
        run.read_model(file, config=config)


def test_cases_are_chosen_by_words_and_contenders_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def note(case: Any, _: Any, **options: Any) -> Row:
        measured.append((case.label, [*options["contenders"]], options["threads"]))
        return row_of(case.label, 2.0)

    monkeypatch.setattr(run, "measure", note)
    monkeypatch.setattr(run, "write_stack", lambda *_: None)
    monkeypatch.setattr(run, "read_model", lambda *_, **__: None)
    chosen = ["--cases", "gru 1x64x64x64", "lstm 8x100x128x128", "--only", "k2t int8"]
    run.main(["precision", *chosen, "--threads", "1", "3"])
    assert measured == [
        (label, ["k2t int8"], threads)
        for label in ("gru concat 1x64x64x64", "lstm concat 8x100x128x128")
        for threads in (1, 3)
    ]


def test_a_case_that_is_measured_again_replaces_its_row_in_its_processors_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "processor", lambda: "Cpu (R) 7")
    for name, label, ms in (("layers", "a", 1.0), ("models", "a", 2.0), ("layers", "a", 3.0)):
        run.record(tmp_path, name, row_of(label, ms), FACTS)
    found = json.loads((tmp_path / "cpu-r-7-avx-9.json").read_text("utf-8"))
    assert [(row["benchmark"], row["ms"]) for row in found["rows"]] == [
        ("models", {OURS: 2.0}),
        ("layers", {OURS: 3.0}),
    ]


def test_convert_is_measured_by_a_process_without_torch() -> None:
    code = "import sys, benchmarks.__main__, benchmarks.convert; print(int('torch' in sys.modules))"
    found = convert.ask(sys.executable, f"import sys; sys.path.append({str(run.ROOT)!r}); {code}")
    assert found == 0


@pytest.mark.thorough
@pytest.mark.parametrize("masked", [False, True])
def test_a_step_of_training_is_that_of_float64(masked: bool, tmp_path: Path) -> None:
    task = run.make_stack(tmp_path, (2, 3, 5, 7), "gru", "mul", masked=masked, trains=True)
    assert task.inputs is not None and task.wanted is not None
    model = contenders.convert({"path": task.case.path, "config": None}, "auto")
    step = contenders.train(model, contenders.make_tensors(task.inputs))
    before = model(*contenders.make_tensors(task.inputs)).detach().numpy()
    assert step.outputs is not None
    found = step.outputs().numpy()
    np.testing.assert_allclose(found, task.wanted[0], atol=2e-6)
    assert np.abs(found - before).max() > 1e-4  # a wrong gradient would be seen


# ---- gpu -----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_dry_run_lacks_nothing_but_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "TESTS", (sys.executable, "-c", "print('1 passed')"))
    results = tmp_path / "results" / "gpu.json"
    gpu.main(["--device", "cpu", "--dry-run", "--json", str(results)])
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["wrong"] == []
    timed = [row for row in found["rows"] if "ms" in row]
    assert {row["contender"] for row in timed} == {OURS, contenders.LOOP, PLAIN}
    assert {row["tf32"] for row in timed} == {False, True}
    assert all(row["ok"] and row["error"] < 1e-5 for row in timed)


def test_everything_that_is_wrong_is_named() -> None:
    good = {"case": "lstm", "contender": OURS, "error": 1e-7, "ok": True}
    found = {
        "tests": {"code": 1, "said": "a\n2 failed, 3 passed"},
        "rows": [
            good,
            {**good, "error": 0.5, "ok": False},
            {**good, "contender": PLAIN, "absent": "no kernel"},
            {"case": "gru", "failed": "Traceback\n  in f\nRuntimeError: CUDA error\n"},
            {"case": "a.h5", "absent": "no file"},
        ],
    }
    assert gpu.list_faults(found) == [
        "tests: 2 failed, 3 passed",
        f"lstm, {OURS}: 5.0e-01 off",
        "gru, all: failed: RuntimeError: CUDA error",
        "a.h5, all: no file",
    ]


def test_what_fails_is_in_the_results_and_without_a_device_the_script_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (row,) = gpu.run_case({"case": {"label": "a", "path": "none.h5"}}, "cpu", 1)
    assert "none.h5" in row["absent"]
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: --device cpu --dry-run shows"):
        gpu.main([])
