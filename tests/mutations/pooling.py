"""Mutations of pooling and Flatten."""

from __future__ import annotations

from mutations.patches import K2, Mutation, edit

MUTATIONS = {
    "AveragePooling1D counts the padding": Mutation(
        edit("layers.reshaping:Pooling._pool", "if is_padded(around):", "if False:"),
        (f"{K2}/pool.h5",),
    ),
    "AveragePooling1D counts padding that is equal at both ends": Mutation(
        edit(
            "layers.reshaping:Pooling._pool_evenly",
            '{"count_include_pad": False}',
            '{"count_include_pad": True}',
        ),
        ("pooled evenly",),
    ),
    "MaxPooling1D pads with zeros": Mutation(
        edit("layers.reshaping:Pooling._pool", "value=-torch.inf", "value=0.0"),
        ("pooled unevenly",),
    ),
    "pool stride ignored": Mutation(
        edit("layers.reshaping:Pooling.__init__", "stride or size", "size"), (f"{K2}/pool.h5",)
    ),
}
