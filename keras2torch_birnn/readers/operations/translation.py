"""Translation of an entry that is an operation, of any dialect, to the normal form."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import (
    UnsupportedLayerError,
    UnsupportedOptionError,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.classes import HOW_TO_REPLACE, TRANSLATED
from keras2torch_birnn.readers.input_files import parse_object
from keras2torch_birnn.readers.operations import reworks
from keras2torch_birnn.readers.operations.values import (
    GRAPH_NODE,
    TF_FUNCTIONS,
    Values,
    constant,
    constant_of_option,
    convert_list,
    dtype_kind,
    is_reference,
    is_tensor,
    numbers_in,
    tensor,
    unsupported,
)
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.operations import forms_in
from keras2torch_birnn.schema.operations.forms import Form


@dataclass(frozen=True)
class NormalCall:
    """A call in the normal form: operation, arguments (JSON, references inside), options."""

    op: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def bind(form: Form, function: str, args: Sequence[Any], named: Mapping[str, Any]) -> NormalCall:
    """Translate the call ``function(*given, **named)``."""
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
    schema = OPS[f"ops.{form.op}"]
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
    return NormalCall(form.op, tuple(arguments), values)


# ---- keras.ops -----------------------------------------------------------------------------------


# ``keras.ops`` in files of Keras 3.0 to 3.15: a class, its options, a call's arguments.


KERAS3_FORMS = forms_in("keras")


def translate_keras3(
    class_name: str, config: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> NormalCall:
    """Translate one call of an operation."""
    form, function = KERAS3_FORMS[class_name], f"operation {class_name}"
    named = {
        key: value
        for key, value in {**config, **kwargs}.items()
        if key not in ("name", "trainable")
        and not (key == "dtype" and "dtype" not in form.parameters)
    }
    if class_name == "Einsum":
        operands, args = list(args), []
        named["subscripts"] = numbers_in(named.get("subscripts"))
        return NormalCall("Einsum", (operands,), named)
    # Options of the config come between the arguments of a call.
    free = [name for name in form.parameters if name not in named]
    named.update(zip(free, args, strict=False))
    return bind(form, function, (), named)


# ---- functions of TensorFlow ---------------------------------------------------------------------


# TensorFlow functions in files of tf.keras 2.4 to 2.15 and tf_keras: TFOpLambda, SlicingOpLambda.
#
# ``config.function`` is the function's public name. The first argument is in ``inbound_nodes``,
# the others beside it as keywords; what Keras could not name there is lost (``==`` loses its second
# side, ``tf.einsum`` its tensors), and those are refused.


FUNCTION_FORMS = forms_in("tf")
_REASONS: Mapping[str, str] = {
    "nn.dropout": "draws random numbers, at inference too",
    "compat.v1.boolean_mask": "gives a tensor whose shape depends on its values",
    "boolean_mask": "gives a tensor whose shape depends on its values",
}


def translate_function(
    class_name: str, config: Mapping[str, Any], node: Any, names: Collection[str]
) -> NormalCall:
    """Translate one call; ``names``: of all layers of the model.

    Raises:
        UnsupportedLayerError: not a function that is supported; UnsupportedOptionError: not with
            these arguments.
    """
    function = config.get("function")
    first, kwargs = _unfold(node, names)
    if class_name == "SlicingOpLambda" and function == "__operators__.getitem":
        return _translate_slice(first, kwargs)
    if not isinstance(function, str) or function not in FUNCTION_FORMS:
        reason = _REASONS.get(str(function), "is not supported")
        raise UnsupportedLayerError(
            f"operation tf.{printable(function)} {reason}",
            HOW_TO_REPLACE,
        )
    return bind(FUNCTION_FORMS[function], f"tf.{function}", (first,), kwargs)


def _unfold(node: Any, names: Collection[str]) -> tuple[Any, dict[str, Any]]:
    """Return the first argument, and the keywords that are repeated beside its tensors."""
    found: list[Mapping[str, Any]] = []

    def value(part: Any) -> Any:
        if isinstance(part, list) and len(part) == 4 and isinstance(part[3], Mapping):
            found.append(part[3])
            if part[0] == "_CONSTANT_VALUE":
                return part[2]
            if isinstance(part[0], str) and part[0] in names:
                return tensor(*part[:3])
            raise unsupported(f"an input from {printable(repr(part[0]))}, no layer of the model")
        return [value(inner) for inner in part] if isinstance(part, list) else part

    first = value(node)
    return first, {key: _value(v, names) for key, v in (found[0] if found else {}).items()}


def _value(value: Any, names: Collection[str]) -> Any:
    """Convert a keyword's value; a list [name, int, int] is a reference."""
    if isinstance(value, list):
        if is_reference(value, names) and len(value) == 3:
            return tensor(*value)
        return [_value(part, names) for part in value]
    if isinstance(value, Mapping) and set(value) == {"start", "stop", "step"}:
        return {key: _value(part, names) for key, part in value.items()}
    return value


def _translate_slice(x: Any, kwargs: Mapping[str, Any]) -> NormalCall:
    spec = kwargs.get("slice_spec")
    key: list[Any] = []
    sizes: list[Any] = []

    def bound(part: Any) -> Any:
        if is_tensor(part):
            sizes.append(part)
            return "@"
        return constant_of_option(part)

    for part in spec if isinstance(spec, list) else [spec]:
        if isinstance(part, Mapping) and set(part) == {"start", "stop", "step"}:
            key.append([bound(part[name]) for name in ("start", "stop", "step")])
        elif part == "Ellipsis" or (
            isinstance(part, Mapping) and part.get("class_name") == "__ellipsis__"
        ):
            key.append("...")
        else:
            key.append(bound(part))
    return NormalCall("GetItem", (x, *sizes), {"key": key})


