"""The lines of ``docs/scale.md`` for Dask and Spark, where these are installed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest
import torch
from commands import MASKED, run_process

import keras2torch_birnn as k2t
from keras2torch_birnn.spec import Array

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
DASK = """
import dask.dataframe
from predicting import predict

if __name__ == "__main__":
    with dask.config.set(scheduler="processes", num_workers=2):
{lines}
"""
SPARK = """
import os
import sys

from predicting import predict
from pyspark.sql import SparkSession

os.environ |= {{"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}}
made = SparkSession.builder.master("local[2]")
spark = made.config("spark.ui.enabled", False).getOrCreate()
spark.sparkContext.addPyFile("predicting.py")
{lines}
spark.stop()
"""
# Engine -> the packages that it needs, the script, a word of its lines, what is before each line.
ENGINES: Mapping[str, tuple[str, str, str, str]] = {
    "dask": ("dask pandas pyarrow", DASK, "dask.", " " * 8),
    "spark": ("pyspark pandas pyarrow", SPARK, "spark.", ""),
}


def lines_with(word: str) -> str:
    """Return the one block of Python on the page that has this word."""
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (found,) = (str(one) for one in blocks if word in one)
    return found


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Numbers that three files of a folder hold, beside the model and the module of the page."""
    pandas: Any = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    Path("predicting.py").write_text(lines_with("def predict"))
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
@pytest.mark.parametrize("engine", ENGINES)
def test_the_lines_for_an_engine_give_the_outputs_of_one_call(engine: str, tokens: Array) -> None:
    packages, script, word, before = ENGINES[engine]
    for package in packages.split():
        pytest.importorskip(package)
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    Path("run.py").write_text(script.format(lines=indent(lines_with(word), before)))
    done = run_process(sys.executable, "run.py")
    assert done.code == 0, done.err
    assert_outputs_of_one_call(tokens)
