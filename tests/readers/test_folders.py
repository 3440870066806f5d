"""Models in several files: unzipped ``.keras`` folders, and weights in shards."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest
from commands import FIXTURES, copy_shards
from specs import assert_same_weights

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, WeightMismatchError
from keras2torch_birnn.limits import MAX_SHARDS
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers.shards import parse_index
from keras2torch_birnn.spec import ModelSpec

# ---- folders ------------------------------------------------------------------------------------

FOLDER = FIXTURES / "keras-3.15.1" / "as_folder"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


@pytest.mark.parametrize("name", ["metadata.json", "model.weights.h5"])
def test_a_folder_without_a_member_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidModelFileError, match=f"{name}: cannot be opened"):
        read_model(folder)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_link_in_a_folder_is_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(InvalidModelFileError, match=f"{name}: a link; the input must be a file"):
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
    monkeypatch.setattr("keras2torch_birnn.readers.containers.files.MAX_JSON_BYTES", 99)
    with pytest.raises(InvalidModelFileError, match=r"config\.json: longer than 99 bytes"):
        read_model(folder)


def test_a_folder_with_shards_is_read(folder: Path) -> None:
    with h5py.File(folder / "model.weights.h5") as file:
        groups: list[str] = []
        file.visit(lambda name: groups.append(name) if name.endswith("/vars") else None)
    (folder / "model.weights.h5").rename(folder / "model_00000.weights.h5")
    index = {"weight_map": {f"/{name}": "model_00000.weights.h5" for name in groups}}
    (folder / "model.weights.json").write_text(json.dumps(index))
    assert_same_weights(read_model(folder), read_model(FOLDER))


# ---- shards -------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return copy_shards(tmp_path)


def read_shards(index: Path) -> ModelSpec:
    return read_model(index, config=index.with_name("in_shards.json"))


def test_shards_need_an_architecture(shards: Path) -> None:
    with pytest.raises(InvalidModelFileError, match="holds weights but no architecture"):
        read_model(shards)


def test_arrays_of_one_layer_come_from_several_shards(shards: Path) -> None:
    index = json.loads(shards.read_text())
    place = "/layers/batch_normalization/vars"
    (name,) = parse_index(shards.read_text(), "")[place.strip("/")]
    wanted = read_shards(shards)
    with (
        h5py.File(shards.with_name(name), "a") as file,
        h5py.File(shards.with_name("more.h5"), "w") as more,
    ):
        for key in ("1", "3"):
            more[f"{place}/{key}"] = file[f"{place}/{key}"][()]
            del file[f"{place}/{key}"]
    index["weight_map"][place] = [name, "more.h5"]
    shards.write_text(json.dumps(index))
    assert_same_weights(read_shards(shards), wanted)


def test_an_array_that_no_shard_has_is_missed(shards: Path) -> None:
    index = json.loads(shards.read_text())
    del index["weight_map"]["/layers/dense/vars"]
    shards.write_text(json.dumps(index))
    with pytest.raises(WeightMismatchError, match="/layers/dense/vars/0: not in the shards"):
        read_shards(shards)


def test_an_array_in_two_shards_is_refused(shards: Path) -> None:
    index = json.loads(shards.read_text())
    place, names = next((k, v) for k, v in index["weight_map"].items() if isinstance(v, list))
    other = next(
        n for n in ("in_shards_00000", "in_shards_00003") if f"{n}.weights.h5" not in names
    )
    with h5py.File(shards.with_name(f"{other}.weights.h5"), "a") as file:
        group = file.require_group(place)
        with h5py.File(shards.with_name(names[0])) as source:
            for key in source[place]:
                group[key] = source[place][key][()]
    names.append(f"{other}.weights.h5")
    shards.write_text(json.dumps(index))
    with pytest.raises(WeightMismatchError, match="in 2 shards at once"):
        read_shards(shards)


def test_a_link_in_the_place_of_a_shard_is_not_followed(shards: Path, tmp_path: Path) -> None:
    shard = shards.with_name("in_shards_00000.weights.h5")
    shard.rename(tmp_path / "elsewhere.h5")
    shard.symlink_to(tmp_path / "elsewhere.h5")
    with pytest.raises(InvalidModelFileError, match=r"in_shards_00000\.weights\.h5: a link"):
        read_shards(shards)


OUTSIDE = ("../a.h5", "/etc/a.h5", "a/b.h5", "a\\b.h5", "C:a.h5", "..")
NO_NAMES = (".a.h5", "a", "a\0.h5", "", 5, None, {})


@pytest.mark.parametrize("name", [*OUTSIDE, *NO_NAMES])
def test_a_shard_elsewhere_is_refused(name: object) -> None:
    text = json.dumps({"weight_map": {"/vars": [name]}})
    with pytest.raises(InvalidModelFileError, match="is not the name of a shard beside the index"):
        parse_index(text, "")


@pytest.mark.parametrize("given", [{}, [], None, {"/vars": []}, {"/vars": 5}, {"/vars": {}}])
def test_an_index_that_names_nothing_is_refused(given: object) -> None:
    with pytest.raises(InvalidModelFileError, match="weight_map names no file"):
        parse_index(json.dumps({"weight_map": given}), "")


def test_too_many_shards_are_refused() -> None:
    names = [f"{i}.h5" for i in range(MAX_SHARDS + 1)]
    with pytest.raises(
        K2TError, match=f"weights in {MAX_SHARDS + 1} files, more than {MAX_SHARDS}"
    ):
        parse_index(json.dumps({"weight_map": {"/vars": names}}), "")
