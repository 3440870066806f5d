"""Files and folders that are given in place of a model: each is named, and what to give instead.

Layouts and first bytes are those that the programs wrote: Git LFS, R, joblib, Keras 3.15
and 2.15, TensorFlow 2.15, Orbax.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from commands import FIXTURES, copy_shards
from tensorflow_fixtures import unpack

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import InvalidModelFileError, MissingArchitectureError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers import parts
from keras2torch_birnn.readers.containers.parts import find_models
from keras2torch_birnn.spec import ModelSpec

H5 = FIXTURES / "keras-3.15.1" / "bi_lstm_concat_seq.h5"
KERAS = FIXTURES / "keras-3.15.1" / "bi_lstm_concat_last.keras"
SHARDS = FIXTURES / "keras-3.15.1" / "in_shards.weights.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:7\nsize 18928\n"
LFS = "a Git LFS pointer; run git lfs pull"
Build = Callable[[Path], Path]


def files(contents: Mapping[str, bytes], given: str = "") -> Build:
    """Write files and give one of them, or their folder."""

    def build(folder: Path) -> Path:
        top = folder / "top"
        top.mkdir()
        for name, data in contents.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(data)
        return top / given

    return build


def one(data: bytes, name: str = "model.h5") -> Build:
    return files({name: data}, name)


def keras_folder(given: str = "", **changed: bytes) -> Build:
    with zipfile.ZipFile(KERAS) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return files({**members, **{f"{k.replace('_', '.')}": v for k, v in changed.items()}}, given)


def r_object(data: bytes) -> bytes:
    """Serialize a raw vector as R's ``saveRDS`` does, before it compresses it."""
    head = b"X\n" + struct.pack(">iii", 3, 0x040301, 0x030500) + struct.pack(">i", 5) + b"UTF-8"
    return head + struct.pack(">ii", 24, len(data)) + data


def tarred(compress: Callable[[bytes], bytes] = bytes) -> Build:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        file.add(H5, "run/model.h5")
    return one(compress(data.getvalue()), "model.tar")


PICKLE = pickle.dumps({"a": [1, 2, 3] * 50})
RAW = H5.read_bytes()
SAVED_MODEL = {"saved_model.pb": b"\x08\x01\x12\x80", "variables/variables.index": b"x"}
SHARD = "variables/variables.data-00000-of-00001"
SAVED_MODEL[SHARD] = b"x"
R_FILE = "a file of R; in R, save the Keras model in it: save_model_hdf5(unserialize_model(readRDS("
NEVER = "a pickle, which can run code; it is never opened; save the model with model.save"
PART = "a part of a SavedModel; give its folder"
FIELD = b"\n\x05hello"  # a field of a message
ORBAX = "an Orbax checkpoint; load it in Keras, into its model, and save that with model.save"
STEP = {f"1/{n}": b"{}" for n in ("_CHECKPOINT_METADATA", "default/_METADATA", "default/d/0a1b")}
STEP["1/default/manifest.ocdbt"] = b"\x0c\xdb\x3a\x2a"
BACKUP_2 = {"chief/checkpoint": b"", "chief/ckpt-2.index": b"", "chief/ckpt-2.data-00000-of-1": b""}
BACKUP_3 = {"latest.weights.h5": RAW, "training_metadata.json": b'{"epoch": 1, "batch": 0}'}

