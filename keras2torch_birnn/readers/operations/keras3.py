"""``keras.ops`` in files of Keras 3.0 to 3.15: a class, its options, a call's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras2torch_birnn.readers.operations.bind_arguments import NormalCall, bind
from keras2torch_birnn.readers.operations.values import numbers_in
from keras2torch_birnn.schema.operations import forms_in

FORMS = forms_in("keras")


def translate(
    class_name: str, config: Mapping[str, Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> NormalCall:
    """Translate one call of an operation.

    Raises:
        UnsupportedOptionError: something about it is not supported.
    """
    form, function = FORMS[class_name], f"operation {class_name}"
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
