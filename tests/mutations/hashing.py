"""Mutations of Hashing."""

from __future__ import annotations

from mutations.patches import K3, TF, Mutation, edit

MUTATIONS = {
    "a minus is no character to FarmHash64": Mutation(
        edit("layers.hashing:digits", "length = count + negative", "length = count + 0 * negative"),
        (f"{TF}/hashing.keras", f"{K3}/hashing.h5"),
    ),
    "remainders of hashes with their sign": Mutation(
        edit(
            "layers.hashing:remainder",
            "((_right(x, 1) % divisor) * 2 + (x & 1)) % divisor",
            "x % divisor",
        ),
        (f"{TF}/hashing.keras", "tf.keras-2.4.0/hashing.h5"),
    ),
}
