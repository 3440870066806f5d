"""One step of a recurrent layer: LSTM, GRU, SimpleRNN, a plugin's cell, a stack of them.

Letters: B batch, F features, H units. A state is a tuple of arrays (B, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Context, states_are_asked
from keras2torch_birnn.schema.custom_cells import gives_states, is_custom_cell, sizes_of
from keras2torch_birnn.spec import Array, LayerSpec

State: TypeAlias = tuple[Array, ...]
# (x_t, state) -> (output, state)
Step: TypeAlias = Callable[[Array, State], tuple[Array, State]]


def lstm(layer: LayerSpec, context: Context) -> Step:
    """Compute ``LSTMCell.call`` (Keras 2.2.4, 2.15, 3.15). Gates in the columns: i, f, c, o."""
    config = layer.config
    w = context.weight(layer, "kernel")  # (F, 4H)
    u = context.weight(layer, "recurrent_kernel")  # (H, 4H)
    b = context.weight(layer, "bias") if config["use_bias"] else np.zeros_like(w[0])  # (4H,)

    def step(x: Array, state: State) -> tuple[Array, State]:
        h, c = state
        gates = (x @ w + h @ u + b).reshape(len(x), 4, h.shape[-1])
        return lstm_step(layer, [*gates.swapaxes(0, 1)], c)

    return step


def lstm_step(layer: LayerSpec, gates: Sequence[Array], c: Array) -> tuple[Array, State]:
    """Compute a step from the gates i, f, c, o before their activations."""
    config = layer.config
    z_i, z_f, z_c, z_o = gates
    i = activate(config["recurrent_activation"], z_i)
    f = activate(config["recurrent_activation"], z_f)
    c = f * c + i * activate(config["activation"], z_c)
    o = activate(config["recurrent_activation"], z_o)
    h = o * activate(config["activation"], c)
    return h, (h, c)


def gru(layer: LayerSpec, context: Context) -> Step:
    """Compute ``GRUCell.call`` (Keras 2.2.4, 2.15, 3.15). Gates in the columns: z, r, h."""
    config = layer.config
    w_z, w_r, w_h = np.split(context.weight(layer, "kernel"), 3, axis=-1)  # (F, H) each
    u_z, u_r, u_h = np.split(context.weight(layer, "recurrent_kernel"), 3, axis=-1)  # (H, H)
    bias = np.zeros((2, 3, config["units"]), dtype=w_z.dtype)  # input and recurrent; z, r, h
    if config["use_bias"]:
        both = context.weight(layer, "bias")  # (2, 3H) if reset_after else (3H,)
        bias[: 2 if config["reset_after"] else 1] = both.reshape(-1, 3, config["units"])
    (b_z, b_r, b_h), (d_z, d_r, d_h) = bias

    def step(x: Array, state: State) -> tuple[Array, State]:
        (h,) = state
        z = activate(config["recurrent_activation"], x @ w_z + b_z + h @ u_z + d_z)
        r = activate(config["recurrent_activation"], x @ w_r + b_r + h @ u_r + d_r)
        n_h = r * (h @ u_h + d_h) if config["reset_after"] else (r * h) @ u_h
        n = activate(config["activation"], x @ w_h + b_h + n_h)
        h = z * h + (1 - z) * n
        return h, (h,)

    return step


def simple_rnn(layer: LayerSpec, context: Context) -> Step:
    """Compute ``SimpleRNNCell.call`` (Keras 2.2.4, 2.15, 3.15)."""
    config = layer.config
    w = context.weight(layer, "kernel")  # (F, H)
    u = context.weight(layer, "recurrent_kernel")  # (H, H)
    b = context.weight(layer, "bias") if config["use_bias"] else np.zeros_like(w[0])  # (H,)

    def step(x: Array, state: State) -> tuple[Array, State]:
        (h,) = state
        h = activate(config["activation"], x @ w + b + h @ u)
        return h, (h,)

    return step


CELLS: Mapping[str, Callable[[LayerSpec, Context], Step]] = {
    **dict.fromkeys(("LSTM", "LSTMCell"), lstm),
    **dict.fromkeys(("GRU", "GRUCell"), gru),
    **dict.fromkeys(("SimpleRNN", "SimpleRNNCell"), simple_rnn),
}


# ---- one cell or a stack of them ---------------------------------------------------------------


def _called(layer: LayerSpec) -> list[LayerSpec]:
    """Return the cells in the order in which a step calls them; most layers have one."""
    cell = layer.parts.get("cell", layer)
    return list(cell.parts.values()) if cell.class_name == "StackedRNNCells" else [cell]


def _listed(layer: LayerSpec) -> list[LayerSpec]:
    """Return the cells in the order of their states (``StackedRNNCells.state_size``).

    The last cell's come first up to Keras 2.2.2, the first cell's since 2.2.3.
    """
    cells, stack = _called(layer), layer.parts.get("cell", layer)
    return cells[::-1] if stack.semantics.get("states") == "last cell first" else cells


def step_of(layer: LayerSpec, context: Context) -> Step:
    """Make one step: of the layer's cell, or of its cells one after the other."""
    steps = [(id(cell), _step_of_cell(cell, context)) for cell in _called(layer)]
    if len(steps) == 1:
        return steps[0][1]

    def step(x: Array, state: State) -> tuple[Array, State]:
        own, rest = {}, state
        for cell in _listed(layer):
            own[id(cell)], rest = rest[: _count(cell)], rest[_count(cell) :]
        for key, one in steps:
            x, own[key] = one(x, own[key])
        return x, tuple(part for cell in _listed(layer) for part in own[id(cell)])

    return step


def _step_of_cell(cell: LayerSpec, context: Context) -> Step:
    """Make one step of a cell; ``Context.own`` takes a plugin's, with states in place of a mask."""
    if cell.class_name in CELLS:
        return CELLS[cell.class_name](cell, context)
    own = context.own
    if own is None:
        raise KeyError(cell.class_name)

    def step(x: Array, state: State) -> tuple[Array, State]:
        output, states = own.layer(cell, x, state, context)
        return output, tuple(states)

    return step


def state_count(layer: LayerSpec) -> int:
    """Return the number of arrays in a recurrent layer's state."""
    return sum(map(_count, _listed(layer)))


def _sizes(cell: LayerSpec) -> tuple[int, ...]:
    if is_custom_cell(cell):
        return sizes_of(cell).states
    return (cell.config["units"],) * _count(cell)


def _count(cell: LayerSpec) -> int:
    if is_custom_cell(cell):
        return len(sizes_of(cell).states)
    return 2 if "LSTM" in cell.class_name else 1


def first_state(layer: LayerSpec, context: Context, x: Array) -> State:
    """Return the states before the first step, for inputs (B, F) of one step.

    Zeros; those of a plugin's cell are what its ``get_initial_state`` returns, if the plugin says
    so. ``RNN.get_initial_state`` asks the cell since TensorFlow 1.12 and in Keras 3, not in Keras
    2.3.1 and before.
    """
    return tuple(state for cell in _listed(layer) for state in _first_of(cell, context, len(x)))


def _first_of(cell: LayerSpec, context: Context, rows: int) -> State:
    if context.own is not None and is_custom_cell(cell) and states_are_asked(context.generation):
        if gives_states(cell):
            return context.own.initial_states(cell, rows, context)
    return tuple(np.zeros((rows, size)) for size in _sizes(cell))
