"""TensorFlow functions in files of tf.keras 2.4 to 2.15 and tf_keras: TFOpLambda, SlicingOpLambda.

``config.function`` is the function's public name. The first argument is in ``inbound_nodes``,
the others beside it as keywords; what Keras could not name there is lost (``==`` loses its second
side, ``tf.einsum`` its tensors), and those are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from keras2torch_birnn.errors import UnsupportedLayerError, printable
from keras2torch_birnn.readers.advice import HOW_TO_REPLACE
from keras2torch_birnn.readers.operations.bind_arguments import NormalCall, bind
from keras2torch_birnn.readers.operations.values import (
    constant_of_option,
    is_reference,
    is_tensor,
    tensor,
    unsupported,
)
from keras2torch_birnn.schema.operations import forms_in

FORMS = forms_in("tf")
_REASONS: Mapping[str, str] = {
    "nn.dropout": "draws random numbers, at inference too",
    "compat.v1.boolean_mask": "gives a tensor whose shape depends on its values",
    "boolean_mask": "gives a tensor whose shape depends on its values",
}


def translate(
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
    if not isinstance(function, str) or function not in FORMS:
        reason = _REASONS.get(str(function), "is not supported")
        raise UnsupportedLayerError(
            f"operation tf.{printable(function)} {reason}",
            HOW_TO_REPLACE,
        )
    return bind(FORMS[function], f"tf.{function}", (first,), kwargs)


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
