"""A live model: its own Keras writes it to a private folder, and it is read as that file.

So everything that holds for files holds for it: names, numbering, vocabularies, the rules of its
version. Keras is never imported here: a model is recognised by the modules of its classes, and only
its own methods are called. The folder is removed as soon as the files in it are open.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
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
    Container,
    OpenPath,
    is_inside,
    list_bases,
    package_of,
)
from keras2torch_birnn.readers.containers.keras import HDF5File, KerasArchive
from keras2torch_birnn.readers.input_files import file_window
from keras2torch_birnn.spec import Array

_FIRST_WITH_ARCHIVES = (2, 13)  # that save() writes .keras files
_MODEL_CLASSES = ("Functional", "Sequential")
_EXPECTED = (
    "a path (str or os.PathLike) or a built Keras model (Sequential or functional) is expected"
)


def open_live(model: object) -> Container:
    """Let a live model be written to a private folder, open it, and remove the folder.

    Raises:
        K2TError: as ``write_live``, or what was written cannot be read.
    """
    with ExitStack() as opening:
        folder = TemporaryDirectory(prefix="k2t-", ignore_cleanup_errors=True)
        opening.enter_context(folder)
        file = write_live(model, Path(folder.name))
        source = OpenPath(file, file_window(opening, file))
        opened = KerasArchive if file.suffix == ".keras" else HDF5File
        container: Container = opened.open(source, opening)
        # Open files need no names, except on Windows: a process that is killed leaves nothing.
        folder.cleanup()
        container.closing = opening.pop_all()
        return container


def write_live(model: object, folder: Path) -> Path:
    """Let a live model be written by its own Keras, without its optimizer, and return the file.

    Raises:
        ArgumentTypeError: no model of Keras; UsageError: not built; UnsupportedLayerError: its own
            Python code defines it; InvalidModelFileError: its Keras cannot write it.
    """
    keras_model = _check_model(model)
    _check_class(keras_model)
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
            "set TMPDIR to a folder with room for its weights"
            if isinstance(error, OSError)
            else "its layers need get_config; without its optimizer and loss it is "
            "keras.Model(model.inputs, model.outputs)",
        ) from error


def read_live_arrays(model: object) -> dict[str, Array]:
    """Copy the weights of a live model, of any class, by the names that Keras gave them.

    Raises:
        ArgumentTypeError, UsageError: as ``write_live``; InvalidModelFileError: no numbers.
    """
    variables = [
        (_variable_name(variable), number, variable)
        for number, variable in enumerate(_check_model(model).weights)
        if hasattr(variable, "numpy")  # and no table of a vocabulary
    ]
    times = Counter(name for name, _, _ in variables)
    return {
        name if times[name] == 1 else f"{name}#{number}": _copy(variable.numpy(), name)
        for name, number, variable in variables
    }


def _variable_name(variable: Any) -> str:
    """Return the path of a variable in Keras 3, its name in older ones."""
    return str(getattr(variable, "path", None) or variable.name).removesuffix(":0")


def _copy(value: Any, name: str) -> Array:
    """Copy an array, which may share memory with the model; bfloat16 becomes float32.

    Raises:
        InvalidModelFileError: it holds no numbers.
    """
    array = np.array(value)
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise InvalidModelFileError(
            f"holds {array.dtype.name}, numbers are expected", place=printable(name)
        )
    return array


def _version(model: Any) -> tuple[int, int]:
    """Return major and minor version of the model's Keras, which has been imported."""
    module = sys.modules.get(package_of(model, "Model") or "")
    first, second, *_ = f"{getattr(module, '__version__', '2.0')}.0".split(".")
    return int(first), int(second)


def _check_model(thing: object) -> Any:
    """Return a built model of Keras.

    Raises:
        ArgumentTypeError: it is something else; UsageError: it is not built.
    """
    if package_of(thing, "Model") is None:
        raise _explain(thing)
    if not getattr(thing, "built", False):
        raise UsageError(
            "is not built, so it has no weights yet",
            "begin it with keras.Input(shape), or call it once on data",
        )
    return thing


def _check_class(model: Any) -> None:
    """Refuse a model whose class is not Keras' own.

    Raises:
        UnsupportedLayerError: it is the user's own class.
    """
    module, name = next(list_bases(model))
    if is_inside(module, PACKAGES) and name in _MODEL_CLASSES:
        return
    has_graph = any(package_of(model, known) for known in _MODEL_CLASSES)
    raise UnsupportedLayerError(
        f"the model is of class {printable(name)}, which its own Python code defines",
        "give keras.Model(model.inputs, model.outputs), which shares its layers"
        if has_graph
        else "wrap the call in a functional model: x = keras.Input(shape), then "
        "keras.Model(x, model.call(x)); or read its weights with k2t.weights(model)",
    )


def _explain(thing: object) -> ArgumentTypeError:
    """Make the error for an object that is neither a path nor a model."""
    found = printable(
        f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
    )
    if isinstance(thing, str) or (isinstance(thing, Mapping) and {"config", "layers"} & {*thing}):
        return ArgumentTypeError(
            f"an architecture without weights ({found}), {_EXPECTED}",
            "give the model itself, or a file of weights with config=FILE",
        )
    return ArgumentTypeError(f"an object of type {found}, {_EXPECTED}")
