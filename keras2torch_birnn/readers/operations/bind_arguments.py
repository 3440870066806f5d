"""Binding of arguments to operations, shared by all dialects: rows, names, sizes, dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn.errors import UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_RANK
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.schema import OPS

Values = dict[str, Any]
Rework = Callable[[Values], Values]


@dataclass(frozen=True)
class Row:
    """One function of a dialect.

    ``op``: our operation. ``names``: its parameters in order, each as "theirs=ours" or "same";
    "theirs=-" has no effect; "theirs=!" must be absent, null, false or zero. ``fixed``: options
    implied by the function's name. ``rework``: converts values where renaming is not enough.
    ``saved``: False if Keras never saves all arguments.
    """

    op: str
    names: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rework: Rework = lambda values: values
    saved: bool = True

    def parameters(self) -> dict[str, str]:
        """Return the mapping from their names to ours, in order."""
        pairs = (name.partition("=") for name in self.names.split())
        return {theirs: ours or theirs for theirs, _, ours in pairs}


@dataclass(frozen=True)
class NormalCall:
    """A call in the normal form: operation, arguments (JSON, references inside), options."""

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def unsupported(found: str, advice: str = HOW_TO_REPLACE) -> UnsupportedOptionError:
    """Make an error without its path, which the caller knows."""
    return UnsupportedOptionError(found, advice)


def bind(row: Row, function: str, given: Sequence[Any], named: Mapping[str, Any]) -> NormalCall:
    """Translate the call ``function(*given, **named)``.

    Raises:
        UnsupportedOptionError: an argument that is not known, or has to be there and is not.
    """
    parameters = row.parameters()
    if len(given) > len(parameters):
        raise unsupported(f"{function} with {len(given)} arguments")
    in_order = dict(zip(parameters, given, strict=False))
    if twice := sorted(in_order.keys() & named.keys()):
        raise unsupported(f"{function} with two values of {printable(twice[0])}")
    values: Values = dict(row.fixed)
    for theirs, value in (in_order | dict(named)).items():
        ours = parameters.get(theirs)
        if ours is None and theirs != "name":
            raise unsupported(
                f"{function} with {printable(theirs)}={printable(repr(value))} is not supported"
            )
        if ours == "!" and value not in (None, False, 0, ""):
            raise unsupported(
                f"{function} with {printable(theirs)}={printable(repr(value))} is not supported"
            )
        if ours is not None and ours not in "-!":
            values[ours] = value
    return finish(row, function, values)


def finish(row: Row, function: str, values: Values) -> NormalCall:
    """Translate a call whose values have our names."""
    values = row.rework(values)
    schema = OPS[f"ops.{row.op}"]
    arguments: list[Any] = []
    for name in schema.arguments:
        if name == "sizes":
            arguments += values.pop("sizes", ())
        elif values.get(name) is None:
            raise unsupported(
                f"{function} without its argument {name}, which Keras did not save",
                "save the model with a layer in its place (Dot, Multiply, Concatenate, ...), or "
                "replace it by a layer of your own, given with --plugin",
            )
        else:
            value = values.pop(name)
            arguments.append(convert_list(value) if schema.listed else constant(value))
    for name, option in schema.options.items():
        if name in values:
            values[name] = constant_of_option(values[name]) if option else values[name]
    return NormalCall(row.op, tuple(arguments), values)


# ---- values ------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Tell whether this is a reference to a tensor of the model."""
    return isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__"


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


def move_sizes(values: Values) -> Values:
    """Move the tensors of ``shape`` to ``sizes``."""
    shape, sizes = split_sizes(values.pop("shape", None))
    return {**values, "shape": shape, "sizes": sizes}


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


def default_int64(values: Values) -> Values:
    """Set the dtype of indices and counts to int64, unless another one is given."""
    return {**values, "dtype": dtype_kind(values.get("dtype")) or "int64"}


def arange(name: str, bounds: Sequence[Any], dtype: str) -> Values:
    """Split start, stop and step of ``Arange`` into bounds and tensors.

    Raises:
        UnsupportedOptionError: one of them is no whole number; ``name`` is the operation's.
    """
    if not all(is_tensor(part) or type(part) is int for part in bounds):
        raise unsupported(f"a {name} of other than whole numbers is not supported")
    shown = ["@" if is_tensor(part) else part for part in bounds]
    return {"bounds": shown, "sizes": [p for p in bounds if is_tensor(p)], "dtype": dtype}


