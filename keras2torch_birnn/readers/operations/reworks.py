"""Steps of forms: conversions of a call's values to ours, where renaming is not enough.

See ``schema.operations.forms``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.operations.values import (
    Values,
    constant_of_option,
    dtype_kind,
    dtype_name,
    is_tensor,
    numbers_in,
    split_sizes,
    unsupported,
)

# ---- dtypes and values ---------------------------------------------------------------------------


def read_cast(values: Values) -> Values:
    """Keep the file's name of the dtype of a ``cast`` beside the dtype that is computed."""
    return {**values, "named": dtype_name(values.get("dtype"))}


def decode(values: Values, *keys: str) -> Values:
    """Decode attributes of a node that are text."""
    try:
        texts = {key: base64.b64decode(str(values.get(key)), validate=True) for key in keys}
        return {**values, **{key: text.decode("ascii") for key, text in texts.items()}}
    except (binascii.Error, ValueError):
        raise unsupported("a text that cannot be read") from None


def activate(values: Values, name: str) -> Values:
    """Translate an activation's options; null ones are those of Keras."""
    kept = {key: value for key, value in values.items() if key != "x" and value is not None}
    return {"x": values.get("x"), "function": {"name": name, **kept} if kept else name}


def _refuse_others(what: str, **allowed: tuple[Any, ...]) -> Callable[[Values], Values]:
    """Return a step that drops these arguments, and refuses any that has another value."""

    def refuse(values: Values) -> Values:
        for key, those in allowed.items():
            if key in values and values.pop(key) not in those:
                raise unsupported(f"{what} is not supported")
        return values

    return refuse


refuse_values = _refuse_others(
    "one_hot with values other than 1 and 0", on=(None, 1), off=(None, 0)
)
refuse_decimals = _refuse_others("round to other than whole numbers", decimals=(0,))
refuse_channels_first = _refuse_others(
    "bias_add with channels first", data_format=(None, "NHWC", "NWC", "N..C")
)
refuse_orders = _refuse_others("normalize with an order other than 2", order=(2,))
# ---- along axes ----------------------------------------------------------------------------------


def refuse_unsorted(values: Values, op: str) -> Values:
    """Refuse ``sorted=False``."""
    if values.pop("sorted", True) is not True:
        raise unsupported(f"{op} with sorted=False is not supported")
    return values


def split_k(values: Values) -> Values:
    """Translate ``k`` of ``top_k``: a number, or one that is computed from sizes."""
    k = values.pop("k", None)
    return {**values, **({"k": None, "sizes": [k]} if is_tensor(k) else {"k": k})}


def root_epsilon(values: Values) -> Values:
    """Translate the epsilon of ``l2_normalize``, which bounds the square of a norm."""
    epsilon = values.pop("epsilon", None)
    if not isinstance(epsilon, float | int) or epsilon < 0:
        raise unsupported("l2_normalize with an epsilon that is no number")
    return {**values, "smallest": float(epsilon) ** 0.5}


def read_order(values: Values) -> Values:
    """Translate ``ord`` of ``norm``, of vectors; of a matrix (a list of axes) only the default."""
    given = values.pop("ord", None)
    known = isinstance(given, int | float | str | None) and given in (None, "euclidean", "fro", 2)
    of_matrix = isinstance(values.get("axis"), list) and given not in (None, "euclidean")
    if not known or isinstance(given, bool) or of_matrix:
        raise unsupported(f"norm with ord={printable(repr(given))} is not supported")
    if given not in (None, "euclidean") and values.get("axis") is None:
        raise unsupported(
            f"norm with ord={printable(repr(given))} without an axis is not supported"
        )
    return values


# ---- products and windows ------------------------------------------------------------------------


def read_adjoints(values: Values) -> Values:
    """Translate the adjoint of a matrix to its transpose: the numbers are real."""
    for flag, adjoint in (("transpose_a", "adjoint_a"), ("transpose_b", "adjoint_b")):
        if values.pop(adjoint, None):
            values[flag] = True
    return values


# ---- shapes --------------------------------------------------------------------------------------


def move_sizes(values: Values) -> Values:
    """Move the tensors of ``shape`` to ``sizes``."""
    shape, sizes = split_sizes(values.pop("shape", None))
    return {**values, "shape": shape, "sizes": sizes}


def read_fill(values: Values) -> Values:
    """Translate ``fill``, ``zeros``, ``ones``, whose shape may contain tensors."""
    shape, sizes = split_sizes(values.pop("shape", None))
    value = values.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise unsupported("a fill with something else than a number is not supported")
    dtype = dtype_kind(values.get("dtype")) or ("float" if isinstance(value, float) else "int32")
    return {"shape": shape, "sizes": sizes, "value": value, "dtype": dtype}


