"""The kinds of recurrent cells, in one table. No torch: ``k2t inspect`` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from keras2torch_birnn.schema import cells_in_order
from keras2torch_birnn.schema.recurrent import CELL_LAYERS
from keras2torch_birnn.spec import LayerSpec


class CellKind(NamedTuple):
    """Facts about one kind of cell.

    torch_name: of its layer in ``torch.nn``. torch_activations: those that this layer has.
    gates: blocks of H rows in a weight. states: h, and an LSTM's c. native_code: ``enum K2tKind``.
    """

    torch_name: str
    torch_activations: tuple[str, ...]
    gates: int
    states: int
    native_code: int


# A GRU that resets the state before the recurrent product (reset_after=False); torch has none.
GRU_BEFORE = "GRU before"

CELL_KINDS: Mapping[str, CellKind] = {
    "LSTM": CellKind("LSTM", ("tanh",), gates=4, states=2, native_code=0),
    "GRU": CellKind("GRU", ("tanh",), gates=3, states=1, native_code=1),
    GRU_BEFORE: CellKind("GRU", (), gates=3, states=1, native_code=2),
    "SimpleRNN": CellKind("RNN", ("tanh", "relu"), gates=1, states=1, native_code=3),
}


def kind_name(class_name: str, *, reset_after: bool = True) -> str:
    """Return the key in ``CELL_KINDS`` of a Keras class LSTM, GRU or SimpleRNN."""
    return GRU_BEFORE if class_name == "GRU" and not reset_after else class_name


def kind_of(layer: LayerSpec) -> str:
    """Return the key in ``CELL_KINDS`` of an LSTM, GRU or SimpleRNN."""
    return kind_name(layer.class_name, reset_after=layer.config.get("reset_after", True))


# Options in which the halves of a Bidirectional may differ and still be one module.
_FREE = ("go_backwards", "masked_output", "trainable")


def can_share_module(forward: LayerSpec, backward: LayerSpec) -> bool:
    """Return whether one bidirectional module of torch can be both halves."""
    return forward.class_name == backward.class_name and all(
        forward.settings[key] == backward.settings.get(key)
        for key in forward.settings
        if key not in _FREE
    )


# ---- An RNN over cells of Keras as the layers that they are -------------------------------------

# How a cell in a stack reads: all steps, forward.
_ALONE: Mapping[str, Any] = {
    "return_sequences": True,
    "return_state": True,
    "go_backwards": False,
    "stateful": False,
    "unroll": False,
    "time_major": False,
}


def unwrap(layer: LayerSpec) -> LayerSpec:
    """Return an RNN over one cell as an LSTM, GRU or SimpleRNN; any other layer unchanged."""
    cell = layer.parts.get("cell")
    if cell is None or cell.class_name not in CELL_LAYERS:
        return layer
    return _as_layer(cell, layer.config, layer.semantics, layer)


def layers_of_stack(layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """Return the cells of an RNN's stack as layers: each reads the outputs of the one before.

    Exact under any mask: a masked step leaves the states of all cells unchanged.
    """
    return tuple(layer_of_cell(cell, layer) for cell in cells_in_order(layer.parts["cell"]))


def layer_of_cell(cell: LayerSpec, layer: LayerSpec) -> LayerSpec:
    """Return a cell of Keras in the stack of an RNN as a layer."""
    loop = {**_ALONE, "trainable": layer.parts["cell"].config.get("trainable", True)}
    return _as_layer(cell, loop, {"masked_output": "zeros"}, layer)


def _as_layer(
    cell: LayerSpec, loop: Mapping[str, Any], semantics: Mapping[str, Any], outer: LayerSpec
) -> LayerSpec:
    learns = all(part.get("trainable", True) for part in (outer.config, loop, cell.config))
    return LayerSpec(
        CELL_LAYERS[cell.class_name],
        outer.name,
        {**cell.config, **loop, "trainable": learns},
        cell.weights,
        path=outer.path,
        input_shape=outer.input_shape,
        output_shape=outer.output_shape,
        semantics=semantics,
    )
