"""Mutations of attention."""

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
        "attention of planes over the other axis",
        edit(
            "layers.attention:Attention.scores",
            "key.transpose(-1, -2)",
            "key.transpose(-1, -2).flip(1)",
        ),
        f"{TF}/attention_planes.keras",
        f"{K3}/attention_planes.keras",
    ),
    mutation(
        "masked scores of attention replaced, not reduced",
        edit("layers.attention:Attention.forward", "replaces=False", "replaces=True"),
        f"{TF}/heads_large_scores.keras",
        f"{K3}/heads_large_scores.keras",
    ),
    mutation(
        "masked scores of heads replaced, not reduced",
        edit("layers.attention:MultiHeadAttention.forward", "plan.adds not in now", "True"),
        f"{TF}/heads_large_scores.keras",
    ),
    mutation(
        "attention over all axes",
        edit("layers.attention:MultiHeadAttention._over_axes", "self.plan.axes", "None"),
        f"{TF}/heads_axes.keras",
        f"{K3}/heads_axes.keras",
    ),
]
