"""Models with custom cells: exported as .pt2, refused by name in other forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from plugin_files import FIXTURES, USERS

import keras2torch_birnn as k2t
from keras2torch_birnn.exporting import onnx_file

WORDS = {
    "m.py": "a custom cell has no form in plain PyTorch source",
    # Without the packages for ONNX, or with a torch that is too old, that comes first.
    "m.onnx": onnx_file.TARGET.why_cannot_write() or "has no ONNX form",
}


@pytest.mark.parametrize("file", ["cell_start.h5", "cell_bi_sum_masks.h5", "cell_chain.h5"])
@pytest.mark.parametrize("name", WORDS)
def test_a_custom_cell_is_refused_by_name(file: str, name: str, tmp_path: Path) -> None:
    source = next(FIXTURES.glob(f"*/{file}"))
    model = k2t.convert(source, plugins=[USERS])
    with pytest.raises(k2t.K2TError, match=WORDS[name]):
        k2t.export(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