_OTHER_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


def dtype_name(value: Any) -> str:
    """Return the plain name of a dtype."""
    name = str(value).removeprefix("tf.").removeprefix("DT_").lower()
    return _OTHER_NAMES.get(name, name)


def cast(values: Values) -> Values:
    """Translate ``cast``: to the dtype that is computed, and the file's name of it."""
    value = values.get("dtype")
    return {**values, "dtype": dtype_kind(value), "named": dtype_name(value)}


def convert_dtype(default: str | None = None) -> Rework:
    """Return a rework that parses ``dtype``."""
    return lambda values: {**values, "dtype": dtype_kind(values.get("dtype")) or default}


def chain(*reworks: Rework) -> Rework:
    """Return a rework that applies several in order."""

    def rework(values: Values) -> Values:
        for step in reworks:
            values = step(values)
        return values

    return rework


def activation(name: str, *options: str) -> Row:
    """Make the row of an activation whose options have these names ("theirs=ours")."""

    def rework(values: Values) -> Values:
        x = values.pop("x", None)
        kept = {key: value for key, value in values.items() if value is not None}
        return {"x": x, "function": {"name": name, **kept} if kept else name}

    return Row("Activation", " ".join(("x", *options)), rework=rework)


def total_axes(values: Values) -> Values:
    """Translate ``axes`` of ``tensordot``: n means the last n of x1 and the first n of x2."""
    given = constant_of_option(values.get("axes"))
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < MAX_RANK:
        given = [list(range(-given, 0)), list(range(given))]
    if isinstance(given, list):
        given = [part if isinstance(part, list) else [part] for part in given]
    return {**values, "axes": given}


def parts(values: Values) -> Values:
    """Translate ``tf.split``: a number of equal parts, or their sizes."""
    how = constant_of_option(values.get("sections"))
    return {**values, "sections": how, "by": "sizes" if isinstance(how, list) else "count"}


def at_places(values: Values) -> Values:
    """Translate ``keras.ops.split``: a number of equal parts, or the indices between them."""
    how = constant_of_option(values.get("sections"))
    return {**values, "sections": how, "by": "places" if isinstance(how, list) else "count"}


def one_shift(values: Values) -> Values:
    """Translate ``roll``: one shift for one axis, or a list of each."""
    shift, axis = (constant_of_option(values.get(key)) for key in ("shift", "axis"))
    if axis is None:
        raise unsupported("roll of all axes as one (axis=None) is not supported")
    shift = shift if isinstance(shift, list) else [shift]
    if len(shift) != (len(axis) if isinstance(axis, list) else 1):
        raise unsupported("roll with other numbers of shifts and axes")
    return {**values, "shift": shift, "axis": axis}


def begin_and_size(values: Values) -> Values:
    """Translate begin and size of ``slice`` (-1: up to the end) to a key.

    A computed size is allowed for slices that begin at 0; a computed begin for slices to the end.
    """
    begin, length = (constant_of_option(values.pop(key, None)) for key in ("begin", "size"))
    if not isinstance(begin, list) or not isinstance(length, list) or len(begin) != len(length):
        raise unsupported("a slice whose begin or size is not a list of numbers")
    pairs = list(zip(begin, length, strict=True))
    sizes = [b if is_tensor(b) else n for b, n in pairs if is_tensor(b) or is_tensor(n)]
    return {**values, "key": [_from(b, n) for b, n in pairs], "sizes": sizes}


def _from(begin: Any, length: Any) -> list[Any]:
    if is_tensor(begin) and length == -1:
        return ["@", None, 1]
    if begin == 0 and is_tensor(length):
        return [0, "@", 1]
    if type(begin) is not int or type(length) is not int:
        raise unsupported("a slice from a computed place, or of a computed size from there on")
    return [begin, None if length == -1 else begin + length, 1]


def pool(values: Values) -> Values:
    """Translate a pool: windows as one number, one per axis, or also for batch and channels (1)."""
    where = values.pop("data_format", None)
    if where not in (None, "channels_last", "NHWC", "NWC"):
        raise unsupported(f"a pool with data_format={printable(repr(where))} is not supported")
    return {
        **values,
        "pool_size": _window(values.get("pool_size")),
        "strides": _window(values.get("strides")),
        "padding": str(values.get("padding")).lower(),
    }


