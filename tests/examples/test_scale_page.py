"""The lines of ``docs/scale.md`` for Dask, in its own processes, where it is installed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import MASKED

import keras2torch_birnn as k2t

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # Dask's, of calls of pandas
def test_the_lines_for_dask_give_the_outputs_of_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask: Any = pytest.importorskip("dask")
    pytest.importorskip("dask.dataframe")
    pandas: Any = pytest.importorskip("pandas")
    blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    (module,) = (one for one in blocks if "def predict" in one)
    (lines,) = (one for one in blocks if "dask" in one)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("predicting.py").write_text(module)
    model = k2t.convert(MASKED)
    k2t.save(model, "model.pt")
    tokens = np.random.default_rng(0).integers(1, 17, (11, 7))
    table = pandas.DataFrame({"tokens": [list(row) for row in tokens]})
    Path("inputs").mkdir()
    for part in range(3):
        table[4 * part : 4 * part + 4].to_parquet(f"inputs/part.{part}.parquet")
    with dask.config.set(scheduler="processes", num_workers=2):
        exec(f"import dask.dataframe\nfrom predicting import predict\n{lines}", {})
    del sys.modules["predicting"]
    found = np.stack(pandas.read_parquet("outputs")["output"].to_list())
    with torch.inference_mode():
        wanted = model(torch.from_numpy(tokens)).flatten(1).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
