"""Deliberate bugs of masks, generations and merges, which stand in tables or need two changes.

Each replaces an entry of a table, and names the fixtures that must notice it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from specs import MERGE_MODES

from keras2torch_birnn.layers import recurrent, registry
from keras2torch_birnn.readers.config import generations
from keras2torch_birnn.rnn import activations, engines, masks
from keras2torch_birnn.rnn.engines import loop
from keras2torch_birnn.schema import merge_modes as merge
from mutations.patches import Patch, both, edit, put, wrap

K2, K231, TF, K3 = "keras-2.2.4", "keras-2.3.1", "tf.keras-2.15.0", "keras-3.15.1"


@dataclass(frozen=True)
class Bug:
    """A deliberate bug, and the files that must notice it; ``rereads``: they are read again."""

    patch: Patch
    files: tuple[str, ...]
    rereads: bool = False


# ---- masks --------------------------------------------------------------------------------------


def change_mask_flow(class_name: str, flow: registry.MaskFlow) -> Patch:
    """Change what a layer class does with masks."""
    return wrap(registry.CONVERTERS, class_name, lambda right: replace(right, mask=lambda _: flow))


def change_rule(old: str, new: str) -> Patch:
    """Replace one rule for masked steps by another."""

    def wrapper(right: Callable[..., Any]) -> Callable[..., Any]:
        def spread(*args: Any, rule: str, **more: Any) -> Any:
            return right(*args, rule=new if rule == old else rule, **more)

        return spread

    return wrap(masks, "scatter_steps", wrapper)


# Only a carried state tells "previous_output" from "previous_state".
CARRIED = {"previous_output": f"{TF}/stateful_mask.h5", "previous_state": f"{K2}/stateful_mask.h5"}
RECURRENT = ("Bidirectional", "LSTM", "GRU", "SimpleRNN")
NOTICES = {
    "zeros": (f"{TF}/mask_bi_lstm_seq.h5", f"{K3}/mask_bi_gru_before_seq.h5"),
    "zeros_unreversed": (f"{TF}/mask_unroll_bi_seq.h5", f"{K3}/mask_unroll_bi_seq.h5"),
    "previous_output": (f"{TF}/mask_plain_lstm_seq.keras", f"{K231}/mask_bi_gru_before_seq.h5"),
    "previous_state": (f"{K2}/mask_bi_lstm_seq.h5", f"{K2}/mask_back_lstm_seq.h5"),
}
THROUGH = (f"{K2}/mask_through.h5", f"{K3}/mask_through.keras")
MASKS = {
    **{
        f"masked_output {rule} becomes {other}": Bug(
            change_rule(rule, other), (CARRIED[rule],) if {rule, other} == {*CARRIED} else files
        )
        for rule, files in NOTICES.items()
        for other in NOTICES
        if other != rule
    },
    "recurrent layers take no mask": Bug(
        both(*(change_mask_flow(name, registry.SAME) for name in RECURRENT)),
        (f"{TF}/mask_bi_lstm_last.keras", f"{K2}/mask_stack_plain.h5", f"{K3}/chain_masked.keras"),
    ),
    "recurrent layers hand no mask on": Bug(
        both(*(change_mask_flow(name, registry.USES) for name in RECURRENT)),
        (f"{TF}/mask_stack_plain.keras", f"{K2}/mask_stack_bi_dense.h5"),
    ),
    "Masking makes no mask": Bug(
        change_mask_flow("Masking", registry.SAME),
        (f"{K2}/masking_zero_bi_lstm_seq.h5", f"{K3}/masking_big_bi_simplernn_seq.h5"),
    ),
    "Embedding makes no mask": Bug(
        change_mask_flow("Embedding", registry.NONE),
        (f"{K2}/mask_bi_lstm_seq.h5", f"{K3}/mask_average_pool_direct.h5"),
    ),
    "GlobalMaxPooling1D uses a mask": Bug(
        both(
            change_mask_flow("GlobalMaxPooling1D", registry.USES),
            edit(
                "layers.reshaping:GlobalPooling.forward",
                "return x.amax(",
                "return (x if mask is None else x.masked_fill(~mask[..., None], -1e9)).amax(",
            ),
        ),
        (f"{K3}/mask_max_pool.h5",),
    ),
    **{
        f"{name} stops the mask": Bug(change_mask_flow(name, registry.NONE), files)
        for name, files in {
            **dict.fromkeys(("Dense", "Activation", "BatchNormalization"), THROUGH),
            **dict.fromkeys(("LeakyReLU", "SpatialDropout1D"), THROUGH),
            "LayerNormalization": (f"{TF}/mask_through_layernorm.h5",),
            "TimeDistributed": (f"{K2}/mask_td_dense.h5", f"{K3}/mask_td_dense.h5"),
        }.items()
    },
}

# ---- generations --------------------------------------------------------------------------------

BI_GRU = {
    "GRU": f"{TF}/bi_gru_after_concat_seq.h5",
    "GRU before": f"{TF}/bi_gru_before_concat_seq.h5",
}
GENERATIONS = {
    "states of a stack of Keras 2.1 from the first cell on": Bug(
        put(generations._OPTIONS["StackedRNNCells"]["states"], "keras2", "first cell first"),
        ("keras-2.1.6/stacked_bi_states.h5",),
        rereads=True,
    ),
    "masked steps of a ConvLSTM of tf.keras give zeros": Bug(
        put(generations._RULES["conv_lstm"], "tf.keras", "zeros"),
        (f"{TF}/conv_lstm_2d_mask_bi.h5",),
        rereads=True,
    ),
    "hard_sigmoid 0.2 becomes 1/6": Bug(
        put(activations.FUNCTIONS, "hard_sigmoid_0.2", activations.hard_sigmoid_1_6),
        (f"{K2}/hard_sigmoid_stack.h5", f"{TF}/hard_sigmoid_bi_lstm.h5"),
    ),
    "hard_sigmoid 1/6 becomes 0.2": Bug(
        put(activations.FUNCTIONS, "hard_sigmoid_1/6", activations.hard_sigmoid_0_2),
        (f"{K3}/hard_sigmoid_bi_lstm.h5", f"{K3}/hard_sigmoid_bi_gru_before.h5"),
    ),
    "reset_after becomes reset before": Bug(
        both(
            put(engines, "REQUESTED", "loop"),
            put(loop.STEPS, "GRU", loop.gru_before_step),
        ),
        (BI_GRU["GRU"], f"{TF}/mask_bi_gru_after_last.keras"),
    ),
    "reset before becomes reset_after": Bug(
        put(loop.STEPS, "GRU before", loop.gru_after_step),
        (BI_GRU["GRU before"], f"{K2}/nobias_stack.h5"),
    ),
}

# ---- merges -------------------------------------------------------------------------------------


def change_merge_mode(old: str | None, new: str | None) -> Patch:
    """Replace one merge mode by another."""

    def wrapper(right: Callable[..., Any]) -> Callable[..., Any]:
        def plan(*args: Any) -> Any:
            found = right(*args)
            two = len(found.rules) == 2
            return replace(found, merge_mode=new) if two and found.merge_mode == old else found

        return plan

    return wrap(recurrent, "plan_of", wrapper)


MERGED: Mapping[str | None, tuple[str, ...]] = {
    "concat": (f"{TF}/bi_lstm_concat_seq.h5", f"{K3}/bi_lstm_concat_last.keras"),
    "sum": (f"{TF}/bi_lstm_sum_seq.h5", f"{K3}/bi_gru_before_sum_last.keras"),
    "mul": (f"{TF}/bi_gru_after_mul_seq.h5", f"{K3}/bi_gru_after_mul_last.keras"),
    "ave": (f"{TF}/bi_gru_before_ave_seq.h5", f"{K3}/bi_simplernn_ave_last.keras"),
    None: (f"{TF}/bi_lstm_none_seq.h5", f"{K2}/bi_lstm_none_last.h5"),
}
MERGES = {
    **{
        f"merge_mode {old} becomes {new}": Bug(change_merge_mode(old, new), MERGED[old])
        for old in MERGED
        for new in MERGE_MODES
        if new != old
    },
    "concat puts the backward half first": Bug(
        both(
            wrap(
                merge.MERGE_MODES,
                "concat",
                lambda mode: mode._replace(on_tensors=lambda a, b: torch.cat((b, a), dim=-1)),
            ),
            edit("rnn.engines.torch_kernel:run_kernel", 'call.merge == "concat"', "False"),
        ),
        (f"{TF}/bi_lstm_concat_seq.h5", *BI_GRU.values()),
    ),
}
BUGS: Mapping[str, Bug] = {**MASKS, **GENERATIONS, **MERGES}