def _window(value: Any) -> Any:
    value = constant_of_option(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return [value]
    if isinstance(value, list) and len(value) > 2:
        if (value[0], value[-1]) != (1, 1):
            raise unsupported(f"a window of {printable(repr(value))}, over samples or channels")
        return value[1:-1]
    return value


def one_diagonal(values: Values) -> Values:
    """Translate ``diag`` and ``diag_part`` of one diagonal, not of a band."""
    offset = values.get("offset", 0)
    if type(offset) is not int:
        raise unsupported("diagonals of which there are several are not supported")
    return {**values, "offset": offset}


_MIRRORED = ("reflect", "symmetric")


def padding(values: Values) -> Values:
    """Translate ``pad``, constant or mirrored; a single pair or number is for all axes."""
    mode = str(values.pop("mode", None) or "constant").lower()
    if mode not in ("constant", *_MIRRORED):
        raise unsupported(f"pad with mode={printable(mode)} is not supported")
    width = constant_of_option(values.get("pad_width"))
    width = [[width, width]] if isinstance(width, int) else width
    if isinstance(width, list) and len(width) == 2 and all(type(w) is int for w in width):
        width = [width]
    value = constant_of_option(values.get("value"))
    value = 0 if value is None or mode in _MIRRORED else value
    return {**values, "pad_width": width, "mode": mode, "value": value}


def translate_k(values: Values) -> Values:
    """Translate ``k`` of ``top_k``: a number, or one that is computed from sizes."""
    k = values.pop("k", None)
    return {**values, **({"k": None, "sizes": [k]} if is_tensor(k) else {"k": k})}


def order(values: Values) -> Values:
    """Translate ``ord`` of ``norm``, of vectors; of a matrix (a list of axes) only the default."""
    given = values.pop("ord", None)
    known = {None: 2, "euclidean": 2, "fro": 2, 1: 1, 2: 2, math.inf: "inf"}
    found = known.get(given) if isinstance(given, int | float | str | None) else None
    of_matrix = isinstance(values.get("axis"), list) and given not in (None, "euclidean")
    if found is None or isinstance(given, bool) or of_matrix:
        raise unsupported(f"norm with ord={printable(repr(given))} is not supported")
    if given not in (None, "euclidean") and values.get("axis") is None:
        raise unsupported(
            f"norm with ord={printable(repr(given))} without an axis is not supported"
        )
    return {**values, "order": found}


def only_pairs(op: str) -> Rework:
    """Return a rework that refuses ``sorted=False``."""

    def rework(values: Values) -> Values:
        if values.pop("sorted", True) is not True:
            raise unsupported(f"{op} with sorted=False is not supported")
        return values

    return rework


MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


def masked_key(values: Values) -> list[Any]:
    """Translate ``tf.strided_slice`` to a key; remove its values.

    Each mask has one bit per position: ignore begin or end, an ellipsis, a new axis, an index.
    """
    lists = {key: constant_of_option(values.pop(key, None)) for key in ("begin", "end", "strides")}
    begin, end = lists["begin"], lists["end"]
    if not all(isinstance(part, list) for part in (begin, end)) or len(begin) != len(end):
        raise unsupported("a strided_slice whose bounds are tensors is not supported")
    strides = lists["strides"] or [1] * len(begin)
    if not isinstance(strides, list) or len(strides) != len(begin):
        raise unsupported("a strided_slice with other numbers of steps than of bounds")
    bits = {name: values.pop(name, 0) or 0 for name in MASKS}
    if not all(isinstance(value, int) for value in bits.values()):
        raise unsupported("a strided_slice whose masks are no whole numbers")
    key: list[Any] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        bits_set = {name for name in MASKS if bits[name] >> i & 1}
        if "ellipsis_mask" in bits_set:
            key.append("...")
        elif "new_axis_mask" in bits_set:
            key.append(None)
        elif "shrink_axis_mask" in bits_set:
            key.append(first)
        else:
            start = None if "begin_mask" in bits_set else first
            key.append([start, None if "end_mask" in bits_set else last, step])
    return key
