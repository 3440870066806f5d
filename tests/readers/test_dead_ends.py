"""Files and folders that are given in place of a model: each is named, and what to give instead.

Layouts and first bytes are those that the programs wrote: Git LFS, R, joblib, NumPy, torch,
safetensors, Keras 3.15 and 2.15, TensorFlow 2.15, Orbax. That none of it runs or is opened beyond
its kind: ``attacks/test_out.py``.
"""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import re
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from commands import FIXTURES
from tensorflow_fixtures import unpack

from keras2torch_birnn.errors import InvalidModelFileError, MissingArchitectureError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.spec import ModelSpec

H5 = FIXTURES / "keras-3.15.1" / "bi_lstm_concat_seq.h5"
KERAS = FIXTURES / "keras-3.15.1" / "bi_lstm_concat_last.keras"
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


def zipped(*names: str) -> Build:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return one(sink.getvalue(), "model.zip")


def tarred() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        file.add(H5, "model.h5")
    return sink.getvalue()


def torch_saved(value: object, **options: bool) -> Build:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return one(sink.getvalue(), "model.pth")


def another_hdf5() -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file["measurements"] = np.arange(9.0)
    return sink.getvalue()


SAVED_MODEL = {"saved_model.pb": b"\x08\x01\x12\x80", "variables/variables.index": b"x"}
SHARD = "variables/variables.data-00000-of-00001"
SAVED_MODEL[SHARD] = b"x"
PART = "a part of a SavedModel; give its folder"
FIELD = b"\n\x05hello"  # a field of a message
ORBAX = "an Orbax checkpoint; load it in Keras and save the model with model.save as .keras"
STEP = {f"1/{n}": b"{}" for n in ("_CHECKPOINT_METADATA", "default/_METADATA", "default/d/0a1b")}
STEP["1/default/manifest.ocdbt"] = b"\x0c\xdb\x3a\x2a"
PACKED = "unpack it and give the model in it"
GRAPH = "a graph of operations, without Keras' layers; give the Keras model that it was made from"
NAMED = "give the name of a checkpoint, without .index or .data-..., and --config ARCH.json"
OURS = "a model that k2t converted already; give the Keras model here; k2t.load"
HEADER = (64).to_bytes(8, "little")
# The table of TensorFlow's checkpoints ends with this number.
TABLE = bytes(230) + struct.pack("<Q", 0xDB4775248B80FB57)

