"""The notebooks of the gallery: they run, and print what is recorded in them."""

from __future__ import annotations

import re
from pathlib import Path

import gallery
import pytest

from keras2torch_birnn.rnn.native.library import why_missing


def without_figures(text: str) -> str:
    """Blot out errors and times, which differ from one machine to the next."""
    return re.sub(r"\d+\.\d+(e[-+]\d+| ms)", "#", text)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("notebook", gallery.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_recorded(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if why_missing():
        monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")
    recorded = [
        gallery.printed(cell)
        for cell in gallery.read(notebook)["cells"]
        if cell["cell_type"] == "code"
    ]
    assert list(map(without_figures, gallery.run(notebook))) == list(map(without_figures, recorded))
    assert any(recorded)
