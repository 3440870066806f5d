"""Mutations of preprocessing: hashing, lookups, encodings, Normalization."""

from __future__ import annotations

from mutations.patches import (
    K3,
    TF,
    Mutation,
    edit,
    mutation,
)

MUTATIONS: list[Mutation] = [
    mutation(
        "Normalization divides by the variance",
        edit("layers.preprocessing:Normalization.forward", "self.variance.sqrt()", "self.variance"),
        f"{TF}/around_normalization.h5",
        f"{K3}/around_normalization_given.h5",
    ),
    mutation(
        "AutoContrast stretches all channels alike",
        edit("layers.preprocessing:AutoContrast.forward", "y.amax((1, 2)", "y.amax((1, 2, 3)"),
        f"{K3}/auto_contrast.keras",
        f"{K3}/auto_contrast_images.keras",
    ),
    mutation(
        "AutoContrast of a channel of one value is NaN",
        edit("layers.preprocessing:AutoContrast.forward", "y.isnan()", "y.isinf()"),
        f"{K3}/auto_contrast.keras",
    ),
    mutation(
        "CategoryEncoding does not count",
        edit("layers.preprocessing:encode", 'mode == "multi_hot"', 'mode != "one_hot"'),
        f"{TF}/around_count.h5",
    ),
    mutation(
        "ids count as often as they come, whatever their weights",
        edit(
            "layers.preprocessing:encode",
            "weights.to(tokens.dtype).unsqueeze(-1)",
            "tokens.new_ones(())",
        ),
        f"{TF}/count_weights.h5",
        f"{K3}/count_weights.keras",
    ),
    mutation(
        "numbers looked up in the order of their size",
        edit(
            "layers.preprocessing:integer_lookup",
            "order + first",
            "torch.arange(len(words)) + first",
        ),
        f"{TF}/lookup.keras",
        f"{K3}/lookup.keras",
    ),
    mutation(
        "all numbers that are not in the list have the first index",
        edit(
            "layers.preprocessing:IntegerLookup.forward", "torch.remainder(x, self.others)", "0 * x"
        ),
        f"{TF}/lookup.h5",
    ),
]
