"""``python -m benchmarks``: cases and contenders fit, and tables show the results."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables

from benchmarks import __main__, contenders, convert, run, tasks
from benchmarks.floor import floor_ms
from keras2torch_birnn.bench import measure
from keras2torch_birnn.bench.case import Model, Stack
from keras2torch_birnn.bench.contenders import OURS, PLAIN
from keras2torch_birnn.rnn.native.library import why_missing

SMALL = Stack("gru", "concat", layers=1, batch=2, time=3, features=5, units=7)
HEAD = {"threads": 1, "rounds": 1, "load_average": 0.5}
OPTIONS = Namespace(device="cpu", real=None)


@pytest.mark.parametrize("name", sorted(tasks.TASKS.keys() - {"exports"}))
def test_every_task_has_contenders_of_its_table_and_is_listed_once(name: str) -> None:
    found = list(tasks.TASKS[name](OPTIONS))
    assert all(set(task.contenders) <= set(task.table) for task in found)
    assert all(task.contenders for task in found)
    rows = Counter((task.case, task.about.get("part")) for task in found)
    assert set(rows.values()) == {1}


def test_cases_are_chosen_by_words_and_contenders_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Any] = []

    def note(case: Any, **options: Any) -> measure.Row:
        measured.append((case.label, options["contenders"], options["threads"]))
        times = (measure.Timing(OURS, "", 0.0, (2.0,)), measure.Timing("OpenVINO", "", 0.0, (4.0,)))
        return measure.Row(case, "cpu", times)

    monkeypatch.setattr(run.measure, "measure", note)
    cases = ["--cases", "gru 1x64x64x64", "lstm 8x100x128x128", "--only", "k2t int8"]
    run.main("precision", [*cases, "--threads", "1", "3"])
    assert measured == [
        (label, ["k2t int8"], threads)
        for label in ("gru concat 1x64x64x64", "lstm concat 8x100x128x128")
        for threads in (1, 3)
    ]
    assert "k2t / best other: median 0.50, largest 0.50" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no case and contender has these names"):
        run.main("precision", ["--only", "Theano"])


def test_names_and_what_they_do_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*tasks.TASKS, *__main__.SCRIPTS]
    with pytest.raises(SystemExit, match="no benchmark is named speed"):
        __main__.main(["speed"])


def test_convert_is_measured_by_a_process_without_torch() -> None:
    code = "import sys, benchmarks.__main__, benchmarks.convert; print(int('torch' in sys.modules))"
    found = convert.ask(sys.executable, f"import sys; sys.path.append({str(tasks.ROOT)!r}); {code}")
    assert found == 0


# ---- results -------------------------------------------------------------------------------------


def row_of(case: Stack, ms: float) -> measure.Row:
    timings = [measure.Timing(OURS, "", 1e-8, (ms,)), measure.Timing(PLAIN, "", 1e-8, (2 * ms,))]
    return measure.Row(case, "cpu", tuple(timings))


def test_a_case_that_is_measured_again_replaces_its_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    facts = {"rounds": 1, "load_average": 0.5}
    for threads, case, ms in ((1, SMALL, 3.0), (2, SMALL, 5.0), (1, replace(SMALL, time=11), 7.0)):
        run.write(file, {**facts, "threads": threads}, row_of(case, ms), {})
    run.write(file, {**facts, "threads": 1}, row_of(SMALL, 13.0), {"floor_ms": 2.0})
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert [row["timings"][0]["median_ms"] for row in rows] == [5.0, 7.0, 13.0]
    assert (rows[-1]["floor_ms"], rows[-1]["threads"]) == (2.0, 1)


def test_a_table_shows_what_a_run_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    facts = {"rounds": 1, "load_average": 0.5}
    for threads, ms in ((1, 3.0), (2, 5.0)):
        file = tmp_path / "results.json"
        run.write(file, {**facts, "threads": threads}, row_of(SMALL, ms), {})
    of_threads = [(tables.ms(of=n), tables.ratio(of=n)) for n in (1, 2)]
    table = tables.Table(
        ["results.json"],
        (
            ("cell", tables.CELL),
            tables.SIZES,
            *(("", cell) for each in of_threads for cell in each),
        ),
        line=lambda row: row.sizes,
        variant=lambda row: row.data["threads"],
    )
    *_, line = table().splitlines()
    assert line == "| GRU | 2x3x5x7 | 3 | 0.50 | 5 | 0.50 |"


def test_each_processor_has_a_file_and_columns_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    for processor, int8 in (("Cpu (R) 7", 3.0), ("Other", 5.0)):

        def time(case: Stack, int8: float = int8, **_: object) -> measure.Row:
            times = {"k2t float32": 10.0, "ONNX Runtime float32": 20.0, "k2t int8": int8}
            timings = [measure.Timing(name, "", 0.0, (ms,)) for name, ms in times.items()]
            return measure.Row(case, "cpu", tuple(timings))

        monkeypatch.setattr(run, "processor", lambda name=processor: name)
        monkeypatch.setattr(run.measure, "measure", time)
        monkeypatch.setattr(run.measure, "facts", lambda *_: {**HEAD, "native_kernel": "AVX-9"})
        run.main("precision", ["--of-processor", "--cases", "gru 1x64x64x64", "--threads", "1"])
    files = {file.name for file in (tmp_path / "precision").iterdir()}
    assert files == {"cpu-r-7-avx-9.json", "other-avx-9.json"}
    head, _, line = tables.PRECISION_TIMES().splitlines()
    assert "| Cpu (R) 7, AVX-9: float32, ms |" in head and "| Other, AVX-9: float32, ms |" in head
    assert line == (
        "| GRU | 1x64x64x64 | 1 | 10 | 0.50 |  |  | 0.30 |  |  | 10 | 0.50 |  |  | 0.50 |  |  |"
    )


def test_no_folder_of_a_machine_is_in_the_results() -> None:
    one = run.without_folders(Model("/home/me/model.h5", "/home/me/model.json"))
    assert one == Model("model.h5", "model.json")
    assert run.without_folders(SMALL) is SMALL


def test_the_floor_is_the_longer_of_products_and_of_reading_the_weights() -> None:
    peaks = {"multiply_adds": 1e9, "cache_bytes": 1e30}
    assert floor_ms(SMALL, peaks) == pytest.approx(1e3 * SMALL.multiply_adds / 1e9)
    trained = replace(SMALL, training=True)
    assert floor_ms(trained, peaks) == pytest.approx(3 * floor_ms(SMALL, peaks))
    reading = {"multiply_adds": 1e30, "cache_bytes": 1e9}
    assert floor_ms(SMALL, reading) == pytest.approx(1e3 * 4 * 2 * 3 * 7 * 7 * 3 / 1e9)


# ---- contenders ----------------------------------------------------------------------------------


def outputs_of(case: Stack, name: str, table: Any) -> list[np.ndarray[Any, Any]]:
    how = table[name].how
    found = contenders.prepare(case, how, "cpu", []).outputs()
    return [np.asarray(y) for y in (found if isinstance(found, list) else [found])]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_contenders_that_are_compared_with_each_other_agree(cell: str) -> None:
    case = replace(SMALL, rnn=cell, time=contenders.CHUNK + 3, layers=2)
    whole, chunks = (outputs_of(case, name, contenders.STREAMS) for name in contenders.STREAMS)
    for a, b in zip(whole, chunks, strict=True):
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.skipif(bool(why_missing()), reason="needs the native kernel")
@pytest.mark.parametrize("name", ["k2t float32", "k2t bfloat16", "k2t int8", "torch float32"])
def test_only_reduced_precision_is_less_exact(name: str) -> None:
    case = replace(SMALL, layers=2, units=17)
    (found,) = outputs_of(case, name, contenders.PRECISIONS)
    error = np.abs(found - measure.exact(case)).max()
    reduced = contenders.PRECISIONS[name].tolerance is not None
    assert bool(error > measure.STACK_TOLERANCE) is reduced
    assert error < 0.1


def test_a_contender_of_a_model_is_refused() -> None:
    with pytest.raises(TypeError, match="a stack is expected"):
        contenders.prepare(Model("model.h5"), "module", "cpu", [])
