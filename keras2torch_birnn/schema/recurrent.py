"""Layers that go over the steps: recurrent ones and their cells, Bidirectional, TimeDistributed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from keras2torch_birnn.schema.merge_modes import MERGE_MODES
from keras2torch_birnn.schema.options import (
    REQUIRED,
    Option,
    activation,
    choice,
    flag,
    number,
    size,
)
from keras2torch_birnn.schema.row import Config, Schema, ShapeError, WeightShapes, known, last
from keras2torch_birnn.spec import LayerSpec, MaskedOutput, Shape

# ---- recurrent layers ----------------------------------------------------------------------------


class Gates(NamedTuple):
    """The gates of a cell, in which the last axis of its weights is divided.

    ``keras``: a letter for each, in Keras' order. ``torch``: torch's letters of the same gates.
    ``order``: torch's order, by the numbers of Keras'.
    """

    keras: str
    torch: str
    order: tuple[int, ...]


GATES: Mapping[str, Gates] = {
    "LSTM": Gates("ifco", "ifgo", (0, 1, 2, 3)),
    "GRU": Gates("zrh", "zrn", (1, 0, 2)),
    "SimpleRNN": Gates("h", "h", (0,)),
}
CELL_GATES: Mapping[str, int] = {cell: len(gates.order) for cell, gates in GATES.items()}
CELL_STATES: Mapping[str, int] = {"LSTM": 2, "GRU": 1, "SimpleRNN": 1}

CELL_OPTIONS: Mapping[str, Option] = {
    "units": size(),
    "activation": activation("tanh"),
    "use_bias": flag(True),
    "dropout": number(0.0, 0.0, 1.0),
    "recurrent_dropout": number(0.0, 0.0, 1.0),
    "implementation": choice(2, 0, 1, 2),
}
_GATE_OPTIONS: Mapping[str, Option] = {"recurrent_activation": activation(REQUIRED)}
# What a cell has beside these.
OWN_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "LSTM": _GATE_OPTIONS,
    "GRU": {**_GATE_OPTIONS, "reset_after": flag()},
    "SimpleRNN": {},
}
LOOP_OPTIONS: Mapping[str, Option] = {
    "return_sequences": flag(False),
    "return_state": flag(False),
    "go_backwards": flag(False),
    "stateful": flag(False),
    "unroll": flag(False),
    "time_major": choice(False, False),
}
LOOP_SEMANTICS: Mapping[str, Option] = {"masked_output": choice(REQUIRED, *get_args(MaskedOutput))}


def cell_weights(gates: int, rank: int) -> Callable[[Config, Shape | None], WeightShapes]:
    """Make the weights' rule of a layer (rank 3), or of its cell that sees one step (rank 2)."""

    def weights(config: Config, shape: Shape | None) -> WeightShapes:
        units, width = config["units"], gates * config["units"]
        known(shape, rank=rank)
        out: dict[str, Shape] = {
            "kernel": (last(shape), width),
            "recurrent_kernel": (units, width),
        }
        if config["use_bias"]:
            out["bias"] = (2, width) if config.get("reset_after") else (width,)
        return out

    return weights


def sequence_output(config: Config, steps: int | None, step: Shape, states: Sequence[Shape]) -> Any:
    """Compute the output shape of a loop over time whose cell gives ``step`` at each step.

    With ``return_state`` a tuple (output, *states).
    """
    out = (step[0], steps, *step[1:]) if config["return_sequences"] else step
    return (out, *states) if config["return_state"] else out


def _rnn(cell: str) -> Schema:
    def output(config: Config, shape: Shape | None) -> Any:
        batch, time, _ = known(shape, rank=3) or (None, None, None)
        state: Shape = (batch, config["units"])
        return sequence_output(config, time, state, [state] * CELL_STATES[cell])

    return Schema(
        options={**CELL_OPTIONS, **LOOP_OPTIONS, **OWN_OPTIONS[cell]},
        weights=cell_weights(CELL_GATES[cell], rank=3),
        output=output,
        semantics=LOOP_SEMANTICS,
        refused=("time_major=True", "constants"),
    )


def merged_output(merge_mode: str | None, forward: Any, backward: Any) -> Any:
    """Compute the output shape of a Bidirectional from its halves' (with states, if any)."""
    with_state = bool(forward) and isinstance(forward[0], tuple)
    heads = [half[0] if with_state else half for half in (forward, backward)]
    states = (*forward[1:], *backward[1:]) if with_state else ()
    out: tuple[Any, ...]
    if merge_mode is None:
        out = tuple(heads)
    elif merge_mode == "concat":
        out = ((*heads[0][:-1], heads[0][-1] + heads[1][-1]),)
    elif heads[0] != heads[1]:
        raise ShapeError(
            f"merge_mode {merge_mode!r} needs halves of equal size, found {list(heads[0])} and "
            f"{list(heads[1])}"
        )
    else:
        out = (heads[0],)
    out = (*out, *states)
    return out[0] if len(out) == 1 else out


# ---- cells ---------------------------------------------------------------------------------------

# class of a cell -> class of its layer
CELL_LAYERS: Mapping[str, str] = {f"{layer}Cell": layer for layer in CELL_GATES}
STACK = "StackedRNNCells"


def cells_in_order(cell: LayerSpec) -> tuple[LayerSpec, ...]:
    """Return the cells that every step goes through."""
    return tuple(cell.parts.values()) if cell.class_name == STACK else (cell,)


def _cell_output(config: Config, shape: Shape | None) -> Shape:
    step = known(shape, rank=2)
    return (step[0] if step else None, config["units"])


def _cell(layer: str) -> Schema:
    options = {**CELL_OPTIONS, **OWN_OPTIONS[layer]}
    return Schema(options, cell_weights(CELL_GATES[layer], rank=2), _cell_output)


CELLS: Mapping[str, Schema] = {
    **{cell: _cell(layer) for cell, layer in CELL_LAYERS.items()},
    # states: the order in which all the cells' states are handed in and out
    STACK: Schema(
        semantics={"states": choice(REQUIRED, "first cell first", "last cell first")},
        parts=("cells",),
    ),
}


LAYERS: Mapping[str, Schema] = {
    **{cell: _rnn(cell) for cell in GATES},
    "Bidirectional": Schema(
        {"merge_mode": choice("concat", *MERGE_MODES, None)},
        parts=("forward_layer", "backward_layer"),
        refused=("layers that are not recurrent",),
    ),
    "RNN": Schema(
        LOOP_OPTIONS,
        semantics=LOOP_SEMANTICS,
        parts=("cell",),
        refused=("constants",),
    ),
    # masking: the mask passes by (where the batch is fixed); or goes in and comes out as the inner
    # layer makes it (or the input's, reduced to steps); or goes in and comes out as it was (in
    # TensorFlow 1 to 2.1 where the batch is fixed; 2.2 calls itself the same as 2.1)
    "TimeDistributed": Schema(
        semantics={
            "masking": choice(
                REQUIRED,
                "passes by",
                "inner",
                "inner unless fixed",
                "inner, input if fixed",
                "inner, unknown if fixed",
                "input",
            )
        },
        parts=("layer",),
        refused=("a mask into a whole model", "layers with several outputs"),
    ),
}
