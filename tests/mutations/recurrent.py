"""Mutations of recurrent layers: gates, directions, merging, states, versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from specs import CELLS, MERGE_MODES
from torch import Tensor

from keras2torch_birnn.layers import recurrent
from keras2torch_birnn.rnn import layer, parameters
from keras2torch_birnn.rnn.engines import loop, torch_kernel
from keras2torch_birnn.rnn.layer import RnnCall
from keras2torch_birnn.schema import merge_modes as merge
from keras2torch_birnn.spec import Array, LayerSpec
from mutations.patches import K2, K3, K231, TF, Mutation, Patch, both, edit, put, wrap

BUILD = "layers.recurrent:torch_module"


def change_weights(
    cell: str, change: Callable[[LayerSpec, dict[str, Array]], dict[str, Array]]
) -> Patch:
    """Change the torch parameters made of one cell's weights."""

    def wrapper(right: Callable[[LayerSpec], dict[str, Array]]) -> Any:
        return lambda spec: change(spec, right(spec)) if spec.class_name == cell else right(spec)

    return wrap(parameters, "convert_weights", wrapper)


def swap_gates(a: int, b: int, gates: int) -> Callable[..., dict[str, Array]]:
    """Exchange the rows of gates a and b in every parameter."""

    def change(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
        order = list(range(gates))
        order[a], order[b] = b, a
        return {
            name: np.concatenate([np.split(array, gates)[g] for g in order])
            for name, array in named.items()
        }

    return change


def transpose_blocks(name: str) -> Callable[..., dict[str, Array]]:
    """Transpose every gate's square block once more."""

    def change(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
        blocks = np.split(named[name], len(named[name]) // named["weight_hh"].shape[1])
        return {**named, name: np.concatenate([block.T for block in blocks])}

    return change


def zero_parameter(name: str) -> Callable[..., dict[str, Array]]:
    """Replace a bias by zeros."""
    return lambda _, named: {**named, name: np.zeros_like(named[name])}


def exchange_biases(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
    if "bias_hh" not in named:
        return named
    return {**named, "bias_ih": named["bias_hh"], "bias_hh": named["bias_ih"]}


def change_merge_mode(old: str | None, new: str | None) -> Patch:
    """Replace one merge mode by another."""

    def wrapper(right: Any) -> Any:
        def plan(*args: Any) -> Any:
            found = right(*args)
            two = len(found.rules) == 2
            return replace(found, merge_mode=new) if two and found.merge_mode == old else found

        return plan

    return wrap(recurrent, "plan_of", wrapper)


def use_the_loop() -> Patch:
    """Use no fused kernel (not a bug), so that bugs of the loop show."""
    return put(layer, "KERNELS", {})


def change_fused(change: Callable[..., Any]) -> Patch:
    """Change what torch's kernel gives for a Bidirectional without mask: (call, x) -> result."""

    def wrapper(right: Any) -> Any:
        def run(layer: Any, asked: RnnCall) -> Any:
            def call(x: Tensor) -> Any:
                return right(layer, asked._replace(x=x, merge=None))

            plain = len(layer.get_weights()) == 1 or asked.lengths is not None
            outputs, states = call(asked.x) if plain else change(call, asked.x)
            return merge.merge_outputs(outputs, asked.merge), states

        return run

    return wrap(torch_kernel, "run", wrapper)


def flip_half(call: Any, x: Tensor) -> Any:
    """Leave the backward half in the order of its reading."""
    (ahead, back), final = call(x)
    return (ahead, back.flip(1)), final


def read_forwards(call: Any, x: Tensor) -> Any:
    """Let both halves read forwards."""
    (ahead, _), final = call(x)
    (_, back), _ = call(x.flip(1))
    return (ahead, back.flip(1)), final


BI = {
    "LSTM": f"{TF}/bi_lstm_concat_seq.h5",
    "GRU": f"{TF}/bi_gru_after_concat_seq.h5",
    "GRU before": f"{TF}/bi_gru_before_concat_seq.h5",
    "SimpleRNN": f"{TF}/bi_simplernn_concat_seq.h5",
}
# Class -> files of all its cells
BY_CLASS = {
    "LSTM": (BI["LSTM"],),
    "GRU": (BI["GRU"], BI["GRU before"]),
    "SimpleRNN": (BI["SimpleRNN"],),
}
MERGED = {
    "concat": (BI["LSTM"], f"{K3}/bi_lstm_concat_last.keras"),
    "sum": (f"{TF}/bi_lstm_sum_seq.h5", f"{K3}/bi_gru_before_sum_last.keras"),
    "mul": (f"{TF}/bi_gru_after_mul_seq.h5", f"{K3}/bi_gru_after_mul_last.keras"),
    "ave": (f"{TF}/bi_gru_before_ave_seq.h5", f"{K3}/bi_simplernn_ave_last.keras"),
    None: (f"{TF}/bi_lstm_none_seq.h5", f"{K2}/bi_lstm_none_last.h5"),
}
FORWARD, CUDNN = "rnn.modules:recurrent_forward", "readers.weights.slots:from_cudnn"
LSTM_GATES, GRU_GATES = "ifgo", "rzn"

MUTATIONS = {
    # Gates, transposes, biases: torch's parameters of Keras' weights.
    **{
        f"LSTM gates {LSTM_GATES[a]} and {LSTM_GATES[b]} exchanged": Mutation(
            change_weights("LSTM", swap_gates(a, b, 4)),
            (BI["LSTM"], f"{K2}/plain_lstm_back_seq.h5", f"{K3}/hard_sigmoid_bi_lstm.h5"),
        )
        for a in range(4)
        for b in range(a + 1, 4)
    },
    **{
        f"GRU gates {GRU_GATES[a]} and {GRU_GATES[b]} exchanged": Mutation(
            change_weights("GRU", swap_gates(a, b, 3)),
            (BI["GRU"], BI["GRU before"], f"{K2}/mask_bi_gru_before_seq.h5"),
        )
        for a in range(3)
        for b in range(a + 1, 3)
    },
    **{
        f"{cell} weight_hh not transposed": Mutation(
            change_weights(cell, transpose_blocks("weight_hh")), (f"square {cell}", *BY_CLASS[cell])
        )
        for cell in BY_CLASS
    },
    **{
        f"{cell} weight_ih not transposed": Mutation(
            change_weights(cell, transpose_blocks("weight_ih")),
            (f"square {cell}", *(["square GRU before"] if cell == "GRU" else [])),
        )
        for cell in BY_CLASS
    },
    **{
        f"{cell} input bias forgotten": Mutation(
            change_weights(cell, zero_parameter("bias_ih")), BY_CLASS[cell]
        )
        for cell in BY_CLASS
    },
    "SimpleRNN recurrent kernel without its .T": Mutation(
        edit(
            "rnn.parameters:convert_weights",
            'weights["recurrent_kernel"].T',
            'weights["recurrent_kernel"]',
        ),
        (BI["SimpleRNN"],),
    ),
    "GRU bias rows exchanged": Mutation(
        change_weights("GRU", exchange_biases), (BI["GRU"], "gate biases")
    ),
    "GRU recurrent bias forgotten": Mutation(
        change_weights("GRU", zero_parameter("bias_hh")), (BI["GRU"],)
    ),
    "GRU recurrent bias added to the input's": Mutation(
        change_weights(
            "GRU",
            lambda _, n: {**n, "bias_ih": n["bias_ih"] + n["bias_hh"], "bias_hh": 0 * n["bias_hh"]},
        ),
        (BI["GRU"],),
    ),
    # Directions.
    "forward and backward weights exchanged": Mutation(
        edit(BUILD, '("", "_reverse")', '("_reverse", "")[2 - len(halves) :]'),
        tuple(BI.values()),
    ),
    "halves of a pair exchanged": Mutation(
        edit(
            "layers.recurrent:bidirectional",
            '(unwrap(layer.parts["forward_layer"]), unwrap(layer.parts["backward_layer"]))',
            '(unwrap(layer.parts["backward_layer"]), unwrap(layer.parts["forward_layer"]))',
        ),
        (f"{TF}/backward_class.h5", f"{K3}/backward_units.keras"),
    ),
    "loop: the backward half reads forwards": Mutation(
        edit(
            "rnn.engines.loop:run_directions", "read = reverse(x, lengths) if d else x", "read = x"
        ),
        (
            f"{K2}/hard_sigmoid_stack.h5",
            f"{TF}/hard_sigmoid_bi_lstm.h5",
            f"{K2}/mask_bi_gru_before_seq.h5",
        ),
    ),
    "loop: the backward half is not turned back": Mutation(
        edit("rnn.engines.loop:run_directions", "reverse(out, lengths) if d else out", "out"),
        (
            f"{K2}/hard_sigmoid_stack.h5",
            f"{TF}/hard_sigmoid_bi_gru_after.h5",
            f"{K2}/mask_bi_gru_before_seq.h5",
        ),
    ),
    "pair: the backward half reads forwards": Mutation(
        edit(
            "rnn.modules:BidirectionalPair.run_sequence",
            "reverse(x, lengths), lengths",
            "x, lengths",
        ),
        (f"{TF}/backward_class.h5", f"{K3}/backward_mask.h5"),
    ),
    "pair: the backward half is not turned back": Mutation(
        edit("rnn.modules:BidirectionalPair.run_sequence", "reverse(back, lengths)", "back"),
        (f"{TF}/backward_class.h5", f"{K3}/backward_mask.h5", "pair that goes backwards"),
    ),
    **{
        f"fused {cell}: outputs turned once more": Mutation(change_fused(flip_half), (BI[cell],))
        for cell in BY_CLASS
    },
    **{
        f"fused {cell}: both halves read forwards": Mutation(
            change_fused(read_forwards), (BI[cell],)
        )
        for cell in BY_CLASS
    },
    "valid steps turned round together with the padding": Mutation(
        edit("rnn.masks:reverse", "if lengths is None:", "if True:"),
        (f"{K2}/mask_bi_gru_before_seq.h5", f"{TF}/backward_mask.h5"),
    ),
    "last step of the backward half taken at the end": Mutation(
        edit(FORWARD, "-1 if d == 0 else 0", "-1"),
        (
            f"{K3}/bi_lstm_concat_last.keras",
            f"{TF}/bi_simplernn_ave_last.keras",
            f"{K2}/bi_lstm_none_last.h5",
            f"{K3}/backward_class_last.keras",
            f"{K231}/mask_bi_lstm_last.h5",
        ),
    ),
    "last step of the forward half taken at the start": Mutation(
        edit(FORWARD, "-1 if d == 0 else 0", "0"),
        (f"{K3}/bi_lstm_concat_last.keras", f"{TF}/plain_lstm_last.keras"),
    ),
    "go_backwards ignored": Mutation(
        edit(FORWARD, "if plan.against_time:", "if False:"),
        (
            f"{K2}/plain_lstm_back_seq.h5",
            f"{K3}/plain_simplernn_back_last.h5",
            f"{TF}/bi_of_go_backwards.h5",
            f"{K3}/mask_back_lstm_seq.h5",
            "pair that goes backwards",
        ),
    ),
    "go_backwards without turning the mask": Mutation(
        edit(FORWARD, "mask.flip(1)", "mask"),
        (f"{K2}/mask_back_lstm_seq.h5", f"{TF}/mask_bi_of_go_backwards.h5"),
    ),
    # Merging.
    **{
        f"merge_mode {old} becomes {new}": Mutation(change_merge_mode(old, new), MERGED[old])
        for old in MERGED
        for new in MERGE_MODES
        if new != old
    },
    "concat puts the backward half first": Mutation(
        both(
            wrap(
                merge.MERGE_MODES,
                "concat",
                lambda mode: mode._replace(on_tensors=lambda a, b: torch.cat((b, a), dim=-1)),
            ),
            edit("rnn.engines.torch_kernel:run_kernel", 'call.merge == "concat"', "False"),
        ),
        tuple(BI.values()),
    ),
    "reset_after becomes reset before": Mutation(
        both(use_the_loop(), put(loop.STEPS, "GRU", loop.gru_before_step)),
        (BI["GRU"], f"{TF}/mask_bi_gru_after_last.keras"),
    ),
    "reset before becomes reset_after": Mutation(
        put(loop.STEPS, "GRU before", loop.gru_after_step),
        (BI["GRU before"], f"{K2}/nobias_stack.h5"),
    ),
    "cuDNN input kernel not reinterpreted": Mutation(
        edit(CUDNN, "k.reshape(units, -1).T", "k"),
        (f"{K2}/cudnnlstm_bi.h5", f"{TF}/cudnngru_plain.h5"),
        rereads=True,
    ),
    "cuDNN recurrent kernel not transposed": Mutation(
        edit(CUDNN, "[k.T for k in recurrent]", "recurrent"),
        (f"{K2}/cudnnlstm_plain.h5", f"{TF}/cudnngru_bi.h5"),
        rereads=True,
    ),
    "cuDNN second LSTM bias forgotten": Mutation(
        edit(CUDNN, "biases.sum(axis=0)", "biases[0]"), (f"{K2}/cudnnlstm_bi.h5",), rereads=True
    ),
    "cuDNN GRU biases exchanged": Mutation(
        edit(CUDNN, 'layer.class_name == "LSTM" else biases', "False else biases[::-1]"),
        (f"{K2}/cudnngru_bi.h5",),
        rereads=True,
    ),
    # States.
    **{
        f"initial_state of {cell} dropped": Mutation(
            edit(FORWARD, "if initial_state is not None:", "if False:"), (f"started {cell}",)
        )
        for cell in CELLS
    },
    **{
        f"initial_state of {cell} given to the other half": Mutation(
            edit(
                "rnn.modules:_by_direction",
                "tuple(states[d * each : (d + 1) * each])",
                "tuple(states[(1 - d) * each : (2 - d) * each])",
            ),
            (f"started {cell}",),
        )
        for cell in CELLS
    },
    "stateful layers carry nothing": Mutation(
        edit(FORWARD, "_carried(module, len(x)) if plan.stateful else None", "None"),
        (
            f"{K2}/stateful_plain.h5",
            f"{TF}/stateful_bi_lstm.keras",
            f"{K3}/stateful_bi_gru.h5",
            f"{TF}/stateful_mask.h5",
        ),
        late=True,
    ),
    "states returned backward first": Mutation(
        edit(
            FORWARD,
            "for state in states for s in state",
            "for state in states[::-1] for s in state",
        ),
        (f"{K2}/state_bi_lstm_none_seq.h5", f"{K3}/state_bi_lstm_last_sum.keras"),
    ),
    "c returned before h": Mutation(
        edit(
            FORWARD,
            "for state in states for s in state",
            "for state in states for s in state[::-1]",
        ),
        (f"{K2}/state_lstm_seq.h5", f"{K3}/state_lstm_back_last.keras"),
    ),
    # The loop's equations, where a fused kernel usually runs.
    "LSTM output gate forgotten": Mutation(
        both(use_the_loop(), edit("rnn.engines.loop:lstm_step", "sigma(o) * act(c)", "act(c)")),
        (BI["LSTM"],),
    ),
    "LSTM output without its activation": Mutation(
        both(
            use_the_loop(), edit("rnn.engines.loop:lstm_step", "sigma(o) * act(c)", "sigma(o) * c")
        ),
        (BI["LSTM"],),
    ),
    **{
        f"{cell}: update gate turned round": Mutation(
            both(
                use_the_loop(),
                edit(f"rnn.engines.loop:{step}", "z * h + (1 - z) * n", "z * n + (1 - z) * h"),
            ),
            (BI[cell],),
        )
        for step, cell in (("gru_after_step", "GRU"), ("gru_before_step", "GRU before"))
    },
    "recurrent activation is the other activation": Mutation(
        edit("rnn.layer:Cell.of", "activation(gate)", "activation(function)"),
        (f"{TF}/hard_sigmoid_bi_lstm.h5", BI["GRU before"]),
    ),
}