def read_range(values: Values) -> Values:
    """Translate start, stop and step of ``range``, each of which may be a tensor."""
    start, stop, step = (values.pop(key, None) for key in ("start", "stop", "step"))
    if stop is None:
        start, stop = 0, start
    bounds = [0 if start is None else start, stop, 1 if step is None else step]
    if not all(is_tensor(part) or type(part) is int for part in bounds):
        raise unsupported("a range of other than whole numbers is not supported")
    shown = ["@" if is_tensor(part) else part for part in bounds]
    return {**values, "bounds": shown, "sizes": [part for part in bounds if is_tensor(part)]}


def split_maxlen(values: Values) -> Values:
    """Translate ``maxlen`` of ``sequence_mask``: a number, or one that is computed from sizes."""
    longest = values.pop("maxlen", None)
    if longest is None:
        raise unsupported("sequence_mask without maxlen is not supported")
    sizes = [longest] if is_tensor(longest) else []
    return {**values, "maxlen": None if sizes else longest, "sizes": sizes}


def drop_empty_axis(values: Values) -> Values:
    """Translate no axes of ``squeeze`` to all."""
    return {**values, "axis": values.get("axis") or None}


def read_padding(values: Values) -> Values:
    """Translate ``pad`` with a constant; a single pair or number is for all axes."""
    mode = str(values.pop("mode", None) or "constant").lower()
    if mode != "constant":
        raise unsupported(f"pad with mode={printable(mode)} is not supported")
    width = constant_of_option(values.get("pad_width"))
    width = [[width, width]] if isinstance(width, int) else width
    if isinstance(width, list) and len(width) == 2 and all(type(w) is int for w in width):
        width = [width]
    value = constant_of_option(values.get("value"))
    return {**values, "pad_width": width, "value": 0 if value is None else value}


def read_sections(values: Values, several: str) -> Values:
    """Translate ``split``: a number of equal parts, or the ``several`` that a list is of."""
    how = constant_of_option(values.get("sections"))
    return {**values, "sections": how, "by": several if isinstance(how, list) else "count"}


def split_axis(values: Values) -> Values:
    """Split the inputs into a list of tensors and, last, the axis."""
    inputs = values.pop("inputs")
    if not inputs:
        raise unsupported("a list of no tensors")
    return {**values, "xs": inputs[:-1], "axis": constant_of_option(inputs[-1])}


# ---- indices -------------------------------------------------------------------------------------


def infer_axis(values: Values) -> Values:
    """Fill in the axis of ``gather``: the first that the samples leave."""
    axis, batch = values.get("axis"), values.get("batch_dims") or 0
    return {**values, "axis": batch if axis is None else axis, "batch_dims": batch}


def read_slice(values: Values) -> Values:
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


_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


def read_masks(values: Values) -> Values:
    """Translate ``tf.strided_slice`` to a key.

    Each mask has one bit per position: ignore begin or end, an ellipsis, a new axis, an index.
    """
    lists = {key: constant_of_option(values.pop(key, None)) for key in ("begin", "end", "strides")}
    begin, end = lists["begin"], lists["end"]
    if not all(isinstance(part, list) for part in (begin, end)) or len(begin) != len(end):
        raise unsupported("a strided_slice whose bounds are tensors is not supported")
    strides = lists["strides"] or [1] * len(begin)
    if not isinstance(strides, list) or len(strides) != len(begin):
        raise unsupported("a strided_slice with other numbers of steps than of bounds")
    bits = {name: values.pop(name, 0) or 0 for name in _MASKS}
    if not all(isinstance(value, int) for value in bits.values()):
        raise unsupported("a strided_slice whose masks are no whole numbers")
    key: list[Any] = []
    for i, (first, last, step) in enumerate(zip(begin, end, strides, strict=True)):
        bits_set = {name for name in _MASKS if bits[name] >> i & 1}
        if "ellipsis_mask" in bits_set:
            key.append("...")
        elif "new_axis_mask" in bits_set:
            key.append(None)
        elif "shrink_axis_mask" in bits_set:
            key.append(first)
        else:
            start = None if "begin_mask" in bits_set else first
            key.append([start, None if "end_mask" in bits_set else last, step])
    return {**values, "key": key}


def read_key(values: Values) -> Values:
    """Translate the key of ``x[key]``: one part or a list of parts."""
    key = values.pop("key", None)
    if isinstance(key, Mapping) and key.get("class_name") == "__tuple__":
        key = key.get("items")
    return {**values, "key": [_part(part) for part in (key if isinstance(key, list) else [key])]}


def _part(part: Any) -> Any:
    if isinstance(part, Mapping) and part.get("class_name") == "__slice__":
        config = part.get("config")
        config = config if isinstance(config, Mapping) else {}
        return [numbers_in(config.get(name)) for name in ("start", "stop", "step")]
    if isinstance(part, Mapping) and part.get("class_name") == "__ellipsis__":
        return "..."
    if part is None or type(part) is int:
        return part
    what = "a tensor" if is_tensor(part) else printable(repr(part))
    raise unsupported(f"an index that is {what} is not supported")
