"""Models with custom cells: exported as .pt2, refused by name in other forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_files import FIXTURES, USERS

import keras2torch_birnn as k2t

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize("file", ["cell_start.h5", "cell_bi_sum_masks.h5", "cell_chain.h5"])
@pytest.mark.parametrize(
    ("name", "words"),
    [("m.py", "a custom cell has no form in plain PyTorch source"), ("m.onnx", "has no ONNX form")],
)
def test_a_custom_cell_is_refused_by_name(file: str, name: str, words: str, tmp_path: Path) -> None:
    source = next(FIXTURES.glob(f"*/{file}"))
    model = k2t.convert(source, plugins=[USERS])
    with pytest.raises(k2t.K2TError, match=words):
        k2t.export(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
