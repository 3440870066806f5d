"""The lines of ``docs/scale.md`` for Dask and Spark, where these are installed; its benchmark."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tables
import torch
from commands import MASKED, run_process

import keras2torch_birnn as k2t
from benchmarks import scale
from keras2torch_birnn.spec import Array


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Numbers that three files of a folder hold, beside the model and the module of the page."""
    pandas: Any = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("predicting.py").write_text(scale.lines_with("def predict"))
    k2t.save(k2t.convert(MASKED), "model.pt")
    drawn = np.random.default_rng(0).integers(1, 17, (11, 7))
    table = pandas.DataFrame({"tokens": [list(row) for row in drawn]})
    Path("inputs").mkdir()
    for part in range(3):
        table[4 * part : 4 * part + 4].to_parquet(f"inputs/part.{part}.parquet")
    return drawn


def assert_outputs_of_one_call(tokens: Array) -> None:
    """Each row of the outputs, in whichever order, is what the model computes of its tokens."""
    pandas: Any = pytest.importorskip("pandas")
    table = pandas.read_parquet("outputs")
    given = np.stack(table["tokens"].to_list())
    assert sorted(given.tolist()) == sorted(tokens.tolist())
    with torch.inference_mode():
        wanted = k2t.load("model.pt")(torch.from_numpy(given)).flatten(1).numpy()
    np.testing.assert_allclose(np.stack(table["output"].to_list()), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ["dask", "spark"])
def test_the_lines_for_an_engine_give_the_outputs_of_one_call(engine: str, tokens: Array) -> None:
    packages, make = scale.WORK[engine]
    for package in packages.split():
        pytest.importorskip(package)
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    done = run_process(sys.executable, *make(2))
    assert done.code == 0, done.err
    assert_outputs_of_one_call(tokens)


def test_several_processes_are_measured_in_turns_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.scale() == ""
    calls: list[list[str]] = []

    def measure(command: list[str]) -> dict[str, float]:
        assert len([*Path("models").iterdir()]) == len([*Path("shards").iterdir()]) == scale.PARTS
        calls.append(command[-4:])
        return {"seconds": 12.0 / int(command[-1]) + len(calls)}

    monkeypatch.setattr(scale, "measure", measure)
    rounds = ["--rows", "9", "--rounds", "3", "--json", "scale.json"]
    scale.main(["--only", "convert", "--processes", "1", "2", *rounds])
    assert calls == [["--out-dir", "outputs", "--jobs", str(n)] for n in (1, 2) * 3]
    rows = json.loads((tmp_path / "scale.json").read_text("utf-8"))["rows"]
    assert [row["seconds"] for row in rows] == [[13.0, 15.0, 17.0], [8.0, 10.0, 12.0]]
    _, _, line, _, end = tables.scale().splitlines()
    assert line == "| `k2t convert --jobs` | 15.0 | 10.0 |  | 0.67 |  |"
    assert f"of 8 copies of {scale.FIXTURE}.h5, " in end and "9 rows of 50 steps" in end
