"""A live model: its own Keras writes it to a private folder, and it is read as that file.

So everything that holds for files holds for it: names, numbering, vocabularies, the rules of its
version. Keras is never imported here: a model is recognised by the modules of its classes, and only
its own methods are called. The folder is removed as soon as the files in it are open.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from keras2torch_birnn.errors import (
    ArgumentTypeError,
    InvalidModelFileError,
    UnsupportedLayerError,
    UsageError,
    printable,
)
from keras2torch_birnn.readers.containers.container import (
    PACKAGES,
    is_inside,
    list_bases,
    package_of,
)
from keras2torch_birnn.spec import Array

_FIRST_WITH_ARCHIVES = (2, 13)  # that save() writes .keras files
_MODEL_CLASSES = ("Functional", "Sequential")


def write_live(model: object, folder: Path) -> Path:
    """Let a live model be written by its own Keras, without its optimizer, and return the file.

    Raises:
        ArgumentTypeError: no model of Keras; UsageError: not built; UnsupportedLayerError: its own
            Python code defines it; InvalidModelFileError: its Keras cannot write it.
    """
    keras_model = _check_model(model)
    module, name = next(list_bases(model))
    if not (is_inside(module, PACKAGES) and name in _MODEL_CLASSES):
        raise UnsupportedLayerError(
            f"the model is of class {printable(name)}, which its own Python code defines",
            "give keras.Model(model.inputs, model.outputs), which shares its layers; without "
            "inputs, wrap the call: x = keras.Input(shape), then keras.Model(x, model.call(x)); or "
            "read its weights with k2t.weights(model)",
        )
    try:
        if _version(keras_model) >= _FIRST_WITH_ARCHIVES:
            keras_model.save(str(folder / "model.keras"))
            return folder / "model.keras"
        keras_model.save(str(folder / "model.h5"), include_optimizer=False)
        return folder / "model.h5"
    except Exception as error:  # anything that Keras and the user's layers raise
        reason = printable(f"{type(error).__name__}: {error}".strip().partition("\n")[0])
        raise InvalidModelFileError(
            f"its Keras cannot write it ({reason})",
            "its layers need get_config, and TMPDIR must have room for its weights; without its "
            "optimizer and loss it is keras.Model(model.inputs, model.outputs)",
        ) from error


def read_live_arrays(model: object) -> dict[str, Array]:
    """Copy the weights of a live model, of any class, by the names that Keras gave them.

    Raises:
        ArgumentTypeError, UsageError: as ``write_live``; InvalidModelFileError: no numbers.
    """
    variables = [  # Keras 3 has paths, older ones names
        (str(getattr(one, "path", None) or one.name).removesuffix(":0"), number, one)
        for number, one in enumerate(_check_model(model).weights)
        if hasattr(one, "numpy")  # and no table of a vocabulary
    ]
    times = Counter(name for name, _, _ in variables)
    found: dict[str, Array] = {}
    for name, number, variable in variables:
        array = np.array(variable.numpy())  # a copy: it may share memory with the model
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        if array.dtype.kind not in "fiub":
            raise InvalidModelFileError(
                f"holds {array.dtype.name}, numbers are expected", place=printable(name)
            )
        found[name if times[name] == 1 else f"{name}#{number}"] = array
    return found


def _version(model: Any) -> tuple[int, int]:
    """Return major and minor version of the model's Keras, which has been imported."""
    module = sys.modules.get(package_of(model, "Model") or "")
    first, second, *_ = f"{getattr(module, '__version__', '2.0')}.0".split(".")
    return int(first), int(second)


def _check_model(thing: object) -> Any:
    """Return a built model of Keras."""
    if package_of(thing, "Model") is None:
        kind = f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
        raise ArgumentTypeError(
            f"an object of type {printable(kind)}, a path (str or os.PathLike) or a built Keras "
            "model (Sequential or functional) is expected",
            "an architecture alone has no weights: give a file of weights with config=FILE",
        )
    if not getattr(thing, "built", False):
        raise UsageError(
            "is not built, so it has no weights yet",
            "begin it with keras.Input(shape), or call it once on data",
        )
    return thing
