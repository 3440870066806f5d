"""Binding of a call's arguments to an operation, by the form of the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import printable
from keras2torch_birnn.readers.operations import reworks
from keras2torch_birnn.readers.operations.values import (
    Values,
    constant,
    constant_of_option,
    convert_list,
    dtype_kind,
    unsupported,
)
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.operations.forms import Form


@dataclass(frozen=True)
class NormalCall:
    """A call in the normal form: operation, arguments (JSON, references inside), options."""

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def bind(form: Form, function: str, args: Sequence[Any], named: Mapping[str, Any]) -> NormalCall:
    """Translate the call ``function(*given, **named)``.

    Raises:
        UnsupportedOptionError: an argument that is not known, or has to be there and is not.
    """
    if len(args) > len(form.parameters):
        raise unsupported(f"{function} with {len(args)} arguments")
    in_order = dict(zip(form.parameters, args, strict=False))
    if twice := sorted(in_order.keys() & named.keys()):
        raise unsupported(f"{function} with two values of {printable(twice[0])}")
    values: Values = dict(form.fixed)
    for theirs, value in (in_order | dict(named)).items():
        ours = form.parameters.get(theirs)
        if (ours is None and theirs != "name") or (
            ours == "!" and value not in (None, False, 0, "")
        ):
            raise unsupported(
                f"{function} with {printable(theirs)}={printable(repr(value))} is not supported"
            )
        if ours is not None and ours not in "-!" and (value is not None or ours not in form.fixed):
            values[ours] = value
    return _finish(form, function, values)


def _finish(form: Form, function: str, values: Values) -> NormalCall:
    """Translate a call whose values have our names."""
    for step, *more in form.steps:
        values = getattr(reworks, step)(values, *more)
    if "dtype" in values:
        values["dtype"] = dtype_kind(values["dtype"])
    op = values.pop("op", form.op)
    schema = OPS[f"ops.{op}"]
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
    return NormalCall(op, tuple(arguments), values)
