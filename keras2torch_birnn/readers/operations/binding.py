"""What every dialect of operations shares: rows of its table, arguments by name, sizes, kinds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keras2torch_birnn.errors import UnsupportedOptionError, printable
from keras2torch_birnn.limits import MAX_RANK
from keras2torch_birnn.schema import OPS

Values = dict[str, Any]
Rework = Callable[[Values], Values]


@dataclass(frozen=True)
class Row:
    """One function of a dialect.

    ``op``: our operation. ``names``: its parameters in order, each as "theirs=ours" or "same";
    "theirs=-" has no effect; "theirs=!" has to be absent, null, false or zero. ``fixed``: options
    that the function's name says. ``rework``: turns its values into ours where names are not all.
    ``saved``: False where Keras never saves all the arguments.
    """

    op: str
    names: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    rework: Rework = lambda values: values
    saved: bool = True

    def parameters(self) -> dict[str, str]:
        """Their names -> ours, in order."""
        pairs = (name.partition("=") for name in self.names.split())
        return {theirs: ours or theirs for theirs, _, ours in pairs}


@dataclass(frozen=True)
class Meaning:
    """A call in the normal form: operation, arguments (JSON, references inside), options."""

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def refused(found: str, advice: str = "") -> UnsupportedOptionError:
    """A problem without its place, which the caller knows."""
    return UnsupportedOptionError(found, advice)


def bind(row: Row, function: str, given: Sequence[Any], named: Mapping[str, Any]) -> Meaning:
    """The meaning of ``function(*given, **named)``.

    Raises:
        UnsupportedOptionError: an argument that is not known, or has to be there and is not.
    """
    parameters = row.parameters()
    if len(given) > len(parameters):
        raise refused(f"{function} with {len(given)} arguments")
    values: Values = dict(row.fixed)
    for theirs, value in [*zip(parameters, given, strict=False), *named.items()]:
        ours = parameters.get(theirs)
        if ours is None and theirs != "name":
            raise refused(
                f"{function} with {printable(theirs)}={printable(repr(value))} is not supported"
            )
        if ours == "!" and value not in (None, False, 0, ""):
            raise refused(
                f"{function} with {printable(theirs)}={printable(repr(value))} is not supported"
            )
        if ours is not None and ours not in "-!":
            values[ours] = value
    return settled(row, function, values)


def settled(row: Row, function: str, values: Values) -> Meaning:
    """The meaning of values that have our names."""
    values = row.rework(values)
    schema = OPS[f"ops.{row.op}"]
    arguments: list[Any] = []
    for name in schema.arguments:
        if name == "sizes":
            arguments += values.pop("sizes", ())
        elif values.get(name) is None:
            raise refused(
                f"{function} without its argument {name}, which Keras did not save",
                "save the model with a layer in its place (Dot, Multiply, Concatenate, ...), or "
                "replace it by a layer of your own, given with --plugin",
            )
        else:
            value = values.pop(name)
            arguments.append(listed(value) if schema.listed else constant(value))
    for name, option in schema.options.items():
        if name in values:
            values[name] = constant_of_option(values[name]) if option else values[name]
    return Meaning(row.op, tuple(arguments), values)


# ---- values ------------------------------------------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether this is a reference to a tensor of the model."""
    return isinstance(value, Mapping) and value.get("class_name") == "__keras_tensor__"


def tensor(layer: str, call: int, output: int) -> dict[str, Any]:
    """A reference in the form of Keras 3."""
    return {
        "class_name": "__keras_tensor__",
        "config": {"keras_history": [layer, call, output]},
    }


