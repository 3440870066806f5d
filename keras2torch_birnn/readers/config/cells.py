"""The cell of an RNN: one of Keras' own, a plugin's, or a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    invalid,
    printable,
)
from keras2torch_birnn.readers.config.custom_layers import find_custom_class
from keras2torch_birnn.readers.config.generations import rule_of
from keras2torch_birnn.readers.config.parsing import Parsing, UnknownClass
from keras2torch_birnn.schema import CELLS, CLASS_NAMES, SCHEMA, cells_in_order
from keras2torch_birnn.schema.custom_cells import (
    has_custom_cell,
    is_custom_cell,
    sizes_of,
    state_sizes,
    states_of,
)
from keras2torch_birnn.schema.custom_layers import custom_layer_of, python_name, shown
from keras2torch_birnn.schema.recurrent import CELL_LAYERS, STACK
from keras2torch_birnn.spec import Generation, LayerPath, LayerSpec, MaskedOutput

# Parses an entry, as a part of this key.
Parse = Callable[[Any, str], LayerSpec]

# Keys that both a cell and its RNN have.
_EVERY_LAYER = frozenset(("name", "trainable", "dtype"))


def drop_repeated_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop from an RNN's config what only repeats its cell's.

    TensorFlow.js writes every option of the cell (of a stack: ``cells``) a second time into the
    config of the RNN, and reads ``cell`` alone. Keys that differ stay, to be refused by name.
    """
    cell = config.get("cell")
    repeated = cell.get("config") if isinstance(cell, Mapping) else None
    repeated = repeated if isinstance(repeated, Mapping) else {}
    own = SCHEMA["RNN"].options
    return {
        key: value
        for key, value in config.items()
        if key in own or key in _EVERY_LAYER or key not in repeated or value != repeated[key]
    }


def read_cells(
    class_name: str, config: Mapping[str, Any], path: LayerPath, parsing: Parsing, parse: Parse
) -> dict[str, LayerSpec]:
    """Parse the cell of an RNN ("cell") or of a stack ("0", "1", ...); ``parse`` parses one entry.

    ``path``: of the RNN, or of the stack.
    """
    if class_name != STACK:
        return {"cell": _cell(config["cell"], (*path, "cell"), parsing, parse, CELLS)}
    entries = config.get("cells")
    if not isinstance(entries, list) or not entries:
        raise invalid("a stack without cells", "/".join(path))
    return {
        str(number): _cell(entry, (*path, str(number)), parsing, parse, CELL_LAYERS)
        for number, entry in enumerate(entries)
    }


def _cell(
    entry: Any, path: LayerPath, parsing: Parsing, parse: Parse, allowed: Collection[str]
) -> LayerSpec:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("class_name"), str):
        raise invalid("no cell's configuration", "/".join(path))
    class_name, config = str(entry["class_name"]), entry.get("config")
    named = config if isinstance(config, Mapping) else {}
    name = named.get("name") if isinstance(named.get("name"), str) else class_name
    found = LayerSpec(class_name, str(name), {}, path=path)
    if class_name in allowed or find_custom_class(entry, found.name, found.place) is not None:
        before = len(parsing.problems)
        found = parse(entry, path[-1])
        if len(parsing.problems) > before or found.class_name in allowed or is_custom_cell(found):
            return found
    if class_name not in CLASS_NAMES and custom_layer_of(found) is None:
        parsing.unknown.append(UnknownClass(class_name, "cell", found.place, named))
    parsing.problems.append(_refusal(found, allowed))
    return found


def _refusal(cell: LayerSpec, allowed: Collection[str]) -> K2TError:
    """Return why this is no cell that can be converted."""
    if custom_layer_of(cell) is not None:
        return UnsupportedLayerError(
            f"{shown(cell)} converts a layer, and this is a cell of an RNN",
            "declare the sizes of the cell's states there, with state_size=",
            place=cell.place,
        )
    own = printable(python_name(cell.class_name))
    return UnsupportedLayerError(
        f"cell class {printable(cell.class_name)} is not supported",
        f"cells of Keras are {', '.join(allowed)}; supply your own in a --plugin file, under "
        f'@k2t.converts("{own}", state_size=...): k2t plugin new MODEL > my_layers.py',
        place=cell.place,
    )