DEAD_ENDS: Mapping[str, tuple[Build, str]] = MappingProxyType(
    {
        # not fetched from Git LFS
        "lfs file": (one(POINTER), f"model.h5: {LFS}"),
        "lfs keras folder": (keras_folder(model_weights_h5=POINTER), f"model.weights.h5: {LFS}"),
        "lfs config": (keras_folder(config_json=POINTER), f"config.json: {LFS}"),
        "lfs saved model": (files({"saved_model.pb": POINTER}), f"saved_model.pb: {LFS}"),
        "lfs tfjs": (
            files(
                {
                    "model.json": b'{"format": "layers-model", "modelTopology": {}, '
                    b'"weightsManifest": [{"paths": ["a.bin"], "weights": []}]}',
                    "a.bin": POINTER,
                },
                "model.json",
            ),
            f"a.bin: {LFS}",
        ),
        # R
        "rds gzip": (one(gzip.compress(r_object(RAW)), "m.rds"), f"compressed: inside is {R_FILE}"),
        "rds xz": (one(lzma.compress(r_object(RAW)), "m.rds"), f"compressed: inside is {R_FILE}"),
        "rds bzip2": (one(bz2.compress(r_object(RAW)), "m.rds"), R_FILE),
        "rds plain": (one(r_object(RAW), "m"), R_FILE),
        "rda": (one(gzip.compress(b"RDX3\nX\n" + bytes(99)), "m.rda"), f"inside is {R_FILE}"),
        # compressed
        "h5.gz": (one(gzip.compress(RAW)), "inside is an HDF5 file or a .keras archive; unpack"),
        "keras.xz": (one(lzma.compress(KERAS.read_bytes())), "inside is an HDF5 file or a .keras"),
        "broken gzip": (one(b"\x1f\x8b\x08\0\xff\xff"), "compressed; unpack it"),
        "lzma of 4 GB": (
            one(b"\x5d\0\0\0\xff" + bytes(99)),
            "not an HDF5 or Keras file; the input must be",
        ),
        "joblib zlib": (one(zlib.compress(PICKLE)), f"compressed: inside is {NEVER}"),
        "joblib gzip": (one(gzip.compress(PICKLE)), f"compressed: inside is {NEVER}"),
        "joblib bz2": (one(bz2.compress(PICKLE)), f"compressed: inside is {NEVER}"),
        "joblib xz": (one(lzma.compress(PICKLE)), f"compressed: inside is {NEVER}"),
        "joblib lzma": (one(lzma.compress(PICKLE, lzma.FORMAT_ALONE)), f"inside is {NEVER}"),
        "old joblib": (one(b"ZF0x12" + b" " * 15 + zlib.compress(PICKLE)), f"inside is {NEVER}"),
        "pickle 0": (one(pickle.dumps({"a": 1}, 0)), NEVER),
        "pickle 0 of an object": (one(pickle.dumps(Path("x"), 0)), NEVER),
        "pickle 1": (one(pickle.dumps({"a": 1}, 1)), NEVER),
        "tar": (tarred(), "a tar archive that holds run/model.h5; unpack it"),
        "tar.gz": (tarred(gzip.compress), "a tar archive that holds run/model.h5; unpack it"),
        "tar.xz": (tarred(lzma.compress), "compressed: inside is a tar archive; unpack it"),
        # graphs in text
        "pbtxt": (one(b"node {\n  name: 'x'\n}\n", "g.pbtxt"), "a TensorFlow graph in text form"),
        "empty pbtxt": (one(b"versions {\n}\n", "g.pbtxt"), "a TensorFlow graph in text form"),
        # one file of a folder
        "config.json": (keras_folder("config.json"), "part of an unzipped .keras file; give its f"),
        "metadata.json": (keras_folder("metadata.json"), "unzipped .keras file; give its folder"),
        "index in a SavedModel": (files(SAVED_MODEL, "variables/variables.index"), f"{PART}, top"),
        "data in a SavedModel": (files(SAVED_MODEL, SHARD), f"{PART}, top"),
        "variables": (files(SAVED_MODEL, "variables"), f"{PART}, top"),
        "metadata of a SavedModel": (one(FIELD, "keras_metadata.pb"), PART),
        "a SavedModel in text form": (one(FIELD, "saved_model.pbtxt"), PART),
        "fingerprint": (one(FIELD, "fingerprint.pb"), PART),
        "graph": (
            one(FIELD, "model.meta"),
            "a TensorFlow graph: operations, without Keras' layers; give the Keras",
        ),
        "checkpoint shard": (
            one(FIELD, "m.data-00000-of-00001"),
            "a part of a TensorFlow checkpoint; give its name without",
        ),
        "tfjs shard": (
            files({"model.json": b"{}", "group1-shard1of1.bin": b"x"}, "group1-shard1of1.bin"),
            "a part of a TF.js model; give model.json",
        ),
        # callbacks and other programs
        "backup 3": (files(BACKUP_3), "keras.callbacks.BackupAndRestore; give latest.weights.h5"),
        "backup 3 json": (
            files(BACKUP_3, "training_metadata.json"),
            "a part of a folder of keras.callbacks.BackupAndRestore; give latest.weights.h5, and",
        ),
        "backup 2": (files(BACKUP_2), "keras.callbacks.BackupAndRestore; give the folder chief"),
        "orbax": (files(STEP), ORBAX),
        "orbax step": (files(STEP, "1"), ORBAX),
        "orbax item": (files(STEP, "1/default"), ORBAX),
        "orbax file": (files(STEP, "1/default/manifest.ocdbt"), ORBAX),
        # folders
        "empty": (files({}), "an empty folder; the input must be"),
        "nothing": (files({"notes.txt": b""}), "a folder; the input must be"),
        "no model": (files({"config.json": b""}), "a folder; the input must be a Keras model"),
        "no weights": (
            files({"config.json": b"{}", "metadata.json": b"{}"}),
            "model.weights.h5: cannot be opened",
        ),
        "no objects": (
            files({"saved_model.pb": b""}),
            "saved_model.pb: a SavedModel without objects, of TensorFlow 1",
        ),
        "checkpoints": (
            files({"ckpt.index": b"", "ckpt.data-00000-of-00001": b""}),
            "a folder of TensorFlow checkpoints (ckpt); give the name of one",
        ),
        "tfjs": (files({"model.json": b"{}"}), "a folder with model.json; give model.json itself"),
        "text form": (files({"saved_model.pbtxt": b""}), "a SavedModel folder in text form"),
        "version": (files({"1/saved_model.pb": b""}), "a folder that holds 1/; give it"),
        "one": (files({"run/best.keras": b""}), "a folder that holds run/best.keras; give it"),
        "several": (
            files({"a.h5": b"", "b.keras": b"", "c/saved_model.pb": b""}),
            "a folder that holds a.h5, b.keras, c/; give one of them",
        ),
        "hub": (
            files({"config.json": b'{"model_type": "bert"}', "tf_model.h5": RAW}),
            "a folder that holds tf_model.h5; give it",
        ),
    }
)


