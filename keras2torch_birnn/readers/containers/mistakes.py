"""Recognise files that are often given by mistake, from their content, to refuse them by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_GROUP_MEMBERS
from keras2torch_birnn.readers.advice import CONVERTED, HOW_TO_TURN_YAML, YAML
from keras2torch_birnn.readers.containers.compressed import head_inside
from keras2torch_birnn.readers.containers.container import OpenPath
from keras2torch_birnn.readers.containers.files import POINTER
from keras2torch_birnn.readers.containers.parts import find_models, whole_of
from keras2torch_birnn.readers.tensorflow.table import is_table

_WANTED = "the input must be a Keras model (.h5, .keras, SavedModel, checkpoint or TF.js)"
_KERAS_FILE = "give the Keras model itself (.h5, .keras or a SavedModel folder)"
_GRAPH = ("a TensorFlow graph: operations, without Keras' layers", _KERAS_FILE)
_CHECKPOINT = (
    "a part of a TensorFlow checkpoint",
    "give its name without .index or .data-..., and --config ARCH.json",
)
_PICKLE = ("a pickle, which can run code; it is never opened", "save the model with model.save")
_R_FILE = (
    "a file of R",
    'in R, save the Keras model in it: save_model_hdf5(unserialize_model(readRDS("FILE")), '
    '"model.h5")',
)
_SAVED_MODEL = ("a part of a SavedModel", "give its folder")
ORBAX = (
    "an Orbax checkpoint",
    "load it in Keras, into its model, and save that with model.save as .keras",
)
# Files that are known by their names alone, as their content is like that of many others.
_NAMES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern), what, advice)
    for pattern, what, advice in (
        (r".*\.data-\d{5}-of-\d{5}", *_CHECKPOINT),
        (r"(saved_model\.pbtxt|keras_metadata\.pb|fingerprint\.pb)", *_SAVED_MODEL),
        (r".*\.meta", *_GRAPH),
        (r"(?i).*\.(rds|rda(ta)?)", *_R_FILE),
        (r".*\.(py|ipynb)", "Python code", "give the Keras model that it saves"),
        (r"(manifest\.ocdbt|_METADATA|_CHECKPOINT_METADATA)", *ORBAX),
    )
)


# What the first bytes match -> what the file is, what to do. The first match counts.
_MISTAKES: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), what, advice)
    for pattern, what, advice in (
        (rb"\Z", "an empty file", "was the download or the copy complete?"),
        (rb"version https://git-lfs\.github\.com/spec/", *POINTER),
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
        (rb"\x80[\x02-\x05][\x95}\]c(q\x8a\x8c]", *_PICKLE),
        (
            rb"(\([dl]p\d|c[\w.]+\n\w+\n(p\d+\n|\())|[}\]]q.",
            *_PICKLE,
        ),  # of protocol 0, of 1
        (rb"X\n\0\0\0[\x02\x03]|[AB]\n[\x02\x03\d]|RD[AXB]\d\n", *_R_FILE),
        (
            rb".{4}TFL3",
            "a TensorFlow Lite model: operations, without Keras' layers",
            _KERAS_FILE,
        ),
        (rb"\x89HDF\r\n\x1a\n|PK\x03\x04", "an HDF5 file or a .keras archive", "unpack it"),
        (rb"GGUF", "a GGUF model", _WANTED),
        (rb"\x93NUMPY", "a NumPy .npy file", _WANTED),
        (rb".{8}\{\"__metadata__\":\{\"format\":\"keras2torch_birnn/", *CONVERTED),
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
            rb"\s*(#[^\n]*\n\s*)*(node|versions|library|saved_model_schema_version|meta_graphs)\s*[:{]",
            "a TensorFlow graph in text form",
            _KERAS_FILE,
        ),
        (
            YAML,
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


def describe(head: bytes) -> tuple[str, str] | None:
    """Return what the first bytes of a file are, and advice; None if they are not known."""
    for match, what, advice in _MISTAKES:
        if match.match(head):
            return what, advice
    return None


def explain_mistake(source: OpenPath) -> InvalidModelFileError:
    """Make the error for a file or folder that is no model, naming what it is instead."""
    if source.window is None:
        return _explain_folder(source.path)
    if (whole := whole_of(source.path)) is not None:
        return InvalidModelFileError(*whole)
    inside = head_inside(source.head)
    if (found := describe(inside) if inside else None) is not None:
        what, advice = found
        return InvalidModelFileError(f"compressed: inside is {what}", advice)
    for pattern, what, advice in _NAMES:
        if pattern.fullmatch(source.path.name):
            return InvalidModelFileError(what, advice)
    if (known := describe(source.head)) is not None:
        return InvalidModelFileError(*known)
    if is_table(source.window):
        return InvalidModelFileError(
            "a checkpoint in the old format of TensorFlow 1, or a renamed .index file",
            "save the Keras model as .h5, or give the checkpoint by its own name",
        )
    return InvalidModelFileError("not an HDF5 or Keras file", _WANTED)


# What a folder holds -> what it is, what to do. The first that is there counts.
_FOLDERS: tuple[tuple[str, str, str], ...] = (
    (
        "saved_model.pbtxt",
        "a SavedModel folder in text form (saved_model.pbtxt)",
        "load it in TensorFlow and save it as .keras or .h5",
    ),
    ("_CHECKPOINT_METADATA", *ORBAX),
    ("_METADATA", *ORBAX),
    ("manifest.ocdbt", *ORBAX),
    (
        "latest.weights.h5",
        "a folder of keras.callbacks.BackupAndRestore",
        "give latest.weights.h5 in it, and --config ARCH.json",
    ),
    (
        "chief",
        "a folder of keras.callbacks.BackupAndRestore",
        "give the folder chief in it, and --config ARCH.json",
    ),
    ("model.json", "a folder with model.json", "give model.json itself"),
)


def _explain_folder(folder: Path) -> InvalidModelFileError:
    """Make the error for a folder that is no model; only names are looked at."""
    try:
        names = sorted(islice((one.name for one in folder.iterdir()), MAX_GROUP_MEMBERS))
    except OSError as error:
        return InvalidModelFileError(f"a folder that cannot be read ({error.strerror})", _WANTED)
    if (whole := whole_of(folder)) is not None:
        return InvalidModelFileError(*whole)
    for name, what, advice in _FOLDERS:
        if name in names:
            return InvalidModelFileError(what, advice)
    indexes = [name.removesuffix(".index") for name in names if name.endswith(".index")]
    if indexes:
        return InvalidModelFileError(
            f"a folder of TensorFlow checkpoints ({_first(indexes)})",
            "give the name of one, without .index, and --config ARCH.json",
        )
    orbax = [name for name in names if (folder / name / "_CHECKPOINT_METADATA").exists()]
    if orbax:
        return InvalidModelFileError(*ORBAX)
    found = find_models(folder)
    if found:
        which = "give it" if len(found) == 1 else "give one of them"
        return InvalidModelFileError(f"a folder that holds {_first(found)}", which)
    return InvalidModelFileError("a folder" if names else "an empty folder", _WANTED)


def _first(names: Sequence[str]) -> str:
    return ", ".join(printable(name) for name in names[:3]) + ", ..." * (len(names) > 3)
