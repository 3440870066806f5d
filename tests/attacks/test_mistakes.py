"""Files passed by mistake are named for what they are, with advice.

More bytes: ``readers/test_containers.py``; parts of models: ``readers/test_bad_input.py``.
"""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from builders import by_commands
from commands import STACK_H5, STACK_KERAS, WEIGHTS
from harness import Runner, refused


def written(data: bytes, name: str = "model.h5") -> Callable[[Path], Path]:
    """Build a file of these bytes."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def saved_model(folder: Path) -> Path:
    (folder / "model" / "variables").mkdir(parents=True)
    (folder / "model" / "saved_model.pb").write_bytes(SAVED_MODEL)
    return folder / "model"


def keras_in_a_folder_of_a_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as file:
        file.write(STACK_KERAS, "download/model.keras")
    return folder / "model.zip"


def tarred(folder: Path) -> Path:
    with tarfile.open(folder / "model.tar", "w") as file:
        file.add(STACK_H5, "model.h5")
    return folder / "model.tar"


def torch_saved(value: object, **options: bool) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        torch.save(value, folder / "model.pth", **options)
        return folder / "model.pth"

    return build


def as_safetensors(folder: Path) -> Path:
    safetensors.torch.save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def another_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "data.h5", "w") as file:
        file["measurements"] = np.arange(9.0)
    return folder / "data.h5"


def text_copy(folder: Path) -> Path:
    return written(STACK_H5.read_bytes().replace(b"\r\n", b"\n"))(folder)


def empty_folder(folder: Path) -> Path:
    (folder / "model.h5").mkdir()
    return folder / "model.h5"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.h5")
    return folder / "model.h5"


def linked_device(target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "model.h5").symlink_to(target)
        return folder / "model.h5"

    return build


def checkpoint_index(folder: Path) -> Path:
    """The table of TensorFlow's checkpoints ends with this number."""
    block = b"\x00\x00\x08header..BUNDLE" + bytes(200)
    return written(block + struct.pack("<Q", 0xDB4775248B80FB57), "model.ckpt.index")(folder)


def checkpoint_data(folder: Path) -> Path:
    data = np.arange(1.0, 300.0, dtype="f4").tobytes()
    return written(data, "model.ckpt.data-00000-of-00001")(folder)


def weights_alone(folder: Path) -> Path:
    return Path(shutil.copyfile(WEIGHTS, folder / "weights.h5"))


SAVED_MODEL = b"\x08\x01\x12\xb2\x91\x03\x0a\xd4\x1e\x0a" + bytes(99)
GRAPH = b"\n\x1b\n\x05input\x12\x0bPlaceholder" + bytes(99)
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x051.8.0:" + bytes(99)
TFLITE = b"\x1c\0\0\0TFL3" + bytes(99)

# Refused with exit code 4.
UNSUPPORTED = {"weights"}
MISTAKES: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "random bytes": (written(np.random.default_rng(1).bytes(9999)), "not an HDF5 or Keras"),
    "pickle": (written(pickle.dumps({"a": 1})), "a pickle, which can run code"),
    "pytorch": (torch_saved({"a": torch.zeros(2)}), "a PyTorch file"),
    "pytorch module": (torch_saved(torch.nn.Linear(2, 3)), "a PyTorch file"),
    "old pytorch": (
        torch_saved({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False),
        "a PyTorch file",
    ),
    "safetensors": (as_safetensors, "a safetensors file"),
    "onnx": (written(ONNX, "model.onnx"), "an ONNX model"),
    "tflite": (written(TFLITE, "model.tflite"), "a graph of operations, without Keras' layers"),
    "saved model": (saved_model, "saved_model.pb: a field that is longer"),
    "saved_model.pb": (
        written(SAVED_MODEL, "saved_model.pb"),
        "a part of a SavedModel; give its folder",
    ),
    "frozen graph": (written(GRAPH, "graph.pb"), "a graph of operations, without Keras' layers"),
    "checkpoint index": (checkpoint_index, "the checksum of a block is wrong"),
    "checkpoint data": (checkpoint_data, "a part of a TensorFlow checkpoint; give the name"),
    "checkpoint text": (
        written(b'model_checkpoint_path: "model.ckpt"\n', "checkpoint"),
        "a list of TensorFlow checkpoints; give the name of a checkpoint",
    ),
    "gzip": (written(gzip.compress(b"x" * 99), "m.h5.gz"), "compressed or packed; unpack it"),
    "tar": (tarred, "compressed or packed; unpack it"),
    "zip of a model": (
        keras_in_a_folder_of_a_zip,
        "a packed model; unpack it",
    ),
    "weights": (weights_alone, "holds weights but no architecture; give the text of"),
    "another hdf5": (another_hdf5, "an HDF5 file without model_config: not a Keras model"),
    "copied as text": (text_copy, "an HDF5 file damaged by a copy in text mode"),
    "a folder": (empty_folder, "an empty folder; the input must be a Keras model"),
    "a pipe": (pipe, "a pipe (FIFO); the input must be a file"),
    "/dev/zero": (linked_device("/dev/zero"), "a device; the input must be a file"),
    "/dev/stdin": (linked_device("/dev/null"), "a device; the input must be a file"),
    "dangling link": (linked_device("nowhere"), "cannot be opened (No such file"),
    "link to itself": (linked_device("model.h5"), "cannot be opened (Too many levels"),
}


@pytest.mark.parametrize(("name", "command"), by_commands(MISTAKES))
def test_a_mistake_is_called_by_its_name(
    name: str, command: str, runners: Mapping[str, Runner], tmp_path: Path
) -> None:
    build, words = MISTAKES[name]
    code = 4 if name in UNSUPPORTED else 3
    refused(runners[command], command, build(tmp_path), words, tmp_path, code=code)
