"""Mutations of attention."""

from __future__ import annotations

from mutations.patches import K3, TF, Mutation, edit

MUTATIONS = {
    "attention of planes over the other axis": Mutation(
        edit(
            "layers.attention:Attention.scores",
            "key.transpose(-1, -2)",
            "key.transpose(-1, -2).flip(1)",
        ),
        (f"{TF}/attention_planes.keras", f"{K3}/attention_planes.keras"),
    ),
    "masked scores of attention replaced, not reduced": Mutation(
        edit("layers.attention:Attention.forward", "replaces=False", "replaces=True"),
        (f"{TF}/heads_large_scores.keras",),
    ),
    "masked scores of heads replaced, not reduced": Mutation(
        edit("layers.attention:MultiHeadAttention.forward", "plan.adds not in now", "True"),
        (f"{TF}/heads_large_scores.keras",),
    ),
}
