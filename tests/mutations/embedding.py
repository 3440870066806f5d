"""Mutations of Embedding."""

from __future__ import annotations

from mutations.patches import K2, K3, Mutation, edit

MUTATIONS = {
    "Embedding makes no mask": Mutation(
        edit("layers.core:_embedding_mask", 'layer.config["mask_zero"]', "False"),
        (f"{K2}/mask_bi_lstm_seq.h5", f"{K3}/mask_average_pool_direct.h5"),
    ),
    "Embedding masks although mask_zero is off": Mutation(
        edit("layers.core:_embedding_mask", 'layer.config["mask_zero"]', "True"),
        ("ids without a mask",),
    ),
}