# ---- nodes of a graph ----------------------------------------------------------------------------


# Nodes of a TensorFlow graph in files of TF 1.13 to 2.3: ``TensorFlowOpLayer``.
#
# ``node_def`` is a protocol buffer written as JSON: ``op``, ``input`` (names), ``attr``. Inputs
# that are constants are in ``constants`` by their number; the tensors fill the other places.


NODE_FORMS = forms_in("node")
# Attributes without information: dtypes, numbers of inputs.
_NOTHING_NEW = ("T", "N", "Tidx", "TI", "SrcT", "Index", "num", "index_type")


def translate_node(config: Mapping[str, Any], tensors: Sequence[Any]) -> NormalCall:
    """Translate one node.

    Raises:
        UnsupportedLayerError: not an operation that is supported; UnsupportedOptionError: not with
            these inputs.
    """
    node = config.get("node_def")
    if isinstance(node, str):
        node = parse_object(node, place="node_def")
    node = node if isinstance(node, Mapping) else {}
    op = node.get("op")
    if not isinstance(op, str) or op not in NODE_FORMS:
        raise UnsupportedLayerError(
            f"operation {printable(op)} of TensorFlow is not supported",
            HOW_TO_REPLACE,
        )
    form = NODE_FORMS[op]
    inputs = _inputs_of_node(node, config.get("constants"), tensors)
    wanted = form.parameters
    attributes = node.get("attr")
    named = {
        key: _attribute_of_node(value)
        for key, value in (attributes if isinstance(attributes, Mapping) else {}).items()
        if key in wanted or not (key in _NOTHING_NEW or key.startswith("T"))
    }
    if next(iter(wanted)) == "inputs":
        return bind(form, f"operation {op}", (inputs,), named)
    return bind(form, f"operation {op}", inputs, named)


def _inputs_of_node(node: Mapping[str, Any], constants: Any, tensors: Sequence[Any]) -> list[Any]:
    names = node.get("input")
    names = [n for n in names if not str(n).startswith("^")] if isinstance(names, list) else []
    constants = constants if isinstance(constants, Mapping) else {}
    held = {str(key): value for key, value in constants.items()}
    free = iter(tensors)
    found = [held[str(i)] if str(i) in held else next(free, None) for i in range(len(names))]
    if any(value is None for value in found) or next(free, None) is not None:
        raise unsupported(
            f"{len(tensors)} tensors and {len(held)} constants for {len(names)} inputs"
        )
    return found


def _attribute_of_node(value: Any) -> Any:
    """Parse an attribute: {"b": true}, {"i": "2"}, {"f": 0.1}, {"type": ...}, lists."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((form, held),) = value.items()
    if form == "list":
        held = held if isinstance(held, Mapping) else {}
        several = [(key, some) for key, some in held.items() if isinstance(some, list)]
        return [_attribute_of_node({key: one}) for key, some in several for one in some]
    try:
        return int(held) if form == "i" else held
    except (TypeError, ValueError, OverflowError):
        raise unsupported(f"an attribute that is no number: {printable(repr(held))}") from None


# ---- any dialect ---------------------------------------------------------------------------------


# Translation of one entry that is an operation, of any dialect, to the normal form.


def translate(entry: Mapping[str, Any], names: Collection[str]) -> Mapping[str, Any]:
    """Translate one entry to the normal form; ``names``: of all layers of its model.

    Raises:
        UnsupportedLayerError, UnsupportedOptionError: it cannot be converted; no place is named.
        InvalidModelFileError: it has not the form of an operation.
    """
    class_name, config, calls = (entry.get(k) for k in ("class_name", "config", "inbound_nodes"))
    if not isinstance(config, Mapping) or not isinstance(calls, list):
        raise invalid("an operation without config or inbound_nodes")
    if len(calls) != 1:
        raise unsupported(f"an operation that is called {len(calls)} times is not supported")
    found = _meaning(str(class_name), config, calls[0], names)
    return {
        "class_name": found.op,
        "module": TRANSLATED,
        "name": entry.get("name", config.get("name")),
        "config": {"name": config.get("name"), **found.options},
        "inbound_nodes": [{"args": list(found.arguments), "kwargs": {}}],
    }


def _meaning(
    class_name: str, config: Mapping[str, Any], call: Any, names: Collection[str]
) -> NormalCall:
    if class_name in TF_FUNCTIONS:
        return translate_function(class_name, config, call, names)
    if class_name == GRAPH_NODE:
        return translate_node(config, _tensors(call, names))
    if class_name not in KERAS3_FORMS:
        raise UnsupportedLayerError(
            f"operation {printable(class_name)} is not supported",
            HOW_TO_REPLACE,
        )
    args, kwargs = (call.get(k) if isinstance(call, Mapping) else None for k in ("args", "kwargs"))
    if not isinstance(args, list) or not isinstance(kwargs, Mapping):
        raise invalid("an operation called in an unknown form")
    return translate_keras3(class_name, config, args, kwargs)


def _tensors(call: Any, names: Collection[str]) -> list[Any]:
    if not isinstance(call, list):
        raise invalid("an operation called in an unknown form")
    found = []
    for part in [call] if call and isinstance(call[0], str) else call:
        if not is_reference(part, names):
            raise UnsupportedOptionError(f"an input from {printable(repr(part))}", HOW_TO_REPLACE)
        found.append(tensor(*part[:3]))
    return found
