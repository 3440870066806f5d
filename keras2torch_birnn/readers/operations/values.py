"""Values in the arguments of operations: tensors, numbers, constants, dtypes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeGuard

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError, invalid, printable
from keras2torch_birnn.limits import MAX_CONSTANT_DEPTH, MAX_INT64
from keras2torch_birnn.readers.config.classes import HOW_TO_REPLACE
from keras2torch_birnn.spec import Constant

Values = dict[str, Any]

# Classes of entries that are operations in tf.keras; the module of those in the normal form
TF_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
GRAPH_NODE = "TensorFlowOpLayer"


def unsupported(finding: str, advice: str = HOW_TO_REPLACE) -> UnsupportedOptionError:
    """Make an error without its path, which the caller knows."""
    return UnsupportedOptionError(finding, advice)


def is_tensor(value: Any) -> bool:
    """Tell whether this is a reference to a tensor of the model."""
    return isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__"


def is_reference(value: Any, names: Container[str]) -> TypeGuard[list[Any]]:
    """Tell whether a list begins as a reference to a tensor: layer, call, output."""
    if not isinstance(value, list):
        return False
    return [type(part) for part in value[:3]] == [str, int, int] and value[0] in names


def tensor(layer: str, call: int, output: int) -> dict[str, Any]:
    """Make a reference in the form of Keras 3."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"keras_history": [layer, call, output]},
    }


def numbers_in(value: Any) -> Any:
    """Unwrap the list or number of an array of Keras 3; return any other value as it is."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        config = value.get("config")
        return config.get("value") if isinstance(config, Mapping) else None
    if isinstance(value, Mapping) and value.get("class_name") == "__tuple__":
        return value.get("items")
    return value


def constant(value: Any) -> Any:
    """Convert an argument: a list of numbers to one constant; tensors and numbers stay."""
    if isinstance(value, str):
        raise unsupported(f"the text {printable(repr(value))} where numbers are expected")
    if isinstance(value, list | tuple):
        return {"class_name": "__tensor__", "config": {"value": value, "dtype": None}}
    return value


def constant_of_option(value: Any) -> Any:
    """Convert an option: arrays and nested tuples to lists."""
    plain = numbers_in(value)
    if isinstance(plain, list | tuple):
        return [constant_of_option(part) for part in plain]
    return plain


def convert_list(value: Any) -> list[Any]:
    """Convert a list of tensors, each of which may be a constant."""
    if not isinstance(value, list | tuple):
        raise unsupported("one tensor where a list of tensors is expected")
    return [constant(part) for part in value]


def split_sizes(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split a shape into fixed sizes, None for each tensor, and these tensors.

    A tensor that is the whole shape gives None and itself.
    """
    value = numbers_in(value)
    if is_tensor(value):
        return None, (value,)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise unsupported(f"the shape {printable(repr(value))}")
    if any(part is None for part in value):
        raise unsupported("a shape with a size that is not there")
    return (
        [None if is_tensor(part) else numbers_in(part) for part in value],
        tuple(part for part in value if is_tensor(part)),
    )


_KINDS: Mapping[str, str] = {
    **dict.fromkeys("float16 bfloat16 float32 float64".split(), "float"),
    **{name: name for name in ("int32", "int64", "bool")},
}


def dtype_kind(value: Any) -> str | None:
    """Return "float", "int32", "int64" or "bool" for a dtype (also "DT_FLOAT"); None stays.

    Raises:
        UnsupportedOptionError: text, complex numbers, or whole numbers of other sizes.
    """
    if value is None:
        return None
    name = dtype_name(value)
    if name not in _KINDS:
        raise unsupported(f"dtype {printable(name)} is not supported")
    return _KINDS[name]


_OTHER_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


def dtype_name(value: Any) -> str:
    """Return the plain name of a dtype."""
    name = str(value).removeprefix("tf.").removeprefix("DT_").lower()
    return _OTHER_NAMES.get(name, name)


# ---- constants -----------------------------------------------------------------------------------


# Constants in the place of tensors, as Keras 3 writes them: ``__numpy__`` and ``__tensor__``.


CONSTANT_CLASSES = ("__numpy__", "__tensor__")


def read_constant(value: Mapping[str, Any], place: str) -> Constant | float:
    """Parse a constant; a single float becomes a number.

    Floats are rounded to float32, in which Keras computes with them, unless the file says float64.

    Raises:
        InvalidModelFileError: not numbers in equal rows; UnsupportedOptionError: such a dtype.
    """
    config = value.get("config")
    config = config if isinstance(config, Mapping) else {}
    try:
        declared = dtype_kind(config.get("dtype"))
    except UnsupportedOptionError as error:
        error.place = place
        raise
    flat: list[Any] = []
    shape = _flatten(config.get("value"), flat, 0, place)
    if declared == "float" or (
        declared is None and any(isinstance(number, float) for number in flat)
    ):
        if str(config.get("dtype")).removeprefix("tf.") != "float64":
            flat = np.asarray(flat, dtype=np.float32).astype(float).tolist()
        if shape == ():
            return float(flat[0])
    return Constant(tuple(flat), shape, declared)


def _flatten(value: Any, flat: list[Any], depth: int, place: str) -> tuple[int, ...]:
    if isinstance(value, bool | int | float):
        if isinstance(value, int) and abs(value) > MAX_INT64:
            raise invalid(f"a constant with {printable(value)}", place)
        flat.append(value)
        return ()
    if not isinstance(value, list | tuple) or depth > MAX_CONSTANT_DEPTH:
        raise invalid(f"a constant of {printable(repr(value))}, numbers are expected", place)
    shapes = {_flatten(part, flat, depth + 1, place) for part in value}
    if len(shapes) > 1:
        raise invalid("a constant of unequal rows", place)
    return (len(value), *(shapes.pop() if shapes else ()))