DEAD_ENDS: Mapping[str, tuple[Build, str]] = MappingProxyType(
    {
        # other files
        "nothing in it": (one(b""), "an empty file, or one of zeros; was the download"),
        "html": (
            one(b"\n<!DOCTYPE html><html></html>"),
            "an HTML or XML page (a login or error pa",
        ),
        "html in capitals": (one(b"<HTML><body>404</body></HTML>"), "an HTML or XML page"),
        "xml": (one(b"<?xml version='1.0'?><Error/>"), "an HTML or XML page"),
        "zeros": (one(bytes(5000)), "an empty file, or one of zeros"),
        "text": (one(b"hello"), "not an HDF5 or Keras file"),
        "random bytes": (one(np.random.default_rng(1).bytes(9999)), "not an HDF5 or Keras file"),
        "signature only": (one(b"\x89HDF\r\n\x1a\n"), "damaged HDF5 structure"),
        "copied as text": (
            one(H5.read_bytes().replace(b"\r\n", b"\n")),
            "an HDF5 file damaged by a copy in text mode",
        ),
        "copied as UTF-8": (one(b"\xef\xbf\xbdHDF\r\n\x1a\n"), "damaged by a copy in text mode"),
        "another hdf5": (one(another_hdf5()), "an HDF5 file without model_config: not a Keras m"),
        "npy": (one(b"\x93NUMPY\1\0"), "a NumPy file"),
        "onnx": (one(b"\x08\x07\x12\x07pytorch\x1a\x051.8.0:" + bytes(99)), "an ONNX model"),
        "tflite": (one(b"\x1c\0\0\0TFL3" + bytes(99)), GRAPH),
        "frozen graph": (one(b"\n\x1b\n\x05input\x12\x0bPlaceholder" + bytes(99), "g.pb"), GRAPH),
        "pytorch": (torch_saved({"a": torch.zeros(2)}), "a PyTorch file"),
        "pytorch module": (torch_saved(torch.nn.Linear(2, 3)), "a PyTorch file"),
        "old pytorch": (
            torch_saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False),
            "a PyTorch file",
        ),
        "safetensors": (one(safetensors.torch.save({"a": torch.zeros(2)})), "a safetensors file"),
        "our safetensors": (
            one(HEADER + b'{"__metadata__":{"format":"keras2torch_birnn/1","spec":""}}'),
            OURS,
        ),
        "json": (
            one(b'{"class_name": "Sequential"}'),
            "JSON text without weights; an architecture",
        ),
        "json list": (one(b'[ {"class_name": 1}]'), "JSON text without weights"),
        "yaml": (one(b"backend: tensorflow\nclass_name: Model\n"), "YAML text without weights"),
        "shards": (
            one(b'{"metadata": {}, "weight_map": {}}'),
            "weights in several files, which k2t",
        ),
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
        # compressed and packed
        "rds": (one(b"X\n\0", "m.rds"), "a file of R; in R, save the Keras model in it"),
        "keras.xz": (one(lzma.compress(KERAS.read_bytes())), f"compressed or packed; {PACKED}"),
        "gzip": (one(gzip.compress(b"x" * 99), "m.h5.gz"), f"compressed or packed; {PACKED}"),
        "tar": (one(tarred(), "model.tar"), f"compressed or packed; {PACKED}"),
        "zip of a model": (zipped("download/model.keras"), f"a packed model; {PACKED}"),
        "zip of a SavedModel": (zipped("m/saved_model.pb", "m/a.bin"), f"a packed model; {PACKED}"),
        "zip of a checkpoint": (zipped("ckpt.index", "ckpt.data-00000"), f"model; {PACKED}"),
        "zip of TF.js": (zipped("web/model.json", "web/a.bin"), f"a packed model; {PACKED}"),
        "zip of a .keras folder": (zipped("m/config.json", "m/a"), f"a packed model; {PACKED}"),
        "npz": (zipped("a.npy"), "a NumPy file; the input must be"),
        "pickled weights": (
            zipped("config.json", "metadata.json", "model.weights.npz"),
            "a .keras file whose weights are pickled (.npz), which can run code; save it again",
        ),
        "shards in .keras": (
            zipped("config.json", "metadata.json", "model.weights.json"),
            "weights in several files, which k2t does not read; load the model in Keras and save",
        ),
        "zip without weights": (
            zipped("config.json", "metadata.json"),
            "model.weights.h5: missing in the archive",
        ),
        **{
            f"pickle {number}": (
                one(pickle.dumps({"a": b"x" * 99}, number)),
                "a pickle, which can run code; it is never opened",
            )
            for number in (0, 1, 2, 5)
        },
        "pbtxt": (one(b"node {\n  name: 'x'\n}\n", "g.pbtxt"), GRAPH),
        # one file of a folder
        "config.json": (keras_folder("config.json"), "part of an unzipped .keras file; give its f"),
        "metadata.json": (keras_folder("metadata.json"), ".keras file; give its folder, top"),
        "index in a SavedModel": (files(SAVED_MODEL, "variables/variables.index"), f"{PART}, top"),
        "data in a SavedModel": (files(SAVED_MODEL, SHARD), f"{PART}, top"),
        "variables": (files(SAVED_MODEL, "variables"), f"{PART}, top"),
        "metadata of a SavedModel": (one(FIELD, "keras_metadata.pb"), PART),
        "a SavedModel in text form": (one(FIELD, "saved_model.pbtxt"), GRAPH),
        "fingerprint": (one(FIELD, "fingerprint.pb"), PART),
        "saved_model.pb": (one(b"\x08\x01\x12\x80" + bytes(99), "saved_model.pb"), PART),
        "damaged objects": (files(SAVED_MODEL), "saved_model.pb: "),
        "graph": (one(FIELD, "model.meta"), GRAPH),
        "damaged index": (one(TABLE, "m.ckpt.index"), "the checksum of a block is wrong"),
        "data of a checkpoint": (
            one(np.arange(1.0, 300.0).tobytes(), "m.ckpt.data-00000-of-00001"),
            "a part of a TensorFlow checkpoint; give the name",
        ),
        "list of checkpoints": (
            one(b'model_checkpoint_path: "model.ckpt"\n', "checkpoint"),
            "a part of a TensorFlow checkpoint; give the name of a checkpoint",
        ),
        "tfjs shard": (
            files({"model.json": b"{}", "group1-shard1of1.bin": b"x"}, "group1-shard1of1.bin"),
            "a part of a TF.js model; give model.json",
        ),
        "orbax step": (files(STEP, "1"), ORBAX),
        "orbax item": (files(STEP, "1/default"), ORBAX),
        "orbax file": (files(STEP, "1/default/manifest.ocdbt"), ORBAX),
        # folders
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
            f"a folder of TensorFlow checkpoints; {NAMED}",
        ),
        "tfjs": (files({"model.json": b"{}"}), "a folder with model.json; give model.json itself"),
        "version": (files({"1/saved_model.pb": b""}), "a folder that holds 1; give it"),
        "one": (files({"best.keras": b""}), "a folder that holds best.keras; give it"),
        "several": (
            files({"a.h5": b"", "b.keras": b"", "c/saved_model.pb": b""}),
            "a folder that holds a.h5, b.keras, c; give one of them",
        ),
    }
)


def layers(spec: ModelSpec) -> list[tuple[str, Mapping[str, Any]]]:
    return [(layer.place, layer.config) for layer in spec.root.walk()]


@pytest.mark.skipif(sys.platform == "win32", reason="links of POSIX")
@pytest.mark.parametrize(
    ("target", "words"), [("nowhere", "No such file"), ("model.h5", "Too many levels")]
)
def test_a_link_that_leads_nowhere_is_told(target: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.h5").symlink_to(target)
    with pytest.raises(InvalidModelFileError, match=rf"cannot be opened \({words}"):
        read_model(tmp_path / "model.h5")


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
