"""Operations: the calls of a graph that are not layers, under one name for all dialects.

``tf.*`` and ``keras.backend.*`` of tf.keras (TFOpLambda, SlicingOpLambda, TensorFlowOpLayer) and
``keras.ops`` of Keras 3 are all read into the rows of ``table``. The names are those of Keras 3. An
argument is a tensor, a number or a ``Constant``; everything else is an option. "shape", "key" and
"bounds" hold None or "@" for a size that is one more argument. Operations take and return no masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.schema.operations.forms import Form
from keras2torch_birnn.schema.operations.table import OPS, Operation
from keras2torch_birnn.schema.row import ShapeError

__all__ = ["OPS", "Operation", "check_sizes", "forms_in"]


def forms_in(dialect: str) -> dict[str, Form]:
    """Return the forms of all operations in a dialect, by their names there."""
    forms = (form for row in OPS.values() for form in row.forms)
    return {form.name: form for form in forms if form.dialect == dialect}


def check_sizes(class_name: str, config: Mapping[str, Any], count: int) -> None:
    """Refuse an operation that is called with another number of sizes than its options leave open.

    count: of all arguments.

    Raises:
        ShapeError: it is.
    """
    row = OPS.get(class_name)
    if row is None or "sizes" not in row.arguments:
        return
    wanted = len(row.arguments) - 1 + _count_open(config)
    if count != wanted:
        raise ShapeError(f"{wanted} arguments are expected, found {count}")


def _count_open(config: Mapping[str, Any]) -> int:
    """Count the sizes that an operation's options leave to its arguments."""
    shape = config.get("shape", ())
    whole = sum(config.get(key, 0) is None for key in ("shape", "k", "maxlen"))
    bounds = (*config.get("key", ()), config.get("bounds", ()))
    parts = [p for part in bounds for p in (part if isinstance(part, tuple) else (part,))]
    return whole + sum(size is None for size in shape or ()) + parts.count("@")
