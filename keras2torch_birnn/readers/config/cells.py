"""The cell of an RNN: one of Keras' own, or a stack of them. Custom cells are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    UnsupportedLayerError,
    printable,
)
from keras2torch_birnn.schema import CELLS, SCHEMA, cells_in_order
from keras2torch_birnn.schema.cells import CELL_LAYERS, STACK
from keras2torch_birnn.spec import Generation, LayerSpec

Parse = Callable[[Any], LayerSpec]

# Keys that both a cell and its RNN have.
_EVERY_LAYER = frozenset(("name", "trainable", "dtype"))


def drop_repeated_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from an RNN's config what only repeats its cell's.

    TensorFlow.js writes every option of the cell (of a stack: ``cells``) a second time into the
    config of the RNN, and reads ``cell`` alone. Keys that differ stay, to be refused by name.
    """
    cell = config.get("cell")
    repeated = cell.get("config") if isinstance(cell, Mapping) else None
    if not isinstance(repeated, Mapping):
        return dict(config)
    own = SCHEMA["RNN"].options
    return {
        key: value
        for key, value in config.items()
        if key in own or key in _EVERY_LAYER or key not in repeated or value != repeated[key]
    }


def read_cells(
    class_name: str, config: Mapping[str, Any], place: str, problems: list[K2TError], parse: Parse
) -> dict[str, LayerSpec]:
    """Parse the cell of an RNN ("cell") or of a stack ("0", "1", ...); ``parse`` parses one entry.

    Raises:
        InvalidModelFileError: there is none.
    """
    if class_name != STACK:
        if "cell" not in config:
            raise InvalidModelFileError("an RNN without a cell", "refused", place=place)
        allowed = CELLS.keys()
        return {"cell": _cell(config["cell"], place, problems, parse, allowed)}
    entries = config.get("cells")
    if not isinstance(entries, list) or not entries:
        raise InvalidModelFileError("a stack without cells", "refused", place=place)
    return {
        str(number): _cell(entry, place, problems, parse, CELL_LAYERS.keys())
        for number, entry in enumerate(entries)
    }


def _cell(
    entry: Any, place: str, problems: list[K2TError], parse: Parse, allowed: Any
) -> LayerSpec:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise InvalidModelFileError("no cell's configuration", "refused", place=place)
    class_name, config = str(entry["class_name"]), entry.get("config")
    found = LayerSpec(class_name, class_name, {}, place=f"{place}/{class_name}")
    if class_name in allowed:
        before = len(problems)
        found = parse(entry)
        if len(problems) > before:
            return found
    elif isinstance(config, Mapping) and isinstance(config.get("name"), str):
        found = replace(found, name=config["name"], place=f"{place}/{config['name']}")
    if found.class_name not in allowed:
        problems.append(
            UnsupportedLayerError(
                f"cell class {printable(class_name)} is not supported",
                f"cells are {', '.join(allowed)}; a class of your own that holds its cell, instead "
                "of RNN, can be supplied with --plugin",
                place=found.place,
            )
        )
    return found


def check_alone(layer: LayerSpec, problems: list[K2TError]) -> None:
    """Refuse a cell in the place of a layer."""
    if layer.class_name in CELLS:
        problems.append(
            UnsupportedLayerError(
                f"{layer.class_name} outside an RNN: a cell sees one step", place=layer.place
            )
        )


def check_stack(layer: LayerSpec, generation: Generation, problems: list[K2TError]) -> None:
    """Refuse a stack whose order of states was never compared."""
    old = generation.name == "tf.keras" and generation.version.startswith(("2.0.", "2.1."))
    if layer.class_name == STACK and old:
        problems.append(
            UnsupportedLayerError(
                f"{STACK} of TensorFlow before 1.13 was never compared with Keras",
                "save the model with a newer TensorFlow",
                place=layer.place,
            )
        )


def infer_stack_mask_rule(layer: LayerSpec, generation: Generation) -> LayerSpec:
    """Set the output at masked steps (``masked_output``) of an RNN whose cell is a stack.

    Keras 2.2.3 and 2.2.4 output the first state there (``keras.backend.rnn``), which is the first
    cell's, and raise if its width differs from the output's. Keras before 2.2 raises if any cell
    has another width.
    """
    cell = layer.parts["cell"]
    if cell.class_name != STACK or layer.semantics["masked_output"] != "previous_state":
        return layer
    widths = [one.config.get("units") for one in cells_in_order(cell)]
    if cell.semantics["states"] == "last cell first":
        old = generation.version.startswith(("2.0.", "2.1."))
        rule = "fails" if old and len(set(widths)) > 1 else "previous_state"
    elif len(widths) == 1:
        rule = "previous_state"
    else:
        rule = "previous_first_state" if widths[0] == widths[-1] else "fails"
    return replace(layer, semantics={**layer.semantics, "masked_output": rule})
