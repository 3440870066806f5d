"""Mutations of Embedding and ReversibleEmbedding."""

from __future__ import annotations

from mutations.patches import K2, K3, Mutation, edit

MUTATIONS = {
    "int8 Embedding without its scale": Mutation(
        edit("layers.embedding:QuantizedEmbedding.forward", " / self.scale[input][..., None]", ""),
        (f"{K3}/quantized_weights.keras",),
    ),
    "a reversed Embedding without its own weight": Mutation(
        edit(
            "layers.embedding:ReversibleEmbedding.forward",
            "else self.reverse_weight",
            "else self.weight",
        ),
        (f"{K3}/reversible_untied.keras",),
    ),
    "a reversed Embedding without its cap": Mutation(
        edit("layers.embedding:ReversibleEmbedding.forward", "self.cap is None", "True"),
        (f"{K3}/reversible_capped.keras",),
    ),
    "scores bent but not scaled back": Mutation(
        edit("layers.embedding:ReversibleEmbedding.forward", ") * self.cap", ")"),
        (f"{K3}/reversible_untied.h5",),
    ),
    "Embedding makes no mask": Mutation(
        edit("layers.embedding:_embedding_mask", 'layer.config["mask_zero"]', "False"),
        (f"{K2}/mask_bi_lstm_seq.h5", f"{K3}/mask_average_pool_direct.h5"),
    ),
    "Embedding masks although mask_zero is off": Mutation(
        edit("layers.embedding:_embedding_mask", 'layer.config["mask_zero"]', "True"),
        ("ids without a mask",),
    ),
}
