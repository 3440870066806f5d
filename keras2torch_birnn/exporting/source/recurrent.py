"""Source text of recurrent layers: torch's own where they compute the same, else a loop.

A layer is one part (one direction, or both in a bidirectional module), or chains of parts: a chain
for each direction whose halves differ, a part for each cell of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.exporting.source.activation import function_of
from keras2torch_birnn.exporting.source.code import Expression, call, symbol
from keras2torch_birnn.exporting.source.emission import Emission, Emit, Helper, refuse
from keras2torch_birnn.exporting.source.recurrent_call import CallWriter, Chain, Loop, Part
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS, GRU_BEFORE, can_share_module, kind_of
from keras2torch_birnn.rnn.engines.static import why_not_torch_kernel
from keras2torch_birnn.rnn.parameters import torch_parameters
from keras2torch_birnn.rnn.unwrap_rnn import layers_of_stack, unwrap
from keras2torch_birnn.schema import CELL_GATES, CONV_LSTMS
from keras2torch_birnn.schema.custom_cells import has_custom_cell, states_of
from keras2torch_birnn.spec import LayerSpec

_LOOPS = "keras2torch_birnn.exporting.source.helpers.loops"
_LOOP_CLASSES: Mapping[str, str] = {
    "LSTM": "LoopLSTM",
    "GRU": "LoopGRU",
    GRU_BEFORE: "ResetBeforeGRU",
    "SimpleRNN": "LoopRNN",
}
_DROPOUT = Helper("keras2torch_birnn.layers.dropout", "ShapedDropout")


@dataclass(frozen=True)
class _Built:
    """A part with its members, the names of its state, helpers and notes."""

    part: Part
    members: Mapping[str, Expression]
    state: Mapping[str, str]
    helpers: tuple[Helper, ...]
    notes: tuple[str, ...]


def _build(halves: Sequence[LayerSpec], name: str, prefix: str) -> _Built:
    """Build one part: an LSTM, a GRU or a SimpleRNN, or two alike."""
    layer, config = halves[0], halves[0].config
    kind = kind_of(layer)
    facts, both = CELL_KINDS[kind], len(halves) == 2
    looped = why_not_torch_kernel(layer) != ""
    width, units = int(layer.weights["kernel"].shape[0]), int(config["units"])
    options: dict[str, object] = {}
    helpers: tuple[Helper, ...] = ()
    if not config["use_bias"]:
        options["bias"] = False
    if looped:
        constructor = _LOOP_CLASSES[kind]
        helpers = (Helper(_LOOPS, constructor),)
        for option in ("activation", "recurrent_activation"):
            default = "tanh" if option == "activation" else "sigmoid"
            value = config.get(option, default)
            if value != default:
                function, more = function_of(value)
                options[option] = function
                helpers += more
    else:
        constructor = f"nn.{facts.torch_name}"
        if kind == "SimpleRNN" and config["activation"] != "tanh":
            options["nonlinearity"] = config["activation"]
        options["batch_first"] = True
    if both:
        options["bidirectional"] = True
    names = [
        key
        for half, suffix in zip(halves, ("", "_reverse"), strict=False)
        for key in torch_parameters(half, suffix)
    ]
    if config["use_bias"] and not looped:  # torch's second bias, which Keras may not have
        names += [key.replace("_ih_", "_hh_") for key in names if key.startswith("bias_ih")]
    members = {name: call(symbol(constructor), width, units, **options)}
    dropout = ""
    notes: tuple[str, ...] = ()
    if 0.0 < config["dropout"] < 1.0:
        dropout = f"{name}_dropout"
        members[dropout] = call(symbol("ShapedDropout"), config["dropout"], (None, 1, None))
        helpers += (_DROPOUT,)
        notes = _dropout_note(name, config["implementation"] != 2, both=both)
    if 0.0 < config["recurrent_dropout"] < 1.0:
        notes += (f"{name}: recurrent_dropout of Keras is not applied in training",)
    return _Built(
        Part(name, facts.states, len(halves), looped, dropout),
        members,
        {f"{prefix}{key}": f"{name}.{key}" for key in dict.fromkeys(names)},
        helpers,
        notes,
    )


def _dropout_note(name: str, per_gate: bool, *, both: bool) -> tuple[str, ...]:
    several = [what for what, is_so in (("gate", per_gate), ("direction", both)) if is_so]
    if not several:
        return ()
    return (f"{name}: one dropout mask of the input, Keras draws one for each {several[0]}",)


def _chain(layer: LayerSpec, name: str, prefix: str) -> list[_Built]:
    """Build one direction of any recurrent layer."""
    if layer.class_name in CELL_GATES:
        return [_build((layer,), name, prefix)]
    if layer.class_name in CONV_LSTMS:
        raise refuse(layer)
    if has_custom_cell(layer):
        raise refuse(layer, "a custom cell")
    return [
        _build((cell,), f"{name}_{number}", f"{prefix}cells.{number}.")
        for number, cell in enumerate(layers_of_stack(layer))
    ]


def _emission(
    layers: Sequence[LayerSpec], chains: Sequence[list[_Built]], merge: str | None
) -> Emission:
    orders = [
        tuple(states_of(layer.parts["cell"])) if layer.class_name == "RNN" else ()
        for layer in layers
    ]
    loop = Loop(
        chains=tuple(
            Chain(tuple(built.part for built in chain), order or ((0, chain[0].part.states),))
            for chain, order in zip(chains, orders, strict=False)
        ),
        rules=tuple(layer.semantics["masked_output"] for layer in layers),
        merge=merge,
        layer=layers[0],
    )
    every = [built for chain in chains for built in chain]
    members: dict[str, Expression] = {}
    for built in every:
        members |= built.members
    return Emission(
        lambda site: CallWriter(loop, site).write(),
        members,
        {key: there for built in every for key, there in built.state.items()},
        tuple(helper for built in every for helper in built.helpers),
        tuple(dict.fromkeys(note for built in every for note in built.notes)),
        {built.part.name: built.part.states for built in every if layers[0].config["stateful"]},
        options=frozenset({"initial_state"}),
    )


def _recurrent(layer: LayerSpec, name: str, built: Any) -> Emission:
    layer = unwrap(layer)
    return _emission((layer,), [_chain(layer, name, "")], None)


def _bidirectional(layer: LayerSpec, name: str, built: Any) -> Emission:
    halves = (unwrap(layer.parts["forward_layer"]), unwrap(layer.parts["backward_layer"]))
    merge = layer.config["merge_mode"]
    if halves[0].class_name in CELL_GATES and can_share_module(*halves):
        return _emission(halves, [[_build(halves, name, "")]], merge)
    chains = [
        _chain(half, f"{name}_{which}", f"{which}_layer.")
        for half, which in zip(halves, ("forward", "backward"), strict=True)
    ]
    return _emission(halves, chains, merge)


EMITTERS: Mapping[str, Emit] = {
    **dict.fromkeys((*CELL_GATES, "RNN"), _recurrent),
    "Bidirectional": _bidirectional,
}