def layers(spec: ModelSpec) -> list[tuple[str, Mapping[str, Any]]]:
    return [(layer.place, layer.config) for layer in spec.root.walk()]


@pytest.mark.parametrize("name", DEAD_ENDS)
def test_a_dead_end_says_what_to_give(name: str, tmp_path: Path) -> None:
    build, words = DEAD_ENDS[name]
    path = build(tmp_path)
    with pytest.raises(InvalidModelFileError, match=re.escape(words)) as caught:
        read_model(path)
    assert len(caught.value.lines()) == 1


def test_weights_of_a_folder_lead_to_the_folder(tmp_path: Path) -> None:
    """Alone they are a file of weights; the folder has the architecture, too."""
    path = keras_folder("model.weights.h5")(tmp_path)
    with pytest.raises(MissingArchitectureError, match=r"a part of an unzipped \.keras file; give"):
        read_model(path)
    assert layers(read_model(path.parent)) == layers(read_model(path, config=KERAS))


def test_weights_of_transformers_have_no_architecture(tmp_path: Path) -> None:
    weights = (FIXTURES / "keras-2.2.4" / "arch_forecast_weights.h5").read_bytes()
    path = files({"config.json": b"{}", "tf_model.h5": weights}, "tf_model.h5")(tmp_path)
    with pytest.raises(MissingArchitectureError, match="which its own Python code defines; take"):
        read_model(path)


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_any_file_of_a_saved_model_may_be_a_pointer(name: str, tmp_path: Path) -> None:
    model = unpack("tf.keras-2.15.0/batchnorm.untraced.tar", tmp_path).model
    (model / name).write_bytes(POINTER)
    with pytest.raises(InvalidModelFileError, match=f"{name}: {LFS}"):
        read_model(model)