def check_alone(layer: LayerSpec, parsing: Parsing) -> None:
    """Refuse a cell in the place of a layer."""
    if layer.class_name in CELLS or is_custom_cell(layer):
        parsing.problems.append(
            UnsupportedLayerError(
                f"{printable(python_name(layer.class_name))} outside an RNN: a cell sees one step",
                "wrap it in an RNN layer in Keras and save again",
                place=layer.place,
            )
        )


def check_constants(layer: LayerSpec, config: Mapping[str, Any], parsing: Parsing) -> None:
    """Refuse an RNN that hands the same tensors to its cell at every step."""
    if layer.class_name == "RNN" and config.get("num_constants"):
        parsing.refuse(
            "an RNN called with constants is not supported",
            "join them to the features of every step (RepeatVector, Concatenate) and split "
            "them in the cell, or supply a layer of your own that holds the RNN with --plugin",
            layer.place,
        )


def list_first_states(root: LayerSpec, generation: Generation) -> tuple[str, ...]:
    """Return notes on plugins' cells whose initial states are unknown, or have no effect.

    A file does not say whether a cell's class has a ``get_initial_state`` of its own.
    """
    cells = {shown(one): custom_layer_of(one) for one in root.walk() if is_custom_cell(one)}
    stated = {name: own.initial_state for name, own in cells.items() if own is not None}
    if not rule_of("cells_give_states", generation):
        return tuple(
            f'{name}: initial_state="own" has no effect: Keras {generation.version} begins with '
            "zeros, whatever the cell's get_initial_state says"
            for name, word in stated.items()
            if word == "own"
        )
    return tuple(
        f"{name}: its states begin with zeros; if the Keras class has a get_initial_state of its "
        'own, say initial_state="own" in the plugin, else "zeros"'
        for name, word in stated.items()
        if word is None
    )


def check_stack(layer: LayerSpec, parsing: Parsing) -> None:
    """Refuse a stack whose order of states was never compared."""
    generation = parsing.generation
    old = generation.name == "tf.keras" and generation.version.startswith(("2.0.", "2.1."))
    if layer.class_name == STACK and old:
        parsing.problems.append(
            UnsupportedLayerError(
                f"{STACK} of TensorFlow before 1.13 was never compared with Keras",
                "save the model with a newer TensorFlow",
                place=layer.place,
            )
        )


def infer_mask_rule(layer: LayerSpec, generation: Generation) -> LayerSpec:
    """Set the output at masked steps (``masked_output``) of an RNN over a stack or a custom cell.

    Keras 2.2.3 and 2.2.4 output the first state there (``keras.backend.rnn``), of a stack the first
    cell's, and raise if its width differs from the output's. Keras before 2.2 raises if any state
    has another width.
    """
    cell = layer.parts["cell"]
    plain = cell.class_name != STACK and not has_custom_cell(layer)
    if plain or layer.semantics["masked_output"] != "previous_state":
        return layer
    rule = _first_state_rule(cell, generation)
    return replace(layer, semantics={**layer.semantics, "masked_output": rule})


def _first_state_rule(cell: LayerSpec, generation: Generation) -> MaskedOutput:
    cells = cells_in_order(cell)
    first = cells[states_of(cell)[0][0]]
    width, output = sizes_of(first).states[0], sizes_of(cells[-1]).output
    old = generation.version.startswith(("2.0.", "2.1."))
    if width != output or (old and len({output, *state_sizes(cell)}) > 1):
        return "fails"
    same = first is cells[-1] and not is_custom_cell(first)  # its output is its first state
    return "previous_state" if same else "previous_first_state"
