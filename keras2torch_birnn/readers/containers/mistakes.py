"""Recognise what is often given by mistake, to refuse it by name and say what to give instead.

One table, ``ROWS``, in which the first row counts. Only names and first bytes are looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_LISTED_FILES
from keras2torch_birnn.readers.containers.container import OpenPath
from keras2torch_birnn.readers.input_files import POINTER
from keras2torch_birnn.readers.tensorflow.bundle import is_table

_WANTED = "the input must be a Keras model (.h5, .keras, SavedModel, checkpoint or TF.js)"
_SAVED_MODEL = ("a part of a SavedModel", "give its folder{folder}")
_ARCHITECTURE = "an architecture goes with --config, next to the weights file"
_CHECKPOINT = "give the name of a checkpoint, without .index or .data-..., and --config ARCH.json"
SHARDS = (
    "weights in several files, which k2t does not read",
    "load the model in Keras and save it without max_shard_size",
)
# Said of a file that k2t wrote, where a Keras model is expected.
CONVERTED = (
    "a model that k2t converted already",
    "give the Keras model here; k2t.load, `k2t verify OUT` and `k2t export OUT` take this file",
)
# The beginning of an architecture in YAML, and what to do with one.
_YAML = rb"(class_name|backend|config|keras_version):"
HOW_TO_TURN_YAML = 'write it as JSON, as docs/cli.md shows ("An architecture in YAML")'


def is_yaml(text: str) -> bool:
    """Tell whether a text begins as an architecture in YAML does."""
    return re.match(_YAML, text.encode()) is not None


@dataclass(frozen=True)
class Row:
    """A row: where to look, what is like it, what the file is then, and what to do.

    ``where``, one or several of: "name" of the path itself, "head" of a file, names "in" a folder
    or in a "zip". ``beside``: files of which one must be there, too, from the folder of the path.
    """

    where: str
    like: bytes
    what: str
    advice: str
    beside: tuple[str, ...] = ()


ROWS: tuple[Row, ...] = (
    Row(
        "name",
        rb"(variables(\..*)?|checkpoint|assets|.*\.pb)\Z",
        *_SAVED_MODEL,
        ("../saved_model.pb", "saved_model.pb"),
    ),
    Row("name head", rb"(keras_metadata|fingerprint)\.pb\Z|\x08\x01\x12[\x80-\xff]", *_SAVED_MODEL),
    Row(
        "name",
        rb"(config|metadata)\.json\Z|model\.weights\.h5\Z",
        "a part of an unzipped .keras file",
        "give its folder{folder}",
        ("metadata.json",),
    ),
    Row(
        "name head in zip",
        rb".*_\d{5}\.weights\.h5\Z|.*\.weights\.json\Z|(\xef\xbb\xbf)?\s*\{.{0,4000}\"weight_map\"",
        *SHARDS,
    ),
    Row(
        "name",
        rb"group\d+-shard\d+of\d+|.*\.weights\.bin\Z",
        "a part of a TF.js model",
        "give model.json",
        ("model.json",),
    ),
    Row("in", rb"model\.json\Z", "a folder with model.json", "give model.json itself"),
    Row(
        "name",
        rb"tf_model\.h5\Z",
        "the weights of a Transformers model, which its own Python code defines",
        "take its arrays with k2t.weights, for a torch model of your own",
        ("config.json",),
    ),
    Row(
        "name head",
        rb".*\.data-\d{5}-of-\d{5}\Z|model_checkpoint_path:",
        "a part of a TensorFlow checkpoint",
        _CHECKPOINT,
    ),
    Row(
        "name head in",
        rb".*\.meta\Z|saved_model\.pbtxt\Z|.{4}TFL3|\s*(node|versions|library|meta_graphs)\s*[:{]"
        rb"|\n.{1,2}\n.{1,64}?\x12.(Placeholder|Const|VarHandleOp|NoOp)",
        "a graph of operations, without Keras' layers",
        "give the Keras model that it was made from (.h5, .keras or a SavedModel folder)",
    ),
    Row("in", rb".*\.index\Z", "a folder of TensorFlow checkpoints", _CHECKPOINT),
    Row(
        "name in",
        rb"manifest\.ocdbt\Z|_(CHECKPOINT_)?METADATA\Z",
        "an Orbax checkpoint",
        "load it in Keras and save the model with model.save as .keras",
    ),
    Row(
        "name",
        rb"(?i).*\.(rds|rda(ta)?)\Z",
        "a file of R",
        'in R, save the Keras model in it: save_model_hdf5(unserialize_model(readRDS("FILE")), '
        '"model.h5")',
    ),
    Row("name", rb".*\.(py|ipynb)\Z", "Python code", "give the Keras model that it saves"),
    Row(
        "head",
        rb"\Z|\0{512}",
        "an empty file, or one of zeros",
        "was the download or the copy complete?",
    ),
    Row("head", rb"version https://git-lfs\.github\.com/spec/", *POINTER),
    Row(
        "head",
        rb"(?i)(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<\?xml)",
        "an HTML or XML page (a login or error page?)",
        "download the file itself",
    ),
    Row(
        "head",
        rb"\x89HDF(\n|\r\n\n|\n\x1a\n)|\xef\xbf\xbdHDF|\xc2\x89HDF",
        "an HDF5 file damaged by a copy in text mode",
        "copy it again as binary",
    ),
    Row(
        "head zip",
        rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19|.*data\.pkl\Z|.*/archive_format\Z",
        "a PyTorch file",
        _WANTED,
    ),
    Row(
        "head",  # of protocol 2 and later, and of 0 and 1
        rb"\x80[\x02-\x05][\x95}\]c(q\x8a\x8c]|\([dl]p\d|c[\w.]+\n\w+\n(p\d+\n|\()|[}\]]q.",
        "a pickle, which can run code; it is never opened",
        "save the model with model.save",
    ),
    Row(
        "zip",
        rb"model\.weights\.npz\Z",
        "a .keras file whose weights are pickled (.npz), which can run code",
        "save it again with Keras' default weights format",
    ),
    Row("head zip", rb"\x93NUMPY|.*\.npy\Z", "a NumPy file", _WANTED),
    Row("head", rb".{8}\{\"__metadata__\":\{\"format\":\"keras2torch_birnn/", *CONVERTED),
    Row("head", rb"[^\0].{2,5}\0{2,5}\{\s*\"", "a safetensors file", _WANTED),
    Row("head", rb"\x08[\x01-\x20](\x12.|:)", "an ONNX model, or a similar message", _WANTED),
    Row(
        "head",
        rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"{\]}]",
        "JSON text without weights",
        _ARCHITECTURE,
    ),
    Row("head", _YAML, "YAML text without weights", f"{_ARCHITECTURE}; {HOW_TO_TURN_YAML}"),
    Row(
        "head",
        rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar",
        "compressed or packed",
        "unpack it and give the model in it",
    ),
    Row(
        "zip",
        rb"(.*/)?(saved_model\.pb|model\.json|config\.json|.*\.(index|h5|hdf5|keras))\Z",
        "a packed model",
        "unpack it and give the model in it",
    ),
)


def describe(
    where: str, texts: Iterable[bytes], path: Path | None = None
) -> tuple[str, str] | None:
    """Return what these names or first bytes tell, and advice; None if no row is like them.

    ``path``: of the file or folder, for rows that ask what is beside it.
    """
    known = list(texts)
    for row in ROWS:
        if where not in row.where.split() or not any(
            re.match(row.like, one, re.DOTALL) for one in known
        ):
            continue
        if not row.beside:
            return row.what, row.advice.replace("{folder}", "")
        for other in (path.parent / name for name in row.beside) if path is not None else ():
            if _is_there(other):  # it makes its folder the whole
                folder = printable(other.resolve().parent.name)
                return row.what, row.advice.replace("{folder}", folder and f", {folder}")
    return None


def whole_of(path: Path) -> tuple[str, str] | None:
    """Describe a file that is a part of a model by its name, with advice; None if it is not."""
    path = path.absolute()
    return describe("name", [os.fsencode(path.name)], path)


def explain_mistake(source: OpenPath) -> InvalidModelFileError:
    """Make the error for a file or folder that is no model, naming what it is instead."""
    if (found := whole_of(source.path)) is not None:
        return InvalidModelFileError(*found)
    if source.window is None:
        return _explain_folder(source.path)
    if (found := describe("head", [source.head])) is not None:
        return InvalidModelFileError(*found)
    if is_table(source.window):
        return InvalidModelFileError(
            "a checkpoint in the old format of TensorFlow 1, or a renamed .index file",
            "save the Keras model as .h5, or give the checkpoint by its own name",
        )
    return InvalidModelFileError("not an HDF5 or Keras file", _WANTED)


def _explain_folder(folder: Path) -> InvalidModelFileError:
    """Make the error for a folder that is no model; only names are looked at."""
    try:
        names = sorted(islice((one.name for one in folder.iterdir()), MAX_LISTED_FILES))
    except OSError as error:
        return InvalidModelFileError(f"a folder that cannot be read ({error.strerror})", _WANTED)
    if (found := describe("in", map(os.fsencode, names))) is not None:
        return InvalidModelFileError(*found)
    models = [name for name in names if re.fullmatch(r"(?i).*\.(keras|h5|hdf5)", name)]
    models += [name for name in names if _is_there(folder / name / "saved_model.pb")]
    if models:
        shown = ", ".join(map(printable, models[:3])) + ", ..." * (len(models) > 3)
        which = "give it" if len(models) == 1 else "give one of them"
        return InvalidModelFileError(f"a folder that holds {shown}", which)
    return InvalidModelFileError("a folder" if names else "an empty folder", _WANTED)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
