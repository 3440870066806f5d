"""Mutations of masks: rules of masked steps, and which layers make, use and pass a mask."""

from __future__ import annotations

from typing import Any

from keras2torch_birnn.layers import registry
from keras2torch_birnn.rnn import masks
from mutations.patches import K2, K3, K231, TF, Mutation, Patch, both, change_mask_flow, edit, wrap


def change_rule(old: str, new: str) -> Patch:
    """Replace one rule for masked steps by another."""

    def wrapper(right: Any) -> Any:
        def spread(*args: Any, rule: str, **more: Any) -> Any:
            return right(*args, rule=new if rule == old else rule, **more)

        return spread

    return wrap(masks, "scatter_steps", wrapper)


ZEROS = (f"{TF}/mask_bi_lstm_seq.h5", f"{K3}/mask_bi_gru_before_seq.h5")
UNREVERSED = (f"{TF}/mask_unroll_bi_seq.h5", f"{K3}/mask_unroll_bi_seq.h5")
PREVIOUS = (f"{TF}/mask_plain_lstm_seq.keras", f"{K231}/mask_bi_gru_before_seq.h5")
STATE = (f"{K2}/mask_bi_lstm_seq.h5", f"{K2}/mask_back_lstm_seq.h5")
# Only a carried state tells "previous_output" from "previous_state".
CARRIED = {"previous_output": f"{TF}/stateful_mask.h5", "previous_state": f"{K2}/stateful_mask.h5"}
RECURRENT = ("Bidirectional", "LSTM", "GRU", "SimpleRNN")
NOTICES = {
    "zeros": ZEROS,
    "zeros_unreversed": UNREVERSED,
    "previous_output": PREVIOUS,
    "previous_state": STATE,
}

MUTATIONS = {
    **{
        f"masked_output {rule} becomes {other}": Mutation(
            change_rule(rule, other),
            (CARRIED[rule],) if {rule, other} == {"previous_output", "previous_state"} else files,
            late={rule, other} == {"previous_output", "previous_state"},
        )
        for rule, files in NOTICES.items()
        for other in NOTICES
        if other != rule
    },
    "previous counts against the direction of reading": Mutation(
        edit("rnn.masks:shown_steps", "seen - mask.long() if backward else seen - 1", "seen - 1"),
        (f"{K2}/mask_bi_lstm_seq.h5", f"{K231}/mask_bi_gru_before_seq.h5"),
    ),
    "the masked steps run and the valid ones do not": Mutation(
        edit(
            "rnn.masks:valid_first",
            "torch.argsort(~mask, dim=1, stable=True)",
            "torch.argsort(mask, dim=1, stable=True)",
        ),
        ZEROS,
    ),
    "an empty row loses its state": Mutation(
        edit("rnn.engines.torch_kernel:_sort", "else falling == 0", "else falling < 0"),
        (f"{TF}/mask_bi_state.keras", f"{K3}/mask_bi_state.keras"),
    ),
    "recurrent layers take no mask": Mutation(
        both(*(change_mask_flow(name, registry.SAME) for name in RECURRENT)),
        (f"{TF}/mask_bi_lstm_last.keras", f"{K2}/mask_stack_plain.h5", f"{K3}/chain_masked.keras"),
    ),
    "recurrent layers hand no mask on": Mutation(
        both(*(change_mask_flow(name, registry.USES) for name in RECURRENT)),
        (f"{TF}/mask_stack_plain.keras", f"{K2}/mask_stack_bi_dense.h5"),
    ),
    "Masking makes no mask": Mutation(
        change_mask_flow("Masking", registry.SAME),
        (f"{K2}/masking_zero_bi_lstm_seq.h5", f"{K3}/masking_big_bi_simplernn_seq.h5"),
    ),
    "Masking leaves masked steps as they are": Mutation(
        edit("layers.core:Masking.forward", "x * mask", "x + 0 * mask"),
        (f"{K2}/masking_alone.h5",),
    ),
    "Masking masks a step by a single feature": Mutation(
        edit("layers.core:differs", ".any(dim=-1)", ".all(dim=-1)"),
        (f"{K2}/masking_alone.h5", f"{TF}/masking_big_bi_simplernn_seq.h5"),
    ),
    "GlobalAveragePooling1D ignores its mask": Mutation(
        edit("layers.reshaping:GlobalPooling.forward", "if mask is None:", "if True:"),
        (f"{K2}/mask_average_pool.h5", f"{K3}/mask_average_pool_direct.h5"),
    ),
    "GlobalMaxPooling1D uses a mask": Mutation(
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
        f"{name} stops the mask": Mutation(
            change_mask_flow(name, registry.NONE),
            (f"{K2}/mask_through.h5", f"{K3}/mask_through.keras"),
        )
        for name in ("Dense", "Activation", "BatchNormalization", "LeakyReLU", "SpatialDropout1D")
    },
    "LayerNormalization stops the mask": Mutation(
        change_mask_flow("LayerNormalization", registry.NONE), (f"{TF}/mask_through_layernorm.h5",)
    ),
    "TimeDistributed stops the mask": Mutation(
        change_mask_flow("TimeDistributed", registry.NONE),
        (f"{K2}/mask_td_dense.h5", f"{K3}/mask_td_dense.h5"),
    ),
    "a step of TimeDistributed counts only if all in it does": Mutation(
        edit("layers.recurrent:step_counts", ".any(dim=2)", ".all(dim=2)"),
        (f"{TF}/mask_td_bi.h5", f"{K2}/mask_td_bi.h5"),
    ),
}
