"""Mutations of pooling and Flatten."""

from __future__ import annotations

from mutations.patches import (
    K2,
    K3,
    Mutation,
    edit,
    mutation,
)

MUTATIONS: list[Mutation] = [
    mutation(
        "AveragePooling1D counts the padding",
        edit("layers.pooling:Pooling._pool", "if is_padded(around):", "if False:"),
        f"{K2}/pool.h5",
    ),
    mutation(
        "AveragePooling1D counts padding that is equal at both ends",
        edit(
            "layers.pooling:Pooling._pool_evenly",
            '{"count_include_pad": False}',
            '{"count_include_pad": True}',
        ),
        "pooled evenly",
    ),
    mutation(
        "MaxPooling1D pads with zeros",
        edit("layers.pooling:Pooling._pool", "value=-torch.inf", "value=0.0"),
        "pooled unevenly",
    ),
    mutation(
        "pool stride ignored",
        edit("layers.pooling:Pooling.__init__", "stride or size", "size"),
        f"{K2}/pool.h5",
    ),
    mutation(
        "windows of adaptive pooling do not overlap",
        edit(
            "layers.pooling:AdaptivePooling.forward",
            "-(-(i + 1) * steps // parts) - i * steps // parts",
            "max((i + 1) * steps // parts - i * steps // parts, 1)",
        ),
        f"{K3}/adaptive1.keras",
        f"{K3}/adaptive2.keras",
        f"{K3}/adaptive3.h5",
    ),
]