def numbers_in(value: Any) -> Any:
    """The list or number inside the forms in which Keras 3 writes arrays, else the value."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        config = value.get("config")
        return config.get("value") if isinstance(config, Mapping) else None
    if isinstance(value, Mapping) and value.get("class_name") == "__tuple__":
        return value.get("items")
    return value


def constant(value: Any) -> Any:
    """An argument: lists of numbers become one constant, tensors and numbers stay."""
    if isinstance(value, str):
        raise refused(f"the text {printable(repr(value))} where numbers are expected")
    if isinstance(value, list | tuple):
        return {"class_name": "__tensor__", "config": {"value": value, "dtype": None}}
    return value


def constant_of_option(value: Any) -> Any:
    """An option: arrays become lists, nested tuples too."""
    plain = numbers_in(value)
    if isinstance(plain, list | tuple):
        return [constant_of_option(part) for part in plain]
    return plain


def listed(value: Any) -> list[Any]:
    """A list of tensors, each of which may be a constant."""
    if not isinstance(value, list | tuple):
        raise refused("one tensor where a list of tensors is expected")
    return [constant(part) for part in value]


def sizes_apart(value: Any) -> tuple[Any, tuple[Any, ...]]:
    """A shape -> its fixed sizes with None for those that are tensors, and these tensors.

    A tensor that is the whole shape gives None and itself.
    """
    value = numbers_in(value)
    if is_tensor(value):
        return None, (value,)
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise refused(f"the shape {printable(repr(value))}")
    if any(part is None for part in value):
        raise refused("a shape with a size that is not there")
    return (
        [None if is_tensor(part) else numbers_in(part) for part in value],
        tuple(part for part in value if is_tensor(part)),
    )


def with_sizes(values: Values) -> Values:
    """Move the tensors out of ``shape``."""
    shape, sizes = sizes_apart(values.pop("shape", None))
    return {**values, "shape": shape, "sizes": sizes}


_KINDS: Mapping[str, str] = {
    **dict.fromkeys("float16 bfloat16 float32 float64".split(), "float"),
    **{name: name for name in ("int32", "int64", "bool")},
}


def kind(value: Any) -> str | None:
    """The kind of a dtype: a name, also "tf.float32" and "DT_FLOAT"; None stays.

    Raises:
        UnsupportedOptionError: text, complex numbers, or whole numbers of other sizes.
    """
    if value is None:
        return None
    name = dtype_name(value)
    if name not in _KINDS:
        raise refused(f"dtype {printable(name)} is not supported")
    return _KINDS[name]


def counted(values: Values) -> Values:
    """Places and numbers of places are int64, unless another kind is asked for."""
    return {**values, "dtype": kind(values.get("dtype")) or "int64"}


def arange(name: str, bounds: Sequence[Any], dtype: str) -> Values:
    """Start, stop and step of ``Arange``, those that are tensors apart.

    Raises:
        UnsupportedOptionError: one of them is no whole number; ``name`` is the operation's.
    """
    if not all(is_tensor(part) or type(part) is int for part in bounds):
        raise refused(f"a {name} of other than whole numbers is not supported")
    shown = ["@" if is_tensor(part) else part for part in bounds]
    return {"bounds": shown, "sizes": [p for p in bounds if is_tensor(p)], "dtype": dtype}


_OTHER_NAMES = {"float": "float32", "double": "float64", "half": "float16"}


def dtype_name(value: Any) -> str:
    """The plain name of a dtype."""
    name = str(value).removeprefix("tf.").removeprefix("DT_").lower()
    return _OTHER_NAMES.get(name, name)


def cast(values: Values) -> Values:
    """``cast``: the kind, and the dtype's name."""
    value = values.get("dtype")
    return {**values, "dtype": kind(value), "named": dtype_name(value)}


def with_kind(default: str | None = None) -> Rework:
    """Turn ``dtype`` into a kind."""
    return lambda values: {**values, "dtype": kind(values.get("dtype")) or default}


def then(*reworks: Rework) -> Rework:
    """One after the other."""

    def rework(values: Values) -> Values:
        for step in reworks:
            values = step(values)
        return values

    return rework


def activation(name: str, *options: str) -> Row:
    """A row of an activation whose options have these names ("theirs=ours")."""

    def rework(values: Values) -> Values:
        x = values.pop("x", None)
        kept = {key: value for key, value in values.items() if value is not None}
        return {"x": x, "function": {"name": name, **kept} if kept else name}

    return Row("Activation", " ".join(("x", *options)), rework=rework)


def total_axes(values: Values) -> Values:
    """``tensordot``: a number n is the last n axes of the one and the first n of the other."""
    given = constant_of_option(values.get("axes"))
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < MAX_RANK:
        given = [list(range(-given, 0)), list(range(given))]
    if isinstance(given, list):
        given = [part if isinstance(part, list) else [part] for part in given]
    return {**values, "axes": given}


def parts(values: Values) -> Values:
    """``tf.split``: a number of equal parts, or their sizes."""
    how = constant_of_option(values.get("sections"))
    return {**values, "sections": how, "by": "sizes" if isinstance(how, list) else "count"}


def at_places(values: Values) -> Values:
    """``keras.ops.split``: a number of equal parts, or the places between them."""
    how = constant_of_option(values.get("sections"))
    return {**values, "sections": how, "by": "places" if isinstance(how, list) else "count"}


def one_shift(values: Values) -> Values:
    """``roll``: one shift for one axis, or a list of each."""
    shift, axis = (constant_of_option(values.get(key)) for key in ("shift", "axis"))
    if axis is None:
        raise refused("roll of all axes as one (axis=None) is not supported")
    shift = shift if isinstance(shift, list) else [shift]
    if len(shift) != (len(axis) if isinstance(axis, list) else 1):
        raise refused("roll with other numbers of shifts and axes")
    return {**values, "shift": shift, "axis": axis}


