"""The lines of ``docs/scale.md`` for Dask and Spark, in their own processes, where installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import MASKED, environment

import keras2torch_birnn as k2t
from keras2torch_birnn.spec import Array

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"

pytestmark = pytest.mark.thorough

SPARK = """
from predicting import predict
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
spark.sparkContext.addPyFile("predicting.py")
{lines}
spark.stop()
"""


def lines_with(word: str) -> str:
    """The one block of Python on the page that has this word."""
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (found,) = (one for one in blocks if word in one)
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


@pytest.mark.filterwarnings("ignore")  # Dask's, of calls of pandas
def test_the_lines_for_dask_give_the_outputs_of_one_call(
    tokens: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask: Any = pytest.importorskip("dask")
    pytest.importorskip("dask.dataframe")
    monkeypatch.syspath_prepend(str(tmp_path))
    with dask.config.set(scheduler="processes", num_workers=2):
        exec(f"import dask.dataframe\nfrom predicting import predict\n{lines_with('dask.')}", {})
    del sys.modules["predicting"]
    assert_outputs_of_one_call(tokens)


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_the_lines_for_spark_give_the_outputs_of_one_call(tokens: Array) -> None:
    pytest.importorskip("pyspark")
    Path("script.py").write_text(SPARK.format(lines=lines_with("spark.")))
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        env=environment(PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1"),
    )
    assert done.returncode == 0, done.stderr
    assert_outputs_of_one_call(tokens)
