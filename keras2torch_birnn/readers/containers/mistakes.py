"""Recognise files that are often given by mistake, from their content, to refuse them by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_GROUP_MEMBERS
from keras2torch_birnn.readers.advice import HOW_TO_TURN_YAML
from keras2torch_birnn.readers.containers.container import Source
from keras2torch_birnn.readers.tensorflow.table import is_table

_WANTED = "the input must be a Keras model (.h5, .keras, SavedModel, checkpoint or TF.js)"
_FOLDERS = 1000  # that are looked into

_KERAS_FILE = "give the Keras model itself (.h5, .keras or a SavedModel folder)"
_GRAPH = ("a TensorFlow graph: operations, without Keras' layers", _KERAS_FILE)
_CHECKPOINT = (
    "a part of a TensorFlow checkpoint",
    "give its name without .index or .data-..., and --config ARCH.json",
)
_SAVED_MODEL = ("a part of a SavedModel", "give its folder")
# Files that are known by their names alone, as their content is like that of many others.
_NAMES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, advice)
    for pattern, what, advice in (
        (r".*\.data-\d{5}-of-\d{5}", *_CHECKPOINT),
        (r"(saved_model\.pbtxt|keras_metadata\.pb|fingerprint\.pb)", *_SAVED_MODEL),
        (r".*\.meta", *_GRAPH),
    )
)

_YAML = rb"(class_name|backend|config|keras_version):"

# What the first bytes match -> what the file is, what to do. The first match counts.
_MISTAKES: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), what, advice)
    for pattern, what, advice in (
        (rb"\Z", "an empty file", "was the download or the copy complete?"),
        (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer", "run git lfs pull"),
        (
            rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<\?xml)",
            "an HTML or XML page (a login or error page?)",
            "download the file itself",
        ),
        (
            rb"\x89HDF(\n|\r\n\n|\n\x1a\n)|\xef\xbf\xbdHDF|\xc2\x89HDF",
            "an HDF5 file damaged by a copy in text mode",
            "copy it again as binary",
        ),
        (
            rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
            "a PyTorch file (old format)",
            _WANTED,
        ),
        (
            rb"\x80[\x02-\x05][\x95}\]c(q\x8a\x8c]",
            "a pickle, which can run code; it is never opened",
            "save the model with model.save",
        ),
        (
            rb".{4}TFL3",
            "a TensorFlow Lite model: operations, without Keras' layers",
            _KERAS_FILE,
        ),
        (rb"GGUF", "a GGUF model", _WANTED),
        (rb"\x93NUMPY", "a NumPy .npy file", _WANTED),
        (rb"[^\0].{2,5}\0{2,5}\{\s*\"", "a safetensors file", _WANTED),
        (rb"\x08\x01\x12[\x80-\xff]", *_SAVED_MODEL),
        (
            rb"model_checkpoint_path:",
            "a list of TensorFlow checkpoints",
            "give its folder, or the name of a checkpoint, and --config ARCH.json",
        ),
        (
            rb"\n.{1,2}\n.{1,64}?\x12.(Placeholder|Const|VarHandleOp|NoOp)",
            *_GRAPH,
        ),
        (
            rb"\x08[\x01-\x20]\x12.{1,64}?(onnx|pytorch|tf2onnx|keras2onnx)",
            "an ONNX model",
            _WANTED,
        ),
        (rb"\x08[\x01-\x20](\x12.|:)", "an ONNX model, or a similar protocol buffer", _WANTED),
        (
            rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"{\]}]",
            "JSON text without weights",
            "an architecture goes with --config, next to the weights file",
        ),
        (
            _YAML,
            "YAML text without weights",
            f"an architecture goes with --config, next to the weights file; {HOW_TO_TURN_YAML}",
        ),
        (
            rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!",
            "compressed",
            "unpack it",
        ),
        (rb".{257}ustar", "a tar archive", "unpack it"),
        (rb"\0{512}", "zero bytes, no data", "was the download or the copy complete?"),
    )
)


def is_yaml(text: str) -> bool:
    """Tell whether a text begins as an architecture in YAML does."""
    return re.match(_YAML, text.encode()) is not None


def explain_mistake(source: Source) -> InvalidModelFileError:
    """Make the error for a file or folder that is no model, naming what it is instead."""
    if source.window is None:
        return _explain_folder(source.path)
    for pattern, what, advice in _NAMES:
        if pattern.fullmatch(source.path.name):
            return InvalidModelFileError(what, advice)
    for match, what, advice in _MISTAKES:
        if match.match(source.head):
            return InvalidModelFileError(what, advice)
    if is_table(source.window):
        return InvalidModelFileError(
            "a checkpoint in the old format of TensorFlow 1, or a renamed .index file",
            "save the Keras model as .h5, or give the checkpoint by its own name",
        )
    return InvalidModelFileError("not an HDF5 or Keras file", _WANTED)


def _explain_folder(folder: Path) -> InvalidModelFileError:
    """Make the error for a folder that is no model; only names are looked at."""
    try:
        names = sorted(islice((one.name for one in folder.iterdir()), MAX_GROUP_MEMBERS))
    except OSError as error:
        return InvalidModelFileError(f"a folder that cannot be read ({error.strerror})", _WANTED)
    if "saved_model.pbtxt" in names:
        return InvalidModelFileError(
            "a SavedModel folder in text form (saved_model.pbtxt)",
            "load it in TensorFlow and save it as .keras or .h5",
        )
    indexes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if indexes:
        return InvalidModelFileError(
            f"a folder of TensorFlow checkpoints ({_first(indexes)})",
            "give the name of one, without .index, and --config ARCH.json",
        )
    if "model.json" in names:
        return InvalidModelFileError("a folder with model.json", "give model.json itself")
    inner = [name for name in names[:_FOLDERS] if (folder / name / "saved_model.pb").exists()]
    if inner:
        return InvalidModelFileError(
            f"a folder of SavedModel folders ({_first(inner)})", "give one of them"
        )
    return InvalidModelFileError("a folder", _WANTED)


def _first(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3]) + ", ..." * (len(names) > 3)