def begin_and_size(values: Values) -> Values:
    """``slice``: where it begins and how long it is, -1 up to the end -> a key.

    A size that is computed ends what begins at 0, or begins what goes on to the end.
    """
    begin, length = (constant_of_option(values.pop(key, None)) for key in ("begin", "size"))
    if not isinstance(begin, list) or not isinstance(length, list) or len(begin) != len(length):
        raise refused("a slice whose begin or size is not a list of numbers")
    pairs = list(zip(begin, length, strict=True))
    sizes = [b if is_tensor(b) else n for b, n in pairs if is_tensor(b) or is_tensor(n)]
    return {**values, "key": [_from(b, n) for b, n in pairs], "sizes": sizes}


def _from(begin: Any, length: Any) -> list[Any]:
    if is_tensor(begin) and length == -1:
        return ["@", None, 1]
    if begin == 0 and is_tensor(length):
        return [0, "@", 1]
    if type(begin) is not int or type(length) is not int:
        raise refused("a slice from a computed place, or of a computed size from there on")
    return [begin, None if length == -1 else begin + length, 1]


def pool(values: Values) -> Values:
    """Pools: windows as a number, one for each axis, or with 1 for samples and channels around."""
    where = values.pop("data_format", None)
    if where not in (None, "channels_last", "NHWC", "NWC"):
        raise refused(f"a pool with data_format={printable(repr(where))} is not supported")
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
            raise refused(f"a window of {printable(repr(value))}, over samples or channels")
        return value[1:-1]
    return value


def one_diagonal(values: Values) -> Values:
    """``diag``, ``diag_part``: one diagonal, not a band of them."""
    offset = values.get("offset", 0)
    if type(offset) is not int:
        raise refused("diagonals of which there are several are not supported")
    return {**values, "offset": offset}


_MIRRORED = ("reflect", "symmetric")


def padding(values: Values) -> Values:
    """``pad``: constant values, or mirrored ones; a single pair or number is for all axes."""
    mode = str(values.pop("mode", None) or "constant").lower()
    if mode not in ("constant", *_MIRRORED):
        raise refused(f"pad with mode={printable(mode)} is not supported")
    width = constant_of_option(values.get("pad_width"))
    width = [[width, width]] if isinstance(width, int) else width
    if isinstance(width, list) and len(width) == 2 and all(type(w) is int for w in width):
        width = [width]
    value = constant_of_option(values.get("value"))
    value = 0 if value is None or mode in _MIRRORED else value
    return {**values, "pad_width": width, "mode": mode, "value": value}


def computed_k(values: Values) -> Values:
    """``top_k``: a number, or one that is computed of sizes."""
    k = values.pop("k", None)
    return {**values, **({"k": None, "sizes": [k]} if is_tensor(k) else {"k": k})}


def order(values: Values) -> Values:
    """``norm``: which one, of vectors. A list of axes is a matrix, but where squares are summed."""
    said = values.pop("ord", None)
    known = {None: 2, "euclidean": 2, "fro": 2, 1: 1, 2: 2, math.inf: "inf"}
    found = known.get(said) if isinstance(said, int | float | str | None) else None
    of_matrix = isinstance(values.get("axis"), list) and said not in (None, "euclidean")
    if found is None or isinstance(said, bool) or of_matrix:
        raise refused(f"norm with ord={printable(repr(said))} is not supported")
    if said not in (None, "euclidean") and values.get("axis") is None:
        raise refused(f"norm with ord={printable(repr(said))} without an axis is not supported")
    return {**values, "order": found}


def only_pairs(op: str) -> Rework:
    """A value for an option that no other value can have: see the callers."""

    def rework(values: Values) -> Values:
        if values.pop("sorted", True) is not True:
            raise refused(f"{op} with sorted=False is not supported")
        return values

    return rework


MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


def masked_key(values: Values) -> list[Any]:
    """``tf.strided_slice`` -> a key; takes its values out.

    A bit per place: begin or end is not meant, an ellipsis, a new axis, a single index.
    """
    lists = {key: constant_of_option(values.pop(key, None)) for key in ("begin", "end", "strides")}
    begin, end = lists["begin"], lists["end"]
    if not all(isinstance(part, list) for part in (begin, end)) or len(begin) != len(end):
        raise refused("a strided_slice whose bounds are tensors is not supported")
    strides = lists["strides"] or [1] * len(begin)
    if not isinstance(strides, list) or len(strides) != len(begin):
        raise refused("a strided_slice with other numbers of steps than of bounds")
    bits = {name: values.pop(name, 0) or 0 for name in MASKS}
    if not all(isinstance(value, int) for value in bits.values()):
        raise refused("a strided_slice whose masks are no whole numbers")
    key: list[Any] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        said = {name for name in MASKS if bits[name] >> i & 1}
        if "ellipsis_mask" in said:
            key.append("...")
        elif "new_axis_mask" in said:
            key.append(None)
        elif "shrink_axis_mask" in said:
            key.append(first)
        else:
            start = None if "begin_mask" in said else first
            key.append([start, None if "end_mask" in said else last, step])
    return key
