"""Read the user's own inputs of ``verify``, and check them before the model runs on them.

A ``.npz`` file, a mapping by the names of the InputLayers, or a sequence in Keras' order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.errors import InvalidModelFileError, UsageError, in_file, printable
from keras2torch_birnn.reference.sample_inputs import Drawn, InputFacts, input_facts
from keras2torch_birnn.spec import Array, ModelSpec, format_shape, shape_fits
from keras2torch_birnn.suggestions import explain_missing


class TensorLike(Protocol):
    """A tensor of torch, which this module does not import."""

    def detach(self) -> TensorLike:
        """Return it without its gradient."""
        ...


Values: TypeAlias = npt.ArrayLike | TensorLike
InputData: TypeAlias = str | os.PathLike[str] | Mapping[str, Values] | Sequence[Values]
"""Path of an ``.npz``, arrays by the inputs' names, or arrays in Keras' order."""

GIVEN = "the inputs given"
_POSITIONAL = "arr_"  # as numpy.savez names what has no name


def given_inputs(model: ModelSpec, source: InputData) -> Drawn:
    """Read and check the user's inputs: floats in the model's precision, int32 or bool.

    Raises:
        InvalidModelFileError: not a readable .npz. UsageError: they do not fit the model.
    """
    path = source if isinstance(source, str | os.PathLike) else None
    with nullcontext() if path is None else in_file(path):
        named = _read(path) if path is not None else source
        names = [layer.name for layer in model.input_layers()]
        arrays = _in_order(named, names)
        facts = input_facts(model)
        double = any(
            w.dtype == np.float64 for one in model.root.walk() for w in one.weights.values()
        )
        kind = np.float64 if double else np.float32
        checked = tuple(
            _checked(_array(x, name), name, fact, kind)
            for x, name, fact in zip(arrays, names, facts, strict=True)
        )
        rows = {x.shape[0] for x in checked}
        if len(rows) > 1:
            raise UsageError(
                f"the inputs have {', '.join(map(str, sorted(rows)))} rows",
                "give each the same number of rows",
            )
    return Drawn(GIVEN, checked)


_NOT_NUMPYS = "it is none of NumPy's"


def _read(path: str | os.PathLike[str]) -> dict[str, Array]:
    try:
        with Path(path).open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if isinstance(data, np.ndarray):
                raise ValueError("one array without a name")
            if not all(member.endswith(".npy") for member in data.zip.namelist()):
                raise ValueError(_NOT_NUMPYS)
            return {name: data[name] for name in data.files}
    except FileNotFoundError:
        near = explain_missing(Path(path))
        raise InvalidModelFileError("there is no such file", near or "name an .npz file") from None
    except IsADirectoryError:
        raise InvalidModelFileError("is a folder", "name an .npz file") from None
    except Exception as error:  # many: of zip, zlib, struct, tokenize
        reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        if "pickle" in reason:  # what NumPy takes any other file for
            reason = _NOT_NUMPYS
        raise InvalidModelFileError(
            f"is not an .npz file of plain arrays ({reason})", "write it with numpy.savez"
        ) from None


def _in_order(inputs: Any, names: Sequence[str]) -> list[Any]:
    """Return the inputs in the model's order."""
    expected = ", ".join(map(printable, names))
    if not isinstance(inputs, Mapping):
        if not isinstance(inputs, Sequence):
            raise UsageError(
                f"inputs of type {type(inputs).__name__}",
                f"give a path, a list of arrays, or a dict with {expected}",
            )
        if len(inputs) != len(names):
            raise UsageError(f"{len(inputs)} inputs, the model takes {len(names)}: {expected}")
        return list(inputs)
    numbered = [f"{_POSITIONAL}{i}" for i in range(len(names))]
    for known in (names, numbered):
        if set(inputs) == set(known):
            return [inputs[name] for name in known]
    found = ", ".join(map(printable, inputs)) or "nothing"
    raise UsageError(
        f"inputs named {found}, the model takes {expected}",
        "use these names, or none at all (Keras' order)",
    )


def _array(value: Any, name: str) -> Array:
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise UsageError(f"input {printable(name)} holds {array.dtype}, numbers are expected")
    if not np.isfinite(array).all():
        raise UsageError(
            f"input {printable(name)} holds NaN or infinite values, which cannot be compared"
        )
    return array


def _checked(x: Array, name: str, facts: InputFacts, kind: Any) -> Array:
    """Check an array's shape and values, and convert it to the declared dtype."""
    place = f"input {printable(name)}"
    wanted = facts.shape
    if 0 in x.shape:
        raise UsageError(f"{place} has shape {format_shape(x.shape)}, which holds no number")
    if not x.ndim or (wanted is not None and not shape_fits(x.shape, wanted)):
        sizes = "rows first" if wanted is None else format_shape(wanted)
        raise UsageError(f"{place} has shape {format_shape(x.shape)}, {sizes} is expected")
    if facts.is_bool:
        return x.astype(bool)
    if facts.vocabulary is None:
        with np.errstate(over="ignore"):
            single: Array = x.astype(kind)
        if not np.isfinite(single).all():
            raise UsageError(f"{place} holds values beyond {np.dtype(kind)}")
        return single
    if (x != np.floor(x)).any():
        raise UsageError(f"{place} holds fractions, integers are expected")
    if max(abs(float(x.min())), abs(float(x.max()))) >= 2**31:
        raise UsageError(f"{place} holds values beyond int32")
    return x.astype(np.int32)
