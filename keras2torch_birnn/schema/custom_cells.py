"""States of an RNN's cells: Keras' own, those of plugins, and stacks of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import PluginError, UnsupportedLayerError, printable
from keras2torch_birnn.limits import MAX_LAYER_VALUES
from keras2torch_birnn.schema.custom_layers import (
    custom_layer_of,
    initial_states_of,
    naming_plugin,
    shown,
)
from keras2torch_birnn.schema.recurrent import (
    CELL_LAYERS,
    CELL_STATES,
    STACK,
    cells_in_order,
    sequence_output,
)
from keras2torch_birnn.spec import LayerSpec, Shape, Structure


@dataclass(frozen=True)
class CellSizes:
    """Sizes of a cell: one for each of its states (B, size), and that of its output (B, output)."""

    states: tuple[int, ...]
    output: int


def is_custom_cell(cell: LayerSpec) -> bool:
    """Tell whether a plugin supplies this as a cell of an RNN."""
    own = custom_layer_of(cell)
    return own is not None and own.state_size is not None


# The name, in the semantics of a cell, of whether the Keras of the file asks it for its states.
ASKED = "asked for states"


def gives_states(cell: LayerSpec) -> bool:
    """Tell whether a plugin's cell begins with states of its own, and its Keras asks for them."""
    own = custom_layer_of(cell)
    asked = bool(cell.semantics.get(ASKED, True))
    return asked and own is not None and own.initial_state == "own"


def lacks_initial_states(cell: LayerSpec) -> bool:
    """Tell whether a cell begins with states of its own, and its plugin has no NumPy function."""
    return gives_states(cell) and initial_states_of(cell) is None


def has_custom_cell(layer: LayerSpec) -> bool:
    """Tell whether a layer is an RNN over a plugin's cell, or over a stack that has one."""
    return "cell" in layer.parts and any(map(is_custom_cell, cells_in_order(layer.parts["cell"])))


def sizes_of(cell: LayerSpec) -> CellSizes:
    """Return the sizes of a cell that is no stack.

    A plugin's cell without ``output_size=`` has an output of the size of its first state, as in
    Keras.

    Raises:
        UnsupportedLayerError: there is no plugin for it.
        PluginError: the plugin's function fails, or gives something else than sizes.
    """
    if cell.class_name in CELL_LAYERS:
        units = cell.config["units"]
        return CellSizes((units,) * CELL_STATES[CELL_LAYERS[cell.class_name]], units)
    own = custom_layer_of(cell)
    if own is None or own.state_size is None:
        raise UnsupportedLayerError(
            f"cell class {printable(cell.class_name)} has no converter here",
            "load the plugin that supplies it (--plugin, or plugins=)",
            place=cell.place,
        )
    states = _sizes(cell, "state_size", own.state_size)
    if own.output_size is None:
        return CellSizes(states, states[0])
    output = _sizes(cell, "output_size", own.output_size)
    if len(output) > 1:
        raise _no_size(cell, "output_size", output)
    return CellSizes(states, output[0])


def states_of(cell: LayerSpec) -> tuple[tuple[int, int], ...]:
    """Return whose states they are, in the order in which Keras passes them in and out.

    A pair for each cell: its number among ``cells_in_order``, how many states it has.
    """
    pairs = [(i, len(sizes_of(one).states)) for i, one in enumerate(cells_in_order(cell))]
    last_first = cell.class_name == STACK and cell.semantics["states"] == "last cell first"
    return tuple(reversed(pairs) if last_first else pairs)


def state_sizes(cell: LayerSpec) -> tuple[int, ...]:
    """Return the size of each state of a cell or a stack, in Keras' order."""
    cells = cells_in_order(cell)
    return tuple(size for i, _ in states_of(cell) for size in sizes_of(cells[i]).states)


def cell_output(cell: LayerSpec, step: Shape | None) -> Shape:
    """Return the shape that a plugin's cell gives at each step of shape (B, F)."""
    return (step[0] if step else None, sizes_of(cell).output)


def rnn_output(layer: LayerSpec, shape: Shape | None) -> Any:
    """Compute the output shape of an RNN from those of its cells."""
    cell = layer.parts["cell"]
    last: Structure = cells_in_order(cell)[-1].output_shape
    if last is None:
        return None
    states = [(last[0], size) for size in state_sizes(cell)]
    return sequence_output(layer.config, shape[1] if shape else None, last, states)


def _sizes(cell: LayerSpec, option: str, stated: Any) -> tuple[int, ...]:
    """Resolve what a plugin states: sizes, names of options that hold them, or a function."""
    if callable(stated):
        with naming_plugin(cell, f"its {option}= function"):
            stated = stated(cell)
    several = isinstance(stated, Sequence) and not isinstance(stated, str)
    values = [
        cell.config.get(one) if isinstance(one, str) else one
        for one in (stated if several else (stated,))
    ]
    sizes = tuple(s for s in values if type(s) is int and 1 <= s <= MAX_LAYER_VALUES)
    if not sizes or len(sizes) < len(values):
        raise _no_size(cell, option, stated)
    return sizes


def _no_size(cell: LayerSpec, option: str, value: Any) -> PluginError:
    several = ", or a list of these" if option == "state_size" else ""
    return PluginError(
        f"{shown(cell)}: {option}= gives {printable(repr(value))}",
        f"a whole number or the name of the option that holds it{several} is expected",
        place=cell.place,
    )
