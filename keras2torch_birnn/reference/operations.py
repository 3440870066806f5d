"""Operations in NumPy, each from its documentation in TensorFlow 2.15 or Keras 3.15.

Arguments come in the kinds that ``semantics["kinds"]`` names and results leave so: a tensor of
int32 is one here, too. Sizes are arrays of int64. Operations take and give no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from keras2torch_birnn.reference import movement, reductions
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.activations import erf as erf_of
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.operations import Operation
from keras2torch_birnn.spec import Array, Constant, LayerSpec, Structure, map_structure

Function = Callable[..., Any]
_DTYPES: Mapping[str, Any] = {
    "int32": np.int32,
    "int64": np.int64,
    "bool": np.bool_,
    "size": np.int64,
}


def _as(value: Any, kind: str, context: Context) -> Array:
    """Cast a value to a dtype; floats lose their fraction as integers."""
    array = value.array() if isinstance(value, Constant) else np.asarray(value)
    if kind == "float":
        return context.number(array)
    return array.astype(_DTYPES[kind]) if kind in _DTYPES else array


def find_function(row: Operation) -> Function | None:
    """Return the function that a row names; or that has its name: ours, or else NumPy's."""
    form, own = row.form_of("reference", "np"), (globals(), vars(reductions), vars(movement))
    for page in {"reference": own, "np": (vars(np),), "": (*own, vars(np))}[form.dialect]:
        if function := page.get(form.name):
            return partial(function, **form.fixed)
    return None


def operation(row: Operation) -> Equation:
    """Make the equation of an operation: its function of arguments and options between casts."""
    function = find_function(row)
    names = {ours: theirs for theirs, ours in row.form_of("reference", "np").parameters.items()}
    if function is None:
        raise KeyError(row.op)

    def equation(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
        kinds = layer.semantics["kinds"]
        wants = iter(kinds["wants"])
        arguments = map_structure(lambda leaf: _as(leaf, next(wants), context), inputs)
        if row.listed or (len(kinds["wants"]) == 1 and not isinstance(inputs, tuple)):
            arguments = (arguments,)
        options = {names.get(key, key): layer.config[key] for key in row.options_of_function}
        out = function(*arguments, **options)
        if isinstance(out, tuple):
            gives = kinds["gives"]
            several = tuple(
                _as(part, gives[min(i, len(gives) - 1)], context) for i, part in enumerate(out)
            )
            return several, None
        return _as(out, kinds["gives"][0], context), mask if kinds["passes_mask"] else None

    return equation


# ---- value by value ------------------------------------------------------------------------------


def identity(x: Array) -> Array:
    """Return x; a cast is done before."""
    return x


def activation(x: Array, function: Any) -> Array:
    """Compute an activation of Keras."""
    return activate(function, x)


def rsqrt(x: Array) -> Array:
    """Compute ``tf.math.rsqrt``."""
    return np.asarray(1 / np.sqrt(x))


def floor_divide(a: Array, b: Array) -> Array:
    """Compute ``tf.math.floordiv``: the quotient rounded down. NumPy's own counts whole b in a."""
    return np.floor(a / b) if a.dtype.kind == "f" else np.floor_divide(a, b)


def squared_difference(a: Array, b: Array) -> Array:
    """Compute ``tf.math.squared_difference``."""
    return np.asarray(np.square(a - b))


def divide_no_nan(a: Array, b: Array) -> Array:
    """Compute ``tf.math.divide_no_nan``."""
    return np.where(b == 0, 0, a / np.where(b == 0, 1, b))


erf = erf_of


def clip(x: Array, low: Array, high: Array) -> Array:
    """Compute ``tf.clip_by_value``: the lower bound wins."""
    y: Array = np.maximum(low, np.minimum(high, x))
    return y


# ---- products ------------------------------------------------------------------------------------


def matmul(a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> Array:
    """Compute ``tf.linalg.matmul``."""
    left = np.swapaxes(a, -1, -2) if transpose_a else a
    right = np.swapaxes(b, -1, -2) if transpose_b else b
    y: Array = left @ right
    return y


def einsum(xs: Sequence[Array], subscripts: str) -> Array:
    """Compute ``numpy.einsum``."""
    return np.asarray(np.einsum(subscripts, *xs))


def add_n(xs: Sequence[Array]) -> Array:
    """Compute ``tf.math.add_n``."""
    return np.asarray(sum(xs))


EQUATIONS: Mapping[str, Equation] = {name: operation(row) for name, row in OPS.items()}