# ---- shards --------------------------------------------------------------------------------------


def shards(folder: Path) -> tuple[Path, list[Path]]:
    """Copy a model in shards; return its index and the shards."""
    return copy_shards(folder), sorted(folder.glob("in_shards_0*.h5"))


def test_one_of_several_shards_leads_to_the_index(tmp_path: Path) -> None:
    index, (first, *_) = shards(tmp_path)
    with pytest.raises(InvalidModelFileError, match=f"one of several shards; give .*{index.name}"):
        read_model(first, config=SHARDS.with_name("in_shards.json"))


def test_a_shard_without_its_index_is_one_line(tmp_path: Path) -> None:
    """Each weight that it lacks was a line."""
    index, (first, *_) = shards(tmp_path)
    index.unlink()
    words = "not in the file, nor .*; the file is incomplete, one of several, or belongs to another"
    with pytest.raises(InvalidModelFileError, match=words) as caught:
        read_model(first, config=SHARDS.with_name("in_shards.json"))
    assert len(caught.value.lines()) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file; was the download or the copy complete"),
        (POINTER, LFS),
        (b"<html></html>", "an HTML or XML page"),
        (None, "cannot be opened"),
        (3000, "truncated: 3000 bytes here"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said_with_its_name(
    data: bytes | int | None, words: str, tmp_path: Path
) -> None:
    index, (first, *_) = shards(tmp_path)
    if data is None:
        first.unlink()
    else:
        first.write_bytes(first.read_bytes()[:data] if isinstance(data, int) else data)
    with pytest.raises(InvalidModelFileError, match=f"{first.name}: {words}") as caught:
        read_model(index, config=SHARDS.with_name("in_shards.json"))
    assert len(caught.value.lines()) == 1


# ---- --config ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_the_architecture_may_be_in_a_model(packed: bool, tmp_path: Path) -> None:
    """With it comes the version of Keras, which JSON of Keras 3 does not tell."""
    folder = keras_folder()(tmp_path)
    found = read_model(folder / "model.weights.h5", config=KERAS if packed else folder)
    assert found.generation.version == "3.15.1"
    assert layers(found) == layers(read_model(KERAS))


def test_an_hdf5_model_may_give_the_architecture() -> None:
    weights = H5.with_name("arch_crnn_permute.weights.h5")
    with pytest.raises(InvalidModelFileError):  # of another model, which is told by its weights
        read_model(weights, config=H5)


def test_a_version_that_is_not_known_is_not_named(tmp_path: Path) -> None:
    """It was said to be written by Keras 3.0."""
    folder = keras_folder()(tmp_path)
    (note, *_) = read_model(folder / "model.weights.h5", config=folder / "config.json").notes
    assert "written by a Keras 3 that it does not name" in note
    assert '"keras_version" in the architecture names another' in note


def test_a_search_of_folders_ends(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (deep / "m.keras").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_models(tmp_path) == []
    assert find_models(deep.parent.parent) == ["c/d/m.keras"]


def test_a_large_folder_is_looked_at_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MAX_LISTED_FILES", 2)
    for name in ("a.keras", "b.keras", "c.keras"):
        (tmp_path / name).touch()
    assert len(find_models(tmp_path)) == 2


def test_the_arrays_of_a_shard_are_read_in_any_order() -> None:
    found = k2t.weights(SHARDS)
    assert all(np.isfinite(array).all() for array in found.values())
