"""Mutations of preprocessing: hashing, lookups, encodings, Normalization."""

from __future__ import annotations

from mutations.patches import K3, TF, Mutation, edit

MUTATIONS = {
    "Normalization divides by the variance": Mutation(
        edit("layers.preprocessing:Normalization.forward", "self.variance.sqrt()", "self.variance"),
        (f"{TF}/around_normalization.h5", f"{K3}/around_normalization_given.h5"),
    ),
    "AutoContrast stretches all channels alike": Mutation(
        edit("layers.preprocessing:AutoContrast.forward", "y.amax((1, 2)", "y.amax((1, 2, 3)"),
        (f"{K3}/auto_contrast.keras", f"{K3}/auto_contrast_images.keras"),
    ),
    "AutoContrast of a channel of one value is NaN": Mutation(
        edit("layers.preprocessing:AutoContrast.forward", "y.isnan()", "y.isinf()"),
        (f"{K3}/auto_contrast.keras",),
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
    "numbers looked up in the order of their size": Mutation(
        edit(
            "layers.preprocessing:integer_lookup",
            "order + first",
            "torch.arange(len(words)) + first",
        ),
        (f"{TF}/lookup.keras", f"{K3}/lookup.keras"),
    ),
    "all numbers that are not in the list have the first index": Mutation(
        edit(
            "layers.preprocessing:IntegerLookup.forward", "torch.remainder(x, self.others)", "0 * x"
        ),
        (f"{TF}/lookup.h5",),
    ),
}
