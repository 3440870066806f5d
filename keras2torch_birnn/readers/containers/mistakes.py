"""Recognise files that are often given by mistake, from their content, to refuse them by name."""

from __future__ import annotations

import re

from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.readers.containers.container import Source

_WANTED = "the input must be a Keras model (.h5 or .keras)"

_CHECKPOINT = (
    "a TensorFlow checkpoint",
    "load it in Keras and save the whole model as .keras or .h5",
)
# What TensorFlow's table of a checkpoint (NAME.index) ends with, and the file beside it is called.
_TABLE_END = (0xDB4775248B80FB57).to_bytes(8, "little")
_CHECKPOINT_DATA = re.compile(r".*\.data-\d{5}-of-\d{5}")

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
        (rb".{4}TFL3", "a TensorFlow Lite model", _WANTED),
        (rb"GGUF", "a GGUF model", _WANTED),
        (rb"\x93NUMPY", "a NumPy .npy file", _WANTED),
        (rb"[^\0].{2,5}\0{2,5}\{\s*\"", "a safetensors file", _WANTED),
        (
            rb"\x08\x01\x12[\x80-\xff]",
            "a part of a SavedModel",
            "load its folder in TensorFlow and save it as .keras or .h5",
        ),
        (rb"model_checkpoint_path:", *_CHECKPOINT),
        (
            rb"\n.{1,2}\n.{1,64}?\x12.(Placeholder|Const|VarHandleOp|NoOp)",
            "a TensorFlow graph",
            _WANTED,
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
        (rb"(class_name|backend|config|keras_version):", "YAML text without weights", _WANTED),
        (
            rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!",
            "compressed",
            "unpack it",
        ),
        (rb".{257}ustar", "a tar archive", "unpack it"),
        (rb"\0{512}", "zero bytes, no data", "was the download or the copy complete?"),
    )
)


def explain_mistake(source: Source) -> InvalidModelFileError:
    """Make the error for a file or folder that is no model, naming what it is instead."""
    if source.window is None:
        if (source.path / "saved_model.pb").exists():
            return InvalidModelFileError(
                "a SavedModel folder", "load it in TensorFlow and save it as .keras or .h5"
            )
        return InvalidModelFileError("a folder", _WANTED)
    for pattern, what, advice in _MISTAKES:
        if pattern.match(source.head):
            return InvalidModelFileError(what, advice)
    window = source.window
    table = window.head(8, max(0, window.size - 8)) == _TABLE_END
    if table or _CHECKPOINT_DATA.fullmatch(str(window.file.name)):
        return InvalidModelFileError(*_CHECKPOINT)
    return InvalidModelFileError("not an HDF5 or Keras file", _WANTED)
