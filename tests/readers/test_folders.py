"""Models in several files: unzipped ``.keras`` folders."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commands import FIXTURES

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers import read_model

FOLDER = FIXTURES / "keras-3.15.1" / "as_folder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


@pytest.mark.parametrize("name", ["metadata.json", "model.weights.h5"])
def test_a_folder_without_a_member_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidModelFileError, match=f"{name}: cannot be opened"):
        read_model(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_a_folder_is_not_opened(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(InvalidModelFileError, match=r"config\.json: a pipe"):
        read_model(folder)


def test_a_folder_with_too_long_a_config_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras2torch_birnn.readers.input_files.MAX_JSON_BYTES", 99)
    with pytest.raises(InvalidModelFileError, match=r"config\.json: longer than 99 bytes"):
        read_model(folder)


def test_weights_in_several_files_are_refused(folder: Path) -> None:
    """Keras writes them where ``max_shard_size`` is given; the index names them."""
    words = r"weights in several files, which k2t does not read; load the model in Keras and save"
    (folder / "model.weights.h5").rename(folder / "model_00000.weights.h5")
    (folder / "model.weights.json").write_text('{"metadata": {}, "weight_map": {"/vars": "a.h5"}}')
    for given in (folder, folder / "model.weights.json"):
        with pytest.raises(InvalidModelFileError, match=words):
            read_model(given)
