"""Mutations of preprocessing: encodings, Normalization."""

from __future__ import annotations

from mutations.patches import K3, TF, Mutation, edit

MUTATIONS = {
    "Normalization divides by the variance": Mutation(
        edit("layers.preprocessing:Normalization.forward", "self.variance.sqrt()", "self.variance"),
        (f"{TF}/around_normalization.h5", f"{K3}/around_normalization_given.h5"),
    ),
    "CategoryEncoding does not count": Mutation(
        edit("layers.preprocessing:encode", 'mode == "multi_hot"', 'mode != "one_hot"'),
        (f"{TF}/around_count.h5",),
    ),
    "ids count as often as they come, whatever their weights": Mutation(
        edit(
            "layers.preprocessing:encode",
            "weights.to(tokens.dtype).unsqueeze(-1)",
            "tokens.new_ones(())",
        ),
        (f"{TF}/count_weights.h5", f"{K3}/count_weights.keras"),
    ),
}
